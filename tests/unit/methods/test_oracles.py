"""Every method against its NumPy oracle, for many ranks; and errors that others shipped."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import lora, methods
from fedjax_lora.core.types import LoRA
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods import AggregateResult, Cohort
from tests._helpers import cohorts, oracles
from tests._helpers.cohorts import CLIENTS, SPECS, R, assert_close, method_name
from tests._helpers.oracle_comparison import compare

WEIGHT = np.array([30, 5, 11, 17, 80, 2], np.float32)
ABSENT = np.array([30, 5, 0, 17, 80, 0], np.float32)

CASES = {
    "equal, full": ([4, 4, 4, 4, 4, 4], WEIGHT),
    "equal, low": ([2, 2, 2, 2, 2, 2], WEIGHT),
    "two levels": ([1, 4, 1, 4, 1, 1], WEIGHT),
    "four levels": ([1, 2, 3, 4, 2, 1], WEIGHT),
    "no high rank": ([1, 3, 2, 2, 1, 3], WEIGHT),
    "absent clients": ([1, 2, 4, 3, 2, 4], ABSENT),
    "absent, equal": ([3, 3, 3, 3, 3, 3], ABSENT),
}


CARRIED = {
    "a": lambda ratio: (1.0, ratio),
    "b": lambda ratio: (ratio, 1.0),
    "both": lambda ratio: (np.sqrt(ratio), np.sqrt(ratio)),
}
"""The factors on B and A of a client that reads its product at another scale."""


def cases_of(spec: str) -> list[str]:
    """Those of one rank only, if the method takes nothing else."""
    mixed = methods.takes_mixed_ranks(spec)
    return [case for case, (rank, _) in CASES.items() if mixed or len(set(rank)) == 1]


def test_every_registered_method_has_an_oracle_with_the_same_options():
    assert oracles.ORACLES.keys() == methods.METHODS.keys()
    for name, factory in methods.METHODS.items():
        keywords = lambda fn: {  # noqa: E731
            p.name: p.default
            for p in inspect.signature(fn).parameters.values()
            if p.kind is inspect.Parameter.KEYWORD_ONLY
        }
        assert keywords(factory) == keywords(oracles.ORACLES[name]), name


def test_test_cohorts_cover_both_svd_paths():
    shapes = [(CLIENTS * R, min(s.inputs, s.outputs)) for s in cohorts.SITES]
    assert any(stacked < side for stacked, side in shapes)
    assert any(stacked >= side for stacked, side in shapes)
    assert any(min(s.inputs, s.outputs) == R for s in cohorts.SITES)


@pytest.mark.parametrize("spec", SPECS)
def test_a_round_agrees_with_the_oracle(spec: str):
    for case in cases_of(spec):
        compare(spec, cohorts.GLOBAL, *CASES[case])


@pytest.mark.parametrize("spec", methods.METHODS)
def test_a_round_with_a_scale_per_client_agrees_with_the_oracle(spec: str):
    for case in cases_of(spec):
        compare(spec, cohorts.PER_CLIENT, *CASES[case])


@pytest.mark.parametrize("spec", SPECS)
def test_initial_client_parameters_agree_with_the_oracle(spec: str):
    """The first r components, or all of them (parallel modules), or a fresh adapter."""
    lora_spec = cohorts.PER_CLIENT
    rank = [1, 2, 3, 4, 2, 1]
    cohort = cohorts.make_cohort(lora_spec, rank)
    method, _ = cohorts.compiled(spec, lora_spec)
    server = cohorts.make_server(method, lora_spec)
    start = method.broadcast(server, method.init_clients(CLIENTS), cohort)
    server_pairs = cohorts.matrices(lora_spec, server.adapter)
    for n, r in enumerate(rank):
        mine = cohorts.matrices(lora_spec, cohorts.client(start.adapter, n))
        deltas = cohorts.dense(
            lora_spec, cohorts.client(cohorts.client_deltas(start, start.adapter), n)
        )
        for matrix, (B, A) in server_pairs.items():
            if method_name(spec) in oracles.HOLD_ALL:
                assert_close(deltas[matrix], lora_spec.alpha / R * B @ A)
            elif method_name(spec) == "fslora":
                rows = cohorts.trained_rows(lora_spec, start.trainable, n)[matrix]
                sketched = lora_spec.alpha / R * R / r * B[:, rows] @ A[rows]
                assert len(rows) == r
                assert_close(deltas[matrix], sketched)
            elif method_name(spec) == "fedsa_lora":
                np.testing.assert_array_equal(mine[matrix].A[:r], A[:r])
                np.testing.assert_array_equal(mine[matrix].B[:, :r], B[:, :r])  # not trained
            elif method_name(spec) == "flora":
                assert not np.any(mine[matrix].B)
                assert np.all(mine[matrix].A[:r] != 0)
                assert not np.any(mine[matrix].A[r:])
            else:
                reads_its_own_scale = method_name(spec) in oracles.SINGULAR.keys() - {"fedsvd"}
                if not reads_its_own_scale:
                    np.testing.assert_array_equal(mine[matrix].A[:r], A[:r])
                elif method_name(spec) != "fedrora":  # which begins with unit lengths
                    ratio = lora_spec.alpha / R / (lora_spec.alpha / r)
                    in_b, in_a = CARRIED[cohorts.option(spec, "sigma")](ratio)
                    assert_close(mine[matrix].A[:r], in_a * A[:r])
                    assert_close(mine[matrix].B[:, :r], in_b * B[:, :r])
                scale = lora_spec.alpha / (R if reads_its_own_scale else r)
                assert_close(deltas[matrix], scale * B[:, :r] @ A[:r])


# ------------------------------------------------------------------- errors found in other systems
#
# Each of these rules is wrong in a way that some published code was. The comparison above has to
# reject it; if one of them passes, the tests have lost their teeth.

Rule = Callable[[LoraSpec], methods.Method]


def weighing(weigh: Callable[[Cohort], jax.Array]) -> Rule:
    return lambda lora_spec: methods.averaging(
        lora_spec, lambda cohort, *_: weigh(cohort), name="weighing"
    )


def only_the_first_client_survives(cohort: Cohort) -> jax.Array:
    first = jnp.arange(CLIENTS) == 0
    share = methods.shares(cohort.weight)
    return jnp.where(first[:, None] & methods.owners(cohort, R), share[:, None], 0.0)


def absent_components_count_with_full_weight(cohort: Cohort) -> jax.Array:
    share = methods.shares(cohort.weight)
    return jnp.where(methods.owners(cohort, R), share[:, None], 0.0)


def absent_clients_count(cohort: Cohort) -> jax.Array:
    own = lora.prefix_mask(cohort.rank, R).astype(jnp.float32)
    return own / jnp.maximum(jnp.sum(own, axis=0, keepdims=True), 1.0)


def changed(base: str, change: Callable[..., AggregateResult]) -> Rule:
    """The method of this spec with something done to what its aggregate gets or returns."""

    def make(lora_spec: LoraSpec) -> methods.Method:
        method = methods.make(base, lora_spec)
        fields = {f: getattr(method, f) for f in method.__dataclass_fields__}
        return methods.Method(
            **fields | {"aggregate": lambda *args: change(lora_spec, method.aggregate, *args)}
        )

    return make


def transposed(lora_spec: LoraSpec, aggregate: Any, *args: Any) -> AggregateResult:
    """Decomposes the transpose: invisible in the shapes of a square layer."""
    out = aggregate(*args)
    square = {s.path for s in lora_spec.targets if s.inputs == s.outputs}
    swap = {
        path: LoRA(p.b.mT, p.a.mT) if path in square else p
        for path, p in out.server.adapter.items()
    }
    return out._replace(server=out.server._replace(adapter=swap))


def scale_applied_twice(lora_spec: LoraSpec, aggregate: Any, *args: Any) -> AggregateResult:
    server, clients, cohort, start, result = args
    gain = jax.tree.map(jnp.square, start.gain)
    return aggregate(server, clients, cohort, start._replace(gain=gain), result)


def scale_forgotten(lora_spec: LoraSpec, aggregate: Any, *args: Any) -> AggregateResult:
    server, clients, cohort, start, result = args
    gain = jax.tree.map(lambda g: (g != 0).astype(g.dtype), start.gain)
    return aggregate(server, clients, cohort, start._replace(gain=gain), result)


def stacked_without_weights(lora_spec: LoraSpec, aggregate: Any, *args: Any) -> AggregateResult:
    server, clients, cohort, start, result = args
    count = jnp.sum(cohort.weight > 0).astype(jnp.float32)
    result = {path: LoRA(pair.a * count, pair.b) for path, pair in result.items()}
    present = (cohort.weight > 0).astype(jnp.float32)
    return aggregate(server, clients, cohort._replace(weight=present), start, result)


def weights_on_both_factors(lora_spec: LoraSpec, aggregate: Any, *args: Any) -> AggregateResult:
    server, clients, cohort, start, result = args
    share = methods.shares(cohort.weight)
    result = {
        path: LoRA(pair.a, pair.b * share.reshape(-1, *(1,) * (pair.b.ndim - 1)))
        for path, pair in result.items()
    }
    return aggregate(server, clients, cohort, start, result)


def weights_on_a_only(lora_spec: LoraSpec, aggregate: Any, *args: Any) -> AggregateResult:
    """``a = sum p_k a_k`` with ``b = sum b_k``: the combination weights of one factor only."""
    out = aggregate(*args)
    mass = jnp.sum(args[2].weight) / jnp.max(args[2].weight)
    pairs = {path: LoRA(p.a, p.b * mass) for path, p in out.server.adapter.items()}
    return out._replace(server=out.server._replace(adapter=pairs))


def constants_in_the_code(lora_spec: LoraSpec, aggregate: Any, *args: Any) -> AggregateResult:
    """Alpha 16 whatever the configuration says."""
    server, clients, cohort, start, result = args
    gain = jax.tree.map(lambda g: g * (16.0 / lora_spec.alpha), start.gain)
    return aggregate(server, clients, cohort, start._replace(gain=gain), result)


ERRORS: dict[str, tuple[str, Rule, str]] = {
    "a typo keeps the first client only": (
        "fedit",
        weighing(only_the_first_client_survives),
        "equal, full",
    ),
    "absent components averaged as zeros": (
        "masked_mean",
        weighing(absent_components_count_with_full_weight),
        "two levels",
    ),
    "replication without the copies": (
        "replication",
        weighing(absent_components_count_with_full_weight),
        "two levels",
    ),
    "absent clients averaged in": (
        "masked_mean(weights='uniform')",
        weighing(absent_clients_count),
        "absent clients",
    ),
    "the transpose is decomposed": ("hlora", changed("hlora", transposed), "two levels"),
    "the scale is applied twice": ("hlora", changed("hlora", scale_applied_twice), "two levels"),
    "the scale is forgotten": ("flora", changed("flora", scale_forgotten), "two levels"),
    "stacking without client weights": (
        "flora",
        changed("flora(weights='uniform')", stacked_without_weights),
        "two levels",
    ),
    "stacking with weights on both factors": (
        "flora",
        changed("flora", weights_on_both_factors),
        "two levels",
    ),
    "combination weights on a only": ("fedit", changed("fedit", weights_on_a_only), "equal, full"),
    "constants in the code": ("flexlora", changed("flexlora", constants_in_the_code), "two levels"),
    "sigma in the wrong factor": (
        "hlora",
        lambda lora_spec: methods.make("hlora(sigma='b')", lora_spec),
        "two levels",
    ),
}


@pytest.mark.parametrize("error", ERRORS)
def test_oracles_detect_known_errors_of_other_implementations(
    error: str, monkeypatch: pytest.MonkeyPatch
):
    name, rule, case = ERRORS[error]
    lora_spec = cohorts.GLOBAL
    compare(name, lora_spec, *CASES[case])  # the true rule passes
    broken = rule(lora_spec)
    monkeypatch.setattr(cohorts, "compiled", lambda *_: (broken, jax.jit(broken.aggregate)))
    with pytest.raises(AssertionError):
        compare(name, lora_spec, *CASES[case])


def test_rounds_without_an_owner_of_high_components_are_frequent():
    """The rule for that case matters: ten of a hundred clients, ten of them of high rank."""
    rng = np.random.default_rng(0)
    draws = np.array([rng.choice(100, 10, replace=False) for _ in range(20_000)])
    without = np.mean(np.all(draws >= 10, axis=1))
    exact = np.prod([(90 - i) / (100 - i) for i in range(10)])
    assert abs(exact - 0.33) < 0.001
    assert abs(without - exact) < 4 * np.sqrt(exact * (1 - exact) / 20_000)
