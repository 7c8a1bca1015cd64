"""Runs whose server does not wait for all: records, resumption, refusals."""

import json

import numpy as np
import pytest

from fedjax_lora import InputError
from fedjax_lora.core.errors import Stopped
from fedjax_lora.runs import build
from fedjax_lora.runs.compilation import programs
from fedjax_lora.runs.run import run
from tests._helpers import tiny_runs

CHANGES = {
    "federation.ranks": "tiers(ranks=[1, 4])",
    "federation.method": "zero_padding",
    "federation.cohort": 3,
    "federation.device_profiles": "classes(names=['jetson-nano', 'laptop-m1'])",
    "federation.server_mode": "fedbuff(buffer=2)",
    "execution.checkpoint_every": 1,
    "execution.eval_every": 4,
}


@pytest.fixture(scope="module")
def shared():
    return {"assets": tiny_runs.assets(), "programs": programs()}


def changed(**federation):
    fields = {f"federation.{name}": value for name, value in federation.items()}
    return tiny_runs.change(tiny_runs.CONFIG, CHANGES | fields)


def after(count):
    """A stop after so many rounds."""
    calls = iter(range(1, 100))
    return lambda: next(calls) >= count


@pytest.mark.slow
def test_resumed_run_goes_on_with_the_clients_at_work(shared, tmp_path):
    """Records and adapter are those of a run that was not interrupted; some clients are late."""
    whole = run(changed(), **shared)
    with pytest.raises(Stopped):
        run(changed(), out=tmp_path / "again", stop=after(2), **shared)
    resumed = run(changed(), out=tmp_path / "again", resume=True, **shared)
    assert resumed.records == whole.records
    last = json.loads((tmp_path / "again" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["simulated_seconds"] > 0 and len(last["clients"]["id"]) == 2
    late = [t for record in whole.records for t in record["clients"]["staleness"]]
    assert max(late) > 0 and min(late) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "mix"), [("zero_padding", "changes"), ("hlora", "models"), ("fed_plora", "changes")]
)
def test_buffer_of_a_cohort_is_the_synchronous_run(shared, method, mix):
    server = f"semi_synchronous(mix={mix!r})"
    late = run(changed(method=method, server_mode=server), **shared)
    plain = run(changed(method=method, server_mode="synchronous"), **shared)
    for one, other in zip(late.records, plain.records, strict=True):
        assert one["clients"].pop("staleness") == [0, 0, 0]
        for name in ("id", "steps", "up_bytes", "down_bytes"):
            assert one["clients"][name] == other["clients"][name]
        assert one["clients"]["loss"] == pytest.approx(other["clients"]["loss"], rel=1e-4)
        assert one["simulated_seconds"] == pytest.approx(other["simulated_seconds"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "server"),
    [
        ("hlora", "fedasync"),
        ("masked_mean", "fedasync(mix='changes')"),
        ("fslora", "fedbuff(buffer=3)"),
    ],
)
@pytest.mark.parametrize("heads", ["average", "local", "frozen"])
def test_servers_methods_and_heads_go_together(shared, method, server, heads):
    result = run(changed(method=method, server_mode=server, heads=heads), **shared)
    assert np.isfinite([record["train_loss"] for record in result.records]).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device_profiles": "none"}, "needs device profiles"),
        ({"deadline": "first(over=1.5)"}, "a deadline"),
        ({"faults": ("dropout(probability=0.1)",)}, "dropout or stragglers"),
        ({"sampling": "round_robin"}, "sampling='round_robin'"),
        ({"method": "hlora"}, "cannot mix late changes, only models"),
        ({"method": "rolora"}, "takes no late clients"),
        ({"server_mode": "fedbuff"}, "give a cohort of at least 10"),
        ({"server_mode": "fedbuf"}, "fedbuff"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_sentence(shared, changes, words):
    with pytest.raises(InputError, match=words):
        build.build(changed(**changes), shared["assets"])
