"""A run that was interrupted ends as if it had not been: the same bytes, for every method."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import problems
import pytest
import tiny_runs
from tiny_runs import CONFIG, ROUNDS, change

from fedjax_lora import InputError, checkpoints, methods, runs
from fedjax_lora import config as configs
from fedjax_lora.errors import Stopped
from fedjax_lora.programs import programs

quick = pytest.fixture(problems.quick_compilation, scope="module", autouse=True)

SHARED = programs()
ASSETS = tiny_runs.assets()


def run(config, out, **options) -> runs.Result:
    return runs.run(config, out=out, assets=ASSETS, programs=SHARED, **options)


def interrupt(folder: pathlib.Path, copy: pathlib.Path, after: int) -> pathlib.Path:
    """What a run killed in its last round leaves: an older checkpoint and a torn line."""
    shutil.copytree(folder, copy)
    for checkpoint in (copy / checkpoints.FOLDER).iterdir():
        if int(checkpoint.name) > after:
            shutil.rmtree(checkpoint)
    (copy / "summary.json").unlink()
    shutil.rmtree(copy / "adapter")
    for name in ("metrics.jsonl", "timing.jsonl"):
        (copy / name).write_text((copy / name).read_text()[:-3])
    return copy


AROUND = {
    "updates": {"federation.updates": ("clip(norm=0.1)", "int8()")},
    "privacy": {"federation.updates": ("gaussian_noise(multiplier=1.0, norm=0.5)",)},
    "server_optimizer": {
        "federation.method": "zero_padding",
        "federation.server_optimizer": "adam(learning_rate=0.01)",
    },
    "promoted_fresh": {
        "federation.ranks": "loss_based(low=1, high=4, share=0.4, promoted='fresh')"
    },
    "scored_every_round": {
        "federation.ranks": "loss_based(low=1, high=4, share=0.4, every=1, scored='cohort')",
        "federation.method": "replication",
    },
    "local_heads": {"federation.heads": "local", "federation.method": "fedsa_lora"}
    | {"federation.ranks": "fixed(rank=2)"},
    "dropout": {"lora.lora_dropout": 0.2, "local.prox": 0.1},
    "measured": {"execution.measure": True},
    "loop": {"execution.mode": "loop"},
    "sharded": {"execution.mode": "sharded"},
}
CASES = {name: tiny_runs.with_method(name) for name in methods.METHODS} | AROUND


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_leaves_the_same_bytes(case, tmp_path):
    config = change(CONFIG, CASES[case])
    whole = run(config, tmp_path / "whole")
    copy = interrupt(whole.out, tmp_path / "copy", after=2)
    told = []
    resumed = run(config, copy, resume=True, on_round=told.append)
    assert [record["round"] for record in told] == [3, 4]
    assert tiny_runs.left(copy) == tiny_runs.left(whole.out)
    problems.assert_same_bits(resumed.state, whole.state)
    np.testing.assert_array_equal(resumed.rank, whole.rank)
    assert resumed.history == json.loads(json.dumps(whole.history))
    assert problems.changed(whole.state, checkpointed_state(whole, 2))
    timing = (copy / "timing.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in timing] == [1, 2, 3, 4]


def checkpointed_state(result: runs.Result, round: int):
    (found,) = [c for c in checkpoints.whole(result.out) if c.round == round]
    like = checkpoints.Progress(
        result.state,
        result.rank,
        result.rank,
        checkpoints.saved.Scores.none(len(result.rank)),
        [],
    )
    return checkpoints.restore(found, like).state
