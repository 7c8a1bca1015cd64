"""However a cohort is executed, it computes the same."""

import jax
import numpy as np
import pytest

from fedjax_lora import federated
from fedjax_lora.core import quantization
from fedjax_lora.core.errors import InputError
from fedjax_lora.federated import Execution
from tests._helpers import problems
from tests._helpers.problems import (
    assert_close,
    assert_same_bits,
    cohort_fn,
    first,
    make_clients,
    plan_for,
)

COHORT = len(problems.SIZES)

MODES = {
    "vmap of one": {"mode": "vmap", "clients_per_step": 1},
    "vmap in waves of four": {"mode": "vmap", "clients_per_step": 4},
    "vmap of all": {"mode": "vmap", "clients_per_step": COHORT},
    "eight devices": {"mode": "sharded", "clients_per_step": 1, "devices": 8},
    "two devices, waves of two": {"mode": "sharded", "clients_per_step": 2, "devices": 2},
    "base in two parts": {"mode": "sharded", "clients_per_step": 2, "devices": 8, "shape": (4, 2)},
    "base in eight parts": {
        "mode": "sharded",
        "clients_per_step": 2,
        "devices": 8,
        "shape": (1, 8),
    },
}

BETWEEN = {"vmap of all", "base in eight parts"}
"""What lies between or beyond others: one wave, and a base in more parts than two."""


def mesh_of(options: dict):
    if "devices" not in options:
        return None
    return federated.client_mesh(options["devices"], options.get("shape", (-1, 1)))


def padded(options: dict) -> int:
    execution = Execution(
        mode=options["mode"], clients_per_step=options["clients_per_step"], mesh=mesh_of(options)
    )
    return execution.padded_size(COHORT)


def train(problem: str, count: int, **options):
    """The cohort's result, and what it began with."""
    made = getattr(problems, problem)()
    plan = plan_for(made, cohort=COHORT, padded=count)
    start = make_clients(made, plan)
    base = jax.device_put(made.base, federated.base_sharding(made.base, mesh_of(options)))
    return cohort_fn(problem, **options)(base, made.data, start, plan.rate), start


@pytest.mark.parametrize(
    ("problem", "mode"),
    [pytest.param("bag", mode, marks=[pytest.mark.slow] * (mode in BETWEEN)) for mode in MODES]
    + [("encoder", "base in two parts")]
    + [
        pytest.param("encoder", mode, marks=pytest.mark.slow)
        for mode in ("vmap of all", "eight devices")
    ],
)
def test_execution_modes_equal_a_loop_over_clients(problem, mode):
    want, start = train(problem, COHORT, mode="loop")
    got, _ = train(problem, padded(MODES[mode]), **MODES[mode])
    assert problems.changed(want[0], start.params)
    assert_close(first(COHORT, got), want)
    np.testing.assert_array_equal(first(COHORT, got)[1].examples, want[1].examples)


@pytest.mark.parametrize("mode", [m for m in MODES if padded(MODES[m]) > COHORT])
def test_absent_clients_are_unchanged(mode):
    (params, report), start = train("bag", padded(MODES[mode]), **MODES[mode])
    absent = lambda tree: jax.tree.map(lambda x: x[COHORT:], tree)  # noqa: E731
    assert_same_bits(absent(params), absent(start.params))
    assert np.all(np.asarray(absent(report)) == 0)


def test_tested_cohorts_include_indivisible_sizes():
    sizes = {mode: padded(options) for mode, options in MODES.items()}
    assert sizes == {
        "vmap of one": 6,
        "vmap in waves of four": 8,
        "vmap of all": 6,
        "eight devices": 8,
        "two devices, waves of two": 8,
        "base in two parts": 8,
        "base in eight parts": 6,
    }


def test_clients_are_distributed_over_the_devices():
    (params, _), _ = train("bag", 8, **MODES["eight devices"])
    for leaf in jax.tree.leaves(params):
        assert len(leaf.sharding.device_set) == 8
        assert leaf.sharding.shard_shape(leaf.shape) == (1, *leaf.shape[1:])


@pytest.mark.parametrize("devices", [1, 3, 8])
@pytest.mark.parametrize("mode", ["vmap", "sharded"])
def test_cohort_is_padded_to_the_smallest_divisible_size(mode, devices):
    mesh = federated.client_mesh(devices) if mode == "sharded" else None
    parts = devices if mode == "sharded" else 1
    for cohort in range(1, 20):
        for clients_per_step in (1, 2, 3, 7, 30):
            execution = Execution(mode=mode, clients_per_step=clients_per_step, mesh=mesh)
            size = execution.padded_size(cohort)
            local = size // parts
            each = -(-cohort // parts)
            assert size % parts == 0 and local >= each
            assert local % min(clients_per_step, each) == 0 and local - each < min(
                clients_per_step, each
            )


def test_loop_mode_needs_no_padding():
    assert Execution(mode="loop", clients_per_step=4).padded_size(7) == 7


def test_sharded_mode_needs_a_mesh():
    with pytest.raises(InputError, match="needs a mesh"):
        Execution(mode="sharded", clients_per_step=1)


def test_clients_per_step_must_divide_the_clients_of_a_device():
    run = federated.execute(problems.training("bag"), Execution(clients_per_step=4))
    problem = problems.bag()
    plan = plan_for(problem)
    with pytest.raises(InputError, match="6 clients per device cannot be trained 4 at a time"):
        run(problem.base, problem.data, make_clients(problem, plan), plan.rate)


def test_mesh_takes_the_first_devices():
    mesh = federated.client_mesh(3)
    assert dict(mesh.shape) == {federated.AXIS: 3, federated.MODEL: 1}
    assert mesh.devices.ravel().tolist() == jax.devices()[:3]
    assert federated.client_mesh().devices.ravel().tolist() == jax.devices()


@pytest.mark.parametrize("shape", [(3, 2), (-1, 3), (8, 8), (1, 1)])
def test_mesh_uses_all_devices_by_default(shape):
    with pytest.raises(InputError, match=r"^A mesh of .* does not use 8 device\(s\) exactly; "):
        federated.client_mesh(8, shape)


def test_too_few_devices_are_refused():
    with pytest.raises(InputError, match="devices is 9, but there are 1 to 8"):
        federated.client_mesh(9)


def test_base_matrices_are_sharded_and_vectors_replicated():
    """Outputs first, rows of tables first; else the other axis. Also of layers apart, and codes."""
    mesh = federated.client_mesh(8, (2, 4))
    ones = lambda *shape: np.ones(shape, np.float32)  # noqa: E731
    codes = quantization.encode(ones(8, 12), "int8")
    base = {
        "table": {"embedding": ones(16, 8)},
        "odd": {"embedding": ones(3, 8)},
        "stack": {"kernel": ones(3, 8, 12), "bias": ones(3, 12)},
        "apart": {"kernel": (ones(8, 6), ones(8, 6))},
        "codes": {"kernel": codes},
    }
    specs = jax.tree.map(lambda x: tuple(x.spec), federated.base_sharding(base, mesh))
    assert specs["table"]["embedding"] == ("model", None)
    assert specs["odd"]["embedding"] == (None, "model")
    assert specs["stack"] == {"kernel": (None, None, "model"), "bias": (None, None)}
    assert specs["apart"]["kernel"] == (("model", None),) * 2
    assert set(jax.tree.leaves(specs["codes"]["kernel"])) == {"model"}
    placed = federated.place(base, federated.base_sharding(base, mesh))
    problems.assert_same_bits(problems.copy(placed), problems.copy(base))
    full = quantization.dequantize(placed["codes"]["kernel"])
    np.testing.assert_array_equal(full, quantization.dequantize(codes))
    with pytest.raises(InputError, match=r"on the axis model .* odd/kernel is 6 x 5") as told:
        federated.base_sharding({"odd": {"kernel": ones(6, 5)}}, mesh)
    assert len(str(told.value).splitlines()) == 1
