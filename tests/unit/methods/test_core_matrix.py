"""RAVAN and Fed-SB: fixed orthonormal factors, and a core between them that is averaged exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import lora, methods
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import LoRA
from fedjax_lora.methods import ClientInit
from tests._helpers import cohorts
from tests._helpers.cohorts import GLOBAL, R, assert_close, make_cohort

PATHS = [target.path for target in GLOBAL.targets]
CASES = {"four heads": "ravan", "two heads": "ravan(heads=2)", "one head": "fed_sb"}
every_case = pytest.mark.parametrize("case", CASES)
ADAPTED = {"block/layers/query": np.array([0, 2]), "head/dense": slice(None)}


def fresh_start(name: str, rank: list[int]) -> tuple[ClientInit, dict[str, jax.Array]]:
    """What clients begin with in the first round of a fresh adapter, and the kernels."""
    method, kernels = methods.make(name, GLOBAL), cohorts.random_kernels(GLOBAL, 3)
    server = method.init(lora.init(GLOBAL, jax.random.key(0)), kernels)
    return method.broadcast(server, (), make_cohort(GLOBAL, rank)), kernels


@every_case
def test_fixed_factors_are_orthonormal_and_the_first_core_is_zero(case: str):
    start, _ = fresh_start(CASES[case], [R])
    for path in PATHS:
        a, b = (np.asarray(x[0], np.float64)[ADAPTED[path]] for x in start.adapter[path])
        unit = np.broadcast_to(np.eye(R), (*a.shape[:-2], R, R))
        np.testing.assert_allclose(np.swapaxes(a, -1, -2) @ a, unit, atol=2e-6)
        np.testing.assert_allclose(b @ np.swapaxes(b, -1, -2), unit, atol=2e-6)
        assert not np.any(dict(start.coefficients)[path])


def test_bases_of_fed_sb_are_the_leading_singular_vectors_of_the_kernels():
    start, kernels = fresh_start("fed_sb", [R])
    for path in PATHS:
        U, s, Vt = np.linalg.svd(np.asarray(kernels[path], np.float64)[ADAPTED[path]])
        a, b = (np.asarray(x[0], np.float64)[ADAPTED[path]] for x in start.adapter[path])
        best = U[..., :R] * s[..., None, :R] @ Vt[..., :R, :]
        mine = a @ (np.swapaxes(a, -1, -2) @ best @ np.swapaxes(b, -1, -2)) @ b
        assert_close(mine, best, 2e-5)


def test_bases_differ_between_runs_and_are_the_same_in_each():
    method = methods.make("ravan", GLOBAL)
    of = lambda seed: method.init(lora.init(GLOBAL, jax.random.key(seed)), {})  # noqa: E731
    cohorts.assert_trees_equal(of(1), of(1))
    for path in PATHS:
        assert np.max(np.abs(of(1).adapter[path].b - of(2).adapter[path].b)) > 0.1


@every_case
def test_clients_begin_at_the_model_that_was_given(case: str):
    """The core of a warm start is the product of its factors, whatever the blocks."""
    method, given = methods.make(CASES[case], GLOBAL), cohorts.random_adapter(GLOBAL, 5)
    server = method.init(given, cohorts.random_kernels(GLOBAL, 3))
    start = method.broadcast(server, (), make_cohort(GLOBAL, [R, 1]))
    want = lora.deltas(cohorts.on_device(given), lora.uniform_gain(GLOBAL))
    mine = lora.deltas(lora.fold(start.adapter, start.coefficients), start.gain)
    for path in PATHS:
        for n in range(2):
            assert_close(mine[path][n], want[path], 1e-5)


def moved(start: ClientInit, seed: int) -> tuple[dict[str, np.ndarray], dict[str, LoRA]]:
    """Cores after a stand-in for training, and the factors that a round makes of them."""
    rng = np.random.default_rng(seed)
    cores = {}
    for path, core in dict(start.coefficients).items():
        step = rng.normal(size=core.shape).astype(np.float32)
        cores[path] = np.where(dict(start.trained_coefficients)[path], core + step, core)
    return cores, lora.fold(start.adapter, cohorts.on_device(cores))


def dense_core(core: np.ndarray) -> np.ndarray:
    """Blocks one above the other as a block-diagonal matrix, float64."""
    core = np.asarray(core, np.float64).reshape(R, -1)
    width = core.shape[1]
    whole = np.zeros((R, R))
    for h in range(R // width):
        rows = slice(h * width, (h + 1) * width)
        whole[rows, rows] = core[rows]
    return whole


@every_case
def test_two_rounds_agree_with_cores_averaged_by_hand(case: str):
    """In float64, one head after the other: means over those who trained it, else as it was."""
    name = CASES[case]
    method = methods.make(name, GLOBAL)
    server = method.init(cohorts.random_adapter(GLOBAL, 5), cohorts.random_kernels(GLOBAL, 3))
    rank = [R, 1, 2] if name != "fed_sb" else [R] * 3
    share = np.array([3.0, 5.0, 2.0]) if name != "fed_sb" else np.ones(3)
    path = "head/dense"
    want = dense_core(method.broadcast(server, (), make_cohort(GLOBAL, [R])).coefficients[path][0])
    for round in range(2):
        cohort = make_cohort(GLOBAL, rank, [3.0, 5.0, 2.0], round=round, seed=round)
        start = method.broadcast(server, (), cohort)
        cores, result = moved(start, round)
        whole = [dense_core(x) for x in cores[path]]
        trained = np.asarray(dict(start.trained_coefficients)[path]).reshape(3, R, -1)[..., 0]
        for j in range(R):
            own = [n for n in range(3) if trained[n, j]]
            if own:
                want[j] = sum(share[n] * whole[n][j] for n in own) / sum(share[n] for n in own)
        server = method.aggregate(server, (), cohort, start, result).server
    a, b = np.asarray(start.adapter[path].a[0], np.float64), np.asarray(server.adapter[path].b)
    assert_close(np.asarray(server.adapter[path].a, np.float64) @ b, a @ want @ b, 5e-6)


def test_the_mean_of_cores_is_the_mean_of_models():
    """No aggregation noise among clients who trained the same heads."""
    method = methods.make("ravan(heads=2)", GLOBAL)
    server = method.init(cohorts.random_adapter(GLOBAL, 5), {})
    cohort = make_cohort(GLOBAL, [R] * 3, [1.0, 2.0, 5.0])
    start = method.broadcast(server, (), cohort)
    _, result = moved(start, 1)
    after = method.aggregate(server, (), cohort, start, result).server
    for path, each in lora.deltas(result, start.gain).items():
        mean = np.average(np.asarray(each, np.float64), axis=0, weights=[1, 2, 5])
        assert_close(cohorts.server_delta(GLOBAL, after)[path], mean, 2e-6)


def test_heads_are_chosen_by_the_norm_of_their_cores():
    method = methods.make("ravan(selection='norm')", GLOBAL)
    server = method.init(cohorts.random_adapter(GLOBAL, 5), {})
    sizes = np.array([1.0, 3.0, 4.0, 2.0], np.float32)
    adapter = {
        p: LoRA(jnp.asarray(np.asarray(server.state[p]) * sizes), server.adapter[p].b)
        for p in PATHS
    }
    start = method.broadcast(server._replace(adapter=adapter), (), make_cohort(GLOBAL, [1, 2]))
    trained = np.asarray(dict(start.trained_coefficients)["head/dense"])
    np.testing.assert_array_equal(
        trained, [[False, False, True, False], [False, True, True, False]]
    )


def test_heads_must_divide_the_rank():
    with pytest.raises(InputError, match="number of heads that divides the rank 4, got 3"):
        methods.make("ravan(heads=3)", GLOBAL)
    with pytest.raises(InputError, match="'fed_sb' needs clients of one rank"):
        methods.make("fed_sb", GLOBAL).check(np.array([1, 2]))
