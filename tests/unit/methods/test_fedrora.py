"""FedRoRA: directions and coefficients of each client, and its state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import lora, methods
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import LoRA
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods import ClientInit, Cohort, ServerState
from tests._helpers import cohorts, oracles
from tests._helpers.cohorts import GLOBAL, PER_CLIENT, R, assert_close, client, make_cohort

RANK = [1, 2, 3, 4, 2, 1]
WEIGHT = [30.0, 5.0, 11.0, 17.0, 0.0, 2.0]
PRESENT = [0, 1, 2, 3, 5]
PATHS = [target.path for target in GLOBAL.targets]


def fresh_server(lora_spec: LoraSpec = GLOBAL) -> ServerState:
    return ServerState(lora.init(lora_spec, jax.random.key(0)), {})


def directions_and_coefficients(
    lora_spec: LoraSpec, start: ClientInit, n: int
) -> dict[str, list[tuple[float, np.ndarray]]]:
    """What a client starts with: for each matrix effective coefficients and their rank-one parts.

    In the papers' notation, as the oracle's.
    """
    pairs = cohorts.matrices(lora_spec, client(start.adapter, n))
    sizes = {path: x * start.gain[path] for path, x in start.coefficients.items()}
    # As the `b` of an adapter with one output, so that layers are taken apart as everywhere.
    columns = {p: LoRA(start.adapter[p].a, x[..., :, None]) for p, x in sizes.items()}
    values = cohorts.matrices(lora_spec, client(columns, n))
    return {
        name: [
            (float(values[name].B[0, j]), np.outer(pair.B[:, j], pair.A[j]))
            for j in range(pair.A.shape[0])
        ]
        for name, pair in pairs.items()
    }


@pytest.mark.parametrize("largest", ["signed", "magnitude"])
@pytest.mark.parametrize(
    "lora_spec",
    [
        pytest.param(GLOBAL, marks=pytest.mark.slow, id="alpha/R"),
        pytest.param(PER_CLIENT, id="alpha/r"),
    ],
)
def test_each_client_gets_its_largest_projections(largest: str, lora_spec: LoraSpec):
    """``s_k = u_k^T delta_i v_k`` against dense float64 products, and unit lengths."""
    spec = f"fedrora(largest={largest!r})"
    method, _ = cohorts.compiled(spec, lora_spec)
    server = cohorts.make_server(method, lora_spec)
    cohort = make_cohort(lora_spec, RANK, WEIGHT)
    played = cohorts.play(spec, lora_spec, cohort, server=server)
    round = cohorts.oracle_round(spec, lora_spec, server, cohort, played)
    start = methods.make(spec, lora_spec).broadcast(
        played.outcome.server, played.outcome.clients, cohort
    )
    ranks = [RANK[n] for n in PRESENT]
    signs = set()
    for name in round.old:
        want = oracles.fedrora_own(round, name, ranks, largest=largest)
        scale = max(abs(s) for own in want for s, _ in own)
        for place, n in enumerate(PRESENT):
            got = directions_and_coefficients(lora_spec, start, n)[name]
            assert len(want[place]) == RANK[n]
            for j, (s, part) in enumerate(want[place]):
                assert abs(got[j][0] - s) < 2e-5 * scale
                assert_close(got[j][1], part, 2e-4, f"{name}, client {n}, direction {j}")
                signs.add(s > 0)
            for s, part in got[RANK[n] :]:
                assert s == 0 and not part.any()
    assert signs == {True, False}  # or both rules would agree
    for n in PRESENT:
        for pair in cohorts.matrices(lora_spec, client(start.adapter, n)).values():
            for lengths in (np.linalg.norm(pair.B, axis=0), np.linalg.norm(pair.A, axis=1)):
                np.testing.assert_allclose(lengths[: RANK[n]], 1, atol=1e-6)
                assert not lengths[RANK[n] :].any()


def test_a_single_client_gets_its_singular_values():
    cohort = make_cohort(GLOBAL, [3, 1, 1, 1, 1, 1], [5, 0, 0, 0, 0, 0])
    played = cohorts.play("fedrora", GLOBAL, cohort)
    start = methods.make("fedrora", GLOBAL).broadcast(
        played.outcome.server, played.outcome.clients, cohort
    )
    trained = cohorts.matrices(GLOBAL, client(played.result, 0))
    for name, own in directions_and_coefficients(GLOBAL, start, 0).items():
        product = GLOBAL.server_scale * trained[name].B @ trained[name].A
        values = np.linalg.svd(product, compute_uv=False)[:3]
        np.testing.assert_allclose([s for s, _ in own[:3]], values, rtol=1e-5)
        assert_close(sum(s * part for s, part in own), product, 1e-5)


def after_a_round(rank: list[int]) -> tuple[methods.Method, ServerState, object, Cohort]:
    method = methods.make("fedrora", GLOBAL)
    cohort = make_cohort(GLOBAL, rank, WEIGHT)
    outcome = cohorts.play("fedrora", GLOBAL, cohort).outcome
    return method, outcome.server, outcome.clients, cohort


def test_client_state_is_not_changed_by_later_servers():
    """It is the client's own; the global model moves on."""
    method, server, own, cohort = after_a_round(RANK)
    other = cohorts.on_device(cohorts.make_server(method, GLOBAL, seed=8))
    one, two = (method.broadcast(s, own, cohort) for s in (server, other))
    cohorts.assert_trees_equal(client(two, np.array(PRESENT)), client(one, np.array(PRESENT)))


def test_raised_rank_adds_the_next_directions():
    """Those that the client would have got with the higher rank; a lowered one leaves the best."""
    method, server, own, cohort = after_a_round(RANK)
    high = cohort._replace(rank=jnp.full_like(cohort.rank, R))
    start, more = (method.broadcast(server, own, c) for c in (cohort, high))
    for n in PRESENT:
        few = directions_and_coefficients(GLOBAL, start, n)
        many = directions_and_coefficients(GLOBAL, more, n)
        for name, parts in many.items():
            values = [abs(s) for s, _ in parts]
            assert values == sorted(values, reverse=True) and len(set(values)) == R
            for (s, part), (t, other) in zip(few[name][: RANK[n]], parts, strict=False):
                assert s == t
                np.testing.assert_array_equal(part, other)


def test_new_client_starts_from_the_global_model():
    method, server, own, cohort = after_a_round([R] * 6)
    unknown = own._replace(known=jnp.zeros_like(own.known))
    start = cohorts.in_two_factors(method).broadcast(server, unknown, cohort)
    for n in (0, 4):
        cohorts.assert_trees_close(
            jax.device_get(client(cohorts.client_deltas(start, start.adapter), n)),
            jax.device_get(cohorts.server_delta(GLOBAL, server)),
        )


@pytest.mark.parametrize("first", [0.0, 1.0])
def test_initial_coefficients_are_zero_or_scaled_common_directions(first: float):
    """The model of the pretrained base, or ``first / sqrt(r)`` over directions common to all."""
    method = methods.make(f"fedrora(first={first})", PER_CLIENT)
    cohort = make_cohort(PER_CLIENT, RANK, WEIGHT)
    start = method.broadcast(fresh_server(PER_CLIENT), method.init_clients(6), cohort)
    whole = directions_and_coefficients(PER_CLIENT, start, 3)
    for n, r in enumerate(RANK):
        for name, own in directions_and_coefficients(PER_CLIENT, start, n).items():
            for j, (s, part) in enumerate(own):
                assert s == pytest.approx(first / r**0.5 if j < r else 0, rel=1e-6)
                assert np.linalg.norm(part) == pytest.approx(float(j < r), abs=1e-6)
                if j < r:
                    np.testing.assert_array_equal(part, whole[name][j][1])


def test_directions_are_normalised_and_zeros_stay_zero():
    method = methods.make("fedrora", GLOBAL)
    adapter = cohorts.random_adapter(GLOBAL, 0)
    mask = lora.factor_mask(lora.spread(GLOBAL, jnp.arange(R) < 2))
    assert method.project is not None
    projected = method.project(lora.keep(cohorts.on_device(adapter), mask))
    for name, pair in cohorts.matrices(GLOBAL, projected).items():
        before = cohorts.matrices(GLOBAL, adapter)[name]
        assert_close(pair.B[:, :2], before.B[:, :2] / np.linalg.norm(before.B[:, :2], axis=0), 1e-6)
        assert_close(pair.A[:2], before.A[:2] / np.linalg.norm(before.A[:2], axis=1)[:, None], 1e-6)
        assert not pair.B[:, 2:].any() and not pair.A[2:].any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("coefficient_rate=0.0", "needs a coefficient_rate above 0 and finite, got 0.0"),
        ("coefficient_rate=1e999", "needs a coefficient_rate above 0 and finite, got inf"),
        ("first=-1.0", "needs first to be 0 or more and finite, got -1.0"),
    ],
)
def test_impossible_options_are_refused(options: str, words: str):
    with pytest.raises(InputError, match=words):
        methods.make(f"fedrora({options})", GLOBAL)
