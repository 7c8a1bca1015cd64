"""Later rounds of methods whose server keeps more than its adapter: FedHL, ECLoRA, FedMomentum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import lora, methods
from fedjax_lora.core import registry
from fedjax_lora.federated.diagnostics import aggregation_noise, initialization_noise
from fedjax_lora.lora import LoraSpec, LoraTarget
from tests._helpers import cohorts, oracles
from tests._helpers.cohorts import assert_close, make_cohort
from tests._helpers.oracle_comparison import beyond

SPEC = LoraSpec(targets=(LoraTarget("x", 9, 8, None),), rank=3, alpha=6.0)
RANK, WEIGHT = [1, 2, 3, 2], [30.0, 5.0, 11.0, 4.0]


def rounds(name: str, count: int):
    """What the server has before and after each of some rounds, and what was played between."""
    method, _ = cohorts.compiled(name, SPEC)
    server = cohorts.make_server(method, SPEC)
    for t in range(count):
        cohort = make_cohort(SPEC, RANK, WEIGHT, round=t, seed=t)
        played = cohorts.play(name, SPEC, cohort, server=server, seed=t)
        yield server, cohort, played
        server = played.outcome.server


@pytest.mark.parametrize("name", ["fedhl", "eclora", "fedmomentum"])
def test_a_later_round_agrees_with_the_oracle(name: str):
    """With what earlier rounds have left at the server, which is not zero any more."""
    *_, (server, cohort, played) = rounds(name, 3)
    assert all(np.any(x) for x in jax.tree.leaves(server.state))
    round = cohorts.oracle_round(name, SPEC, server, cohort, played)
    want = oracles.ORACLES[registry.parse(name)[0]](round)
    s = np.linalg.svd(oracles.SINGULAR[name](round, "x"), compute_uv=False)
    after = played.outcome.server
    uncertain = 3 * beyond(s, SPEC.rank)  # the roundings of three rounds
    product = lambda pair: pair.B @ pair.A  # noqa: E731
    got = product(cohorts.matrices(SPEC, after.adapter)["x"])
    np.testing.assert_allclose(got, product(want.pairs["x"]), rtol=0, atol=uncertain)
    if after.kernels:
        np.testing.assert_allclose(after.kernels["x"].T, want.W["x"], rtol=0, atol=uncertain)


def test_fedhl_loses_nothing_in_rounds_without_training():
    """Mixed ranks: the global model stays, where HLoRA's high components decay."""
    method, aggregate = cohorts.compiled("fedhl", SPEC)
    *_, (_, _, played) = rounds("fedhl", 2)
    server = played.outcome.server
    cohort = make_cohort(SPEC, RANK, WEIGHT)
    start = method.broadcast(server, (), cohort)
    after = aggregate(server, (), cohort, start, start.adapter).server
    model = lambda s: cohorts.server_delta(SPEC, s)["x"] + s.kernels["x"]  # noqa: E731
    assert_close(model(after), model(server), 2e-6)


def test_clients_of_fedhl_do_not_have_the_servers_kernels():
    method = methods.make("fedhl", SPEC)
    *_, (_, _, played) = rounds("fedhl", 1)
    assert methods.client_kernels(method, played.outcome.server) == {}
    other = methods.make("flora", SPEC)
    assert methods.client_kernels(other, played.outcome.server) == played.outcome.server.kernels


def test_noise_of_fedhl_counts_what_clients_do_not_receive():
    """Against dense models: the server's with all of the update, the clients' on the first base."""
    (first, _, _), (server, cohort, played) = rounds("fedhl", 2)
    base = first.kernels
    p = np.array(WEIGHT) / np.sum(WEIGHT)
    dense = lambda s: np.asarray(cohorts.server_delta(SPEC, s)["x"] + s.kernels["x"], np.float64)  # noqa: E731
    deltas = lambda tree: np.asarray(cohorts.client_deltas(played.start, tree)["x"], np.float64)  # noqa: E731
    first_kernel = np.asarray(base["x"], np.float64)[None]
    begun, trained = (deltas(x) + first_kernel for x in (played.start.adapter, played.result))
    ideal = np.tensordot(p, trained, axes=1)
    noise = initialization_noise(SPEC, server, played.start, held=base)
    want = [np.linalg.norm(dense(server) - x) for x in begun]
    np.testing.assert_allclose(noise, want, rtol=1e-5)
    after = played.outcome.server
    got = aggregation_noise(SPEC, server, cohort, *played[:2], after, held=base)
    assert float(got.noise) == pytest.approx(np.linalg.norm(dense(after) - ideal), rel=1e-5)
    assert float(got.ideal) == pytest.approx(np.linalg.norm(ideal - dense(server)), rel=1e-5)


def test_eclora_sends_later_what_it_has_cut_off():
    """What clients train in one round and not in the next is in the sum of both models.

    Rank 1 of a mean of rank 2; the second round's clients send nothing.
    """
    spec = LoraSpec(targets=SPEC.targets, rank=1, alpha=1.0)
    method, aggregate = cohorts.compiled("eclora", spec)
    eye = np.eye(9, 8)
    zero = cohorts.pair(0 * eye[:, :1], 0 * eye[:1])
    server = method.init({"x": zero}, {"x": jnp.zeros((9, 8))})
    cohort = make_cohort(spec, [1, 1])
    start = method.broadcast(server, (), cohort)
    sent = cohorts.pair(np.stack([4 * eye[:, :1], 2 * eye[:, 1:2]]), np.stack([eye[:1], eye[1:2]]))
    server = aggregate(server, (), cohort, start, {"x": sent}).server
    assert_close(cohorts.server_delta(spec, server)["x"], np.diag([2.0] + 8 * [0.0])[:, :8], 1e-6)
    nothing = jax.tree.map(np.zeros_like, sent)
    after = aggregate(server, (), cohort, start, {"x": nothing}).server
    second = np.diag([0.0, 1.0] + 7 * [0.0])[:, :8]
    assert_close(cohorts.server_delta(spec, after)["x"], second, 1e-6)


def test_fedmomentum_sends_down_what_it_has_added_to_the_base():
    """Components beyond R of the round before, as many as have energy; and each client's own."""
    *_, (server, _, _) = rounds("fedmomentum", 2)
    method = methods.make("fedmomentum", SPEC)
    added = int(server.state["x"])
    assert 0 < added <= sum(RANK) - SPEC.rank
    traffic = method.traffic(server, np.array(RANK), 1)
    np.testing.assert_array_equal(traffic.up, 4 * np.array(RANK) * (9 + 8))
    np.testing.assert_array_equal(traffic.down, traffic.up + 4 * added * (9 + 8))


def test_fedmomentum_keeps_the_model_that_flexlora_cuts():
    """With all of the energy the global model is the exact mean, though the adapter has rank R."""
    (server, _, played), *_ = rounds("fedmomentum(energy=1.0)", 1)
    after = played.outcome.server
    p = np.array(WEIGHT) / np.sum(WEIGHT)
    mean = np.tensordot(p, cohorts.client_deltas(played.start, played.result)["x"], axes=1)
    got = cohorts.server_delta(SPEC, after)["x"] + after.kernels["x"] - server.kernels["x"]
    assert_close(got, mean, 2e-6)
    assert np.linalg.matrix_rank(mean, tol=1e-3) > SPEC.rank


def test_fedsvd_is_ffa_lora_with_an_orthonormal_a():
    method, _ = cohorts.compiled("fedsvd", SPEC)
    server = cohorts.make_server(method, SPEC)
    cohort = make_cohort(SPEC, [3] * 4, WEIGHT)
    ours, plain = (
        cohorts.play(name, SPEC, cohort, server=server).outcome.server.adapter
        for name in ("fedsvd", "ffa_lora")
    )
    gain = lora.uniform_gain(SPEC)
    assert_close(lora.deltas(ours, gain)["x"], lora.deltas(plain, gain)["x"], 2e-6)
    np.testing.assert_allclose(ours["x"].a.T @ ours["x"].a, np.eye(3), atol=2e-6)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("fedhl(eps=0.0)", "'fedhl' needs an eps above 0 and finite, got 0.0"),
        ("fedmomentum(energy=0.0)", r"needs an energy in \(0, 1\], got 0.0"),
        ("fedrot_lora(strength=1.5)", r"needs a strength in \(0, 1\], got 1.5"),
    ],
)
def test_impossible_options_are_refused(spec: str, match: str):
    with pytest.raises(methods.base.InputError, match=match):
        methods.make(spec, SPEC)
