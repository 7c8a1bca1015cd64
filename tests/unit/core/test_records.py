"""Options of records and functions are checked and stored as plain values."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_lora import federated, lora, methods
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import plain
from fedjax_lora.federated import Execution, LocalTraining
from fedjax_lora.federated.faults import dropout
from fedjax_lora.federated.transforms.clip_noise import clip
from fedjax_lora.runs.config import (
    DataConfig,
    ExecutionConfig,
    FederationConfig,
    LocalConfig,
    LoraConfig,
    ModelConfig,
    RunConfig,
    from_dict,
    to_dict,
)
from fedjax_lora.runs.sweep.grid import Grid
from tests._helpers.small_model import PARAMS, spec

SPEC = spec()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: FederationConfig(heads="averge"),
            "federation.heads cannot be 'averge', it is one of 'average', 'frozen', 'local'",
        ),
        (lambda: ExecutionConfig(mode="shard"), "execution.mode cannot be 'shard'"),
        (lambda: FederationConfig(client_weights="token"), "client_weights cannot be 'token'"),
        (lambda: LoraConfig(lora_init="normal"), "lora.lora_init cannot be 'normal'"),
        (lambda: LoraConfig(scale="alpha"), "lora.scale cannot be 'alpha'"),
        (lambda: ModelConfig(pooling="max", storage="int4"), "pooling cannot be 'max', .*storage"),
        (lambda: LocalConfig(batch="16"), "local.batch cannot be '16', it is int"),
        (lambda: LocalConfig(batch=np.float64(16)), "local.batch cannot be 16.0"),
        (lambda: LocalConfig(group_by_length=1), "local.group_by_length cannot be 1"),
        (lambda: FederationConfig(updates="int8"), "federation.updates cannot be 'int8'"),
        (lambda: RunConfig(data={"task": "ag_news"}), "data cannot be {'task': 'ag_news'}"),
        (lambda: RunConfig(seed=np.int64(-1)), "seed must be at least 0, got -1"),
        (lambda: dataclasses.replace(RunConfig(), seed=True), "seed cannot be True"),
        (lambda: Grid(base=RunConfig(), methods="hlora", seeds=(0,)), "methods cannot be 'hlora'"),
        (
            lambda: methods.averaging(None, None, name="own", empty="drop"),
            "empty cannot be 'drop', it is one of 'keep', 'zero'",
        ),
        (
            lambda: methods.refactoring(None, None, name="own", sigma="c"),
            "sigma cannot be 'c', it is one of 'a', 'b', 'both'",
        ),
        (lambda: Execution(mode="shard"), "mode cannot be 'shard'"),
        (lambda: Execution(clients_per_step=2.5), "clients_per_step cannot be 2.5"),
        (lambda: LocalTraining(None, optax.sgd(1.0), prox="1"), "prox cannot be '1'"),
        (lambda: LocalTraining(None, optax.sgd(1.0), prox=-1.0), "prox of at least 0, got -1.0"),
        (lambda: dataclasses.replace(SPEC, scale_rule="alpha"), "Unknown scale rule 'alpha'"),
        (lambda: dataclasses.replace(SPEC, alpha=float("inf")), "alpha must be above 0 and finite"),
        (lambda: lora.make_spec(PARAMS, rank="8"), "rank cannot be '8', it is int"),
        (lambda: lora.make_spec(PARAMS, rank=2, layers=[0.5]), r"layers cannot be \(0.5,\)"),
        (lambda: lora.init(SPEC, None, method="normal"), "method cannot be 'normal'"),
        (lambda: methods.fed_plora(SPEC, selection="rnd"), "selection cannot be 'rnd'"),
        (lambda: methods.zero_padding(SPEC, weights="equal"), "weights cannot be 'equal'"),
        (lambda: clip(norm="1"), "norm cannot be '1', it is float"),
        (lambda: dropout(probability=None), "probability cannot be None"),
        (lambda: federated.make_round(None, None, heads="averge"), "heads cannot be 'averge'"),
        (lambda: federated.compile_round(None, None, heads="mean"), "heads cannot be 'mean'"),
        (lambda: federated.init(None, {}, None, num_clients=2.0), "num_clients cannot be 2.0"),
        (lambda: federated.cohort([0.5], 1, 1.0, {}, round=0), r"ids must be whole .*\[0.5\]"),
        (lambda: federated.cohort([0], 2.5, 1.0, {}, round=0), "ranks must be whole numbers"),
        (lambda: federated.cohort([2**40], 1, 1.0, {}, round=0), "ids must be whole numbers"),
        (lambda: federated.client_mesh(-1), "devices is -1, but there are 1 to"),
    ],
)
def test_invalid_options_are_refused_in_python(make, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (np.int64(3), 3),
        (np.uint8(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("alpha/r"), "alpha/r"),
        (np.array(4), 4),
        (jnp.float32(0.5), 0.5),
        (np.arange(2), (0, 1)),
        (range(2), (0, 1)),
        ([np.int32(1), "a"], (1, "a")),
        (pathlib.PurePosixPath("a/b"), "a/b"),
        (None, None),
    ],
)
def test_numpy_scalars_become_python_values(given, kept):
    stored = plain(given)
    assert stored == kept and type(stored) is type(kept)


def test_config_of_numpy_scalars_holds_python_values():
    config = RunConfig(
        seed=np.int64(3),
        data=DataConfig(data_dir=pathlib.Path("there")),
        lora=LoraConfig(scale=np.str_("alpha/r"), lora_layers=np.arange(2), alpha=jnp.float32(2)),
        local=LocalConfig(learning_rate=np.float32(0.5), group_by_length=np.bool_(True)),
        execution=ExecutionConfig(mesh=[np.int32(-1), 1]),
        federation=FederationConfig(updates=["int8"]),
    )
    values = json.loads(json.dumps(to_dict(config)))
    assert from_dict(values) == config and hash(config) == hash(from_dict(values))
    assert values["local"]["learning_rate"] == 0.5 and values["data"]["data_dir"] == "there"
    assert {type(x) for group in to_dict(config).values() if isinstance(group, dict)
            for x in group.values()} <= {str, int, float, bool, type(None), list}  # fmt: skip


def test_functions_take_numpy_scalars():
    made = lora.make_spec(
        PARAMS, targets="value", rank=np.int64(2), alpha=np.float32(4), layers=np.array([0])
    )
    assert made == lora.make_spec(PARAMS, targets="value", rank=2, alpha=4.0, layers=[0])
    assert type(made.rank) is int and type(made.alpha) is float
    assert Execution(clients_per_step=np.int64(2)) == Execution(clients_per_step=2)


@pytest.mark.slow
def test_words_that_annotations_refuse_in_tests_are_refused_in_users_processes():
    """Here jaxtyping's hook would be first."""
    script = """
        import dataclasses, jax.numpy as jnp
        import fedjax_lora as fl
        from fedjax_lora.methods.averaging import shares
        spec = fl.lora.make_spec({"out": {"kernel": jnp.ones((3, 4))}}, targets="out", rank=2)
        method = fl.methods.hlora(spec)
        for make in (
            lambda: dataclasses.replace(method, keeps="site"),
            lambda: shares(jnp.ones(2), "token"),
        ):
            try:
                make()
            except fl.InputError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first.endswith("keeps cannot be 'site', it is one of 'server', 'client'.")
    assert second == "Weights are examples or uniform, got 'token'."
