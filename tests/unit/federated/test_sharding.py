"""A sharded round of a method: communication between devices, and absent clients.

Local training is a stand-in that costs nothing to compile: every step moves both factors along a
fixed direction. What it returns has the shapes of the real one.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import federated, lora, methods
from fedjax_lora.federated import optimizers
from fedjax_lora.lora import LoraSpec, LoraTarget
from tests._helpers import problems
from tests._helpers.hlo import TASK_TYPES, collectives
from tests._helpers.tolerances import FROM_AN_SVD, TOLERANCE

LAYERS, IN, OUT, RANK = 4, 48, 40, 4
TEMPLATE = LoraSpec(
    targets=(LoraTarget("layers/query", IN, OUT, (True,) * LAYERS),), rank=RANK, alpha=float(RANK)
)
DEVICES, COHORT, PRESENT, CLIENTS = 4, 8, 5, 12
ADAPTER = 4 * LAYERS * RANK * (IN + OUT)  # bytes of a client's: 5,632
KERNEL = 4 * LAYERS * IN * OUT  # 30,720

some_methods = pytest.mark.parametrize(
    "method", problems.one_of_each_kind({*problems.KINDS, "fedex_lora", "lora_fair"})
)
"""By default one for each way of exchanging, see `EXCHANGED`. That absent clients count for nothing
in a rule is tested for every method in `test_properties`."""


def moving() -> federated.Objective:
    """The inner product of the adapter with a part of ``base``, and a head that moves too."""
    plain = problems.quadratic()

    def loss(base, trained, *others):
        pairs = zip(*map(jax.tree.leaves, (trained.adapter, base["step"])), strict=True)
        return plain.loss(base, trained, *others) + sum(jnp.sum(x * g) for x, g in pairs)

    return plain._replace(loss=loss)


class Made(NamedTuple):
    compiled: Any
    base: Any
    data: Any
    begin: Any  # the state on the host


def plan_of(count: int, method: str) -> federated.Plan:
    """Five clients of mixed ranks and steps, and absent ones up to ``count``."""
    present = np.arange(count) < PRESENT
    rank = np.resize([4, 1, 3, 2, 4], count)
    if not methods.takes_mixed_ranks(method):
        rank = np.full(count, RANK)
    steps = [[[3 * k], [3 * k + 1]][: 1 + k % 2] for k in range(PRESENT)]
    steps += [[]] * (count - PRESENT)
    return federated.Plan(
        id=np.where(present, 2 * np.arange(count), CLIENTS).astype(np.int32),
        rank=np.where(present, rank, 1).astype(np.int32),
        weight=np.where(present, 1 + np.arange(count), 0).astype(np.float32),
        batches=problems.batches_of(*steps),
        rate=np.float32(0.1),
        round=np.int32(0),
    )


@functools.cache
def made(method: str, mode: str = "sharded") -> Made:
    """A compiled round of `COHORT` places, or in mode ``vmap`` of those who are present."""
    own = methods.make(method, TEMPLATE)
    mesh = federated.client_mesh(DEVICES) if mode == "sharded" else None
    train = federated.LocalTraining(moving(), optimizers.optimizer("sgd"))
    execution = federated.Execution(mode=mode, clients_per_step=1, mesh=mesh)
    fn = federated.compile_round(own, train, execution=execution)
    kernel = jnp.zeros((LAYERS, IN, OUT))
    state = federated.init_state(
        own,
        problems.random_adapter(TEMPLATE, 0),
        {"layers/query": kernel},
        {"w": jnp.zeros(3)},
        clients=CLIENTS,
        heads="average",
    )
    put = lambda tree: jax.device_put(tree, federated.everywhere(mesh))  # noqa: E731
    step = problems.random_adapter(TEMPLATE, 1)
    base, data = put({"layers": {"query": {"kernel": kernel}}, "step": step}), put(problems.POINTS)
    plan = plan_of(COHORT if mode == "sharded" else PRESENT, method)
    lowered = fn.lower(base, data, put(state), plan, jax.random.key(0))
    return Made(lowered.compile(), base, data, problems.copy(state))


def play(method: str, plan: federated.Plan, mode: str = "sharded") -> tuple[Any, Any]:
    compiled, base, data, begin = made(method, mode)
    like = jax.tree.leaves(data)[0].sharding
    state = jax.device_put(jax.tree.map(np.array, begin), like)
    return problems.copy(compiled(base, data, state, plan, jax.random.key(0)))


# ------------------------------------------------------------------------------- between devices


LEFT = 1000
"""Bytes that may be exchanged besides: ids, weights, ranks, losses, norms, the head."""

FACTORS = COHORT * ADAPTER // DEVICES  # of all clients, a device's layers
OWN = COHORT * ADAPTER * OUT // (IN + OUT)  # of all clients, the second factor

EXCHANGED: dict[str, dict[str, int]] = {
    "hlora": {"all-to-all": FACTORS, "all-gather": ADAPTER},
    "flexlora": {"all-to-all": FACTORS, "all-gather": ADAPTER},
    "raflora": {"all-to-all": FACTORS, "all-gather": ADAPTER},
    "rb_lora": {"all-to-all": FACTORS, "all-gather": ADAPTER},
    "florist": {"all-to-all": FACTORS, "all-gather": ADAPTER},
    "lora_fair": {"all-to-all": FACTORS, "all-gather": ADAPTER, "all-reduce": ADAPTER},
    # What is added to the base, summed up once.
    "flora": {"all-reduce": KERNEL},
    "fedex_lora": {"all-reduce": KERNEL + ADAPTER},
    # What belongs to clients is kept for them on every device.
    "fedsa_lora": {"all-gather": OWN, "all-reduce": ADAPTER},
    # Averaged first, then turned.
    "fedsvd": {"all-gather": ADAPTER, "all-reduce": ADAPTER},
    # What the server keeps as matrices, of a device's layers sent to all others.
    "fedhl": {"all-to-all": 2 * FACTORS, "all-gather": ADAPTER + 2 * KERNEL},
    "fedmomentum": {"all-to-all": FACTORS, "all-gather": ADAPTER + KERNEL},
    "eclora": {"all-to-all": FACTORS, "all-gather": ADAPTER + KERNEL},
    "fedrora": {"all-to-all": 2 * FACTORS, "all-gather": COHORT * ADAPTER + ADAPTER},
}
"""Bytes by kind of operation. Methods that average factors add up one adapter, and nothing else."""

MATRICES = {"fedhl": 2, "fedmomentum": 1, "eclora": 1, "flora": 1, "fedex_lora": 1}
"""Methods that exchange matrices of the size of a kernel, once for all clients, and how many."""


@some_methods
def test_communication_between_devices_is_as_documented(method):
    """A sum over clients is a sum of one adapter; products are never sent for each client."""
    told = collectives(made(method).compiled)
    one_adapter = {"all-reduce": ADAPTER}
    want = EXCHANGED.get(method, one_adapter)
    assert want == one_adapter or not methods.make(method, TEMPLATE).averages
    for kind in TASK_TYPES:
        total = sum(one.bytes for one in told if one.kind == kind)
        assert 0 <= total - want.get(kind, 0) < LEFT, kind
    dense = [one.shape for one in told if IN in one.shape and OUT in one.shape]
    assert dense == [(LAYERS, IN, OUT)] * MATRICES.get(method, 0)


def test_gather_of_client_results_is_detected():
    mesh = federated.client_mesh(DEVICES)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(federated.AXIS))
    x = jax.ShapeDtypeStruct((COHORT, LAYERS, IN, RANK), jnp.float32, sharding=split)
    gather = jax.jit(lambda x: 2 * x, out_shardings=federated.everywhere(mesh))
    (seen,) = collectives(gather.lower(x).compile())
    assert seen == ("all-gather", x.shape, 4 * COHORT * LAYERS * IN * RANK)


# --------------------------------------------------------------------------------- absent clients


def product(state: Any) -> Any:
    """What the server's model computes with."""
    gain = lora.uniform_gain(TEMPLATE)
    return lora.deltas(state.server.adapter, gain), state.server.kernels, state.head


@some_methods
def test_absent_clients_have_no_influence(method):
    """Three of eight clients are padding: the result is that of five, whatever their ranks."""
    plan = plan_of(COHORT, method)
    state, seen = play(method, plan)
    want, alone = play(method, plan_of(PRESENT, method), "vmap")
    assert problems.changed(state.server, made(method).begin.server)
    if method in FROM_AN_SVD:  # whose factors are not unique, see there
        problems.assert_close(product(state), product(want), TOLERANCE[method])
    else:
        problems.assert_close(state, want)
    problems.assert_close(problems.first(PRESENT, seen), alone)
    absent = jax.tree.map(lambda x: x[PRESENT:], seen)
    assert not np.any(absent.loss) and not np.any(absent.examples) and not np.any(absent.rejected)
    np.testing.assert_array_equal(absent.rank, 1)
    others = np.setdiff1d(np.arange(CLIENTS), plan.id)
    of_others = lambda tree: jax.tree.map(lambda x: x[others], tree)  # noqa: E731
    problems.assert_same_bits(of_others(state.clients), of_others(made(method).begin.clients))
    larger = np.where(plan.weight > 0, plan.rank, RANK).astype(np.int32)
    again, _ = play(method, plan._replace(rank=larger))
    problems.assert_same_bits(again, state)
