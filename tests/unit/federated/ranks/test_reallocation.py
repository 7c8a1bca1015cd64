"""Ranks during a run: when clients are scored, on what, and when that counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import federated
from fedjax_lora.federated import ClientStore, FederatedState
from fedjax_lora.federated.ranks import ClientScores, allocate, reallocation
from fedjax_lora.federated.ranks.client_scoring import ValidationResult
from fedjax_lora.methods.base import ServerState
from tests._helpers import problems

N = len(problems.SIZES)
LOSS = np.array([0.4, 0.2, 0.6, 0.1, 0.5, 0.3], np.float32)
RATE = 0.5


def state_of(adapter: str) -> FederatedState:
    """A state of which only the adapter is looked at, and that is a word."""
    return FederatedState(ServerState(adapter, {}), {}, ClientStore((), ()))


def play(spec: str, rounds: int, score=None):
    """Each round's ranks and state, and every call of the scoring: (round, state, plan)."""
    fed = problems.round_federation()
    review = allocate(spec, clients=N, seed=0, component_size=1).schedule
    assert review is not None
    calls, history = [], []

    def measure(state, plan):
        calls.append((int(plan.round), state, plan))
        loss = np.append(LOSS, np.float32(0))[plan.id]  # an absent client looks perfect
        return ValidationResult(loss, 1 - loss) if score is None else score(plan)

    reallocate = reallocation.make_reallocate(
        review, fed, measure if review.needs_validation else None, lambda old: f"{old}, renewed"
    )
    rank, scores = np.full(N, 1, np.int32), ClientScores.initial(N)
    for t in range(rounds):
        state = state_of(f"before round {t}")
        state, rank, scores, _ = reallocate(t, RATE, state, rank, scores)
        history.append((rank.copy(), state.server.adapter))
    return history, calls, fed


def test_all_clients_are_scored_once_and_the_best_get_high_rank_from_round_two():
    history, calls, fed = play("loss_based(low=1, high=4, share=0.3)", 5)
    assert history[0][0].tolist() == [1] * N
    for rank, _ in history[1:]:
        assert rank.tolist() == [1, 4, 1, 4, 1, 1]
    scored = np.concatenate([plan.id[plan.weight > 0] for _, _, plan in calls])
    assert sorted(scored) == list(range(N))
    assert len(calls) == N / fed.cohort
    for t, state, plan in calls:
        assert (t, state.server.adapter) == (0, "before round 0")
        assert plan.rate == np.float32(RATE)
        assert set(plan.rank[plan.weight > 0]) == {1}


@pytest.mark.parametrize(
    ("options", "scored"),
    [
        ("every=2", [[[2, 2, 2], [2, 2, 2]], [], [[2, 2, 2], [2, 2, 2]], []]),
        ("order='random', every=2", [[], [], [], []]),
    ],
)
def test_scored_ranks_are_reported_per_cohort(options, scored):
    fed = problems.round_federation()
    spec = f"loss_based(low=2, high=4, share=0.5, {options})"
    review = allocate(spec, clients=N, seed=0, component_size=1).schedule
    assert review is not None
    score = lambda state, plan: ValidationResult(*np.zeros((2, len(plan.id))))  # noqa: E731
    if not review.needs_validation:
        score = None
    reallocate = reallocation.make_reallocate(review, fed, score, lambda old: old)
    state, rank, scores = state_of(""), np.full(N, 2), ClientScores.initial(N)
    told = []
    for t in range(4):
        state, rank, scores, trained = reallocate(t, RATE, state, rank, scores)
        told.append([ranks.tolist() for ranks in trained])
    assert told == scored
    assert reallocation.keep_ranks(0, RATE, state, rank, scores).scored == ()


def test_scoring_trains_as_the_round_does():
    """Clients that also take part in the round train on the same examples in the same order."""
    _, calls, fed = play("loss_based(low=1, high=4, share=0.3)", 1)
    own = fed.plan(0, np.ones(N, int), RATE)
    matched = 0
    for _, _, plan in calls:
        for place, client in enumerate(plan.id[plan.weight > 0]):
            for there in np.flatnonzero(own.id == client):
                matched += 1
                for x, y in zip(plan.batches, own.batches, strict=True):
                    np.testing.assert_array_equal(x[place], y[there])
    assert matched == fed.cohort


def test_ranks_a_method_changed_are_kept_between_decisions():
    fed = problems.round_federation()
    review = allocate(
        "loss_based(low=2, high=4, share=0.5)", clients=N, seed=0, component_size=1
    ).schedule
    assert review is not None
    reallocate = reallocation.make_reallocate(
        review,
        fed,
        lambda state, plan: ValidationResult(*np.zeros((2, len(plan.id)))),
        lambda old: old,
    )
    state, rank, scores = state_of(""), np.full(N, 2), ClientScores.initial(N)
    state, rank, scores, _ = reallocate(0, RATE, state, rank, scores)
    state, rank, scores, _ = reallocate(1, RATE, state, rank, scores)
    assert rank.tolist() == [4, 4, 4, 2, 2, 2]
    rank[0] = 3  # pruned
    rank = reallocate(2, RATE, state, rank, scores).rank
    assert rank.tolist() == [3, 4, 4, 2, 2, 2]


def test_all_clients_are_rescored_periodically_at_the_low_rank():
    order = {0: LOSS, 2: LOSS[::-1], 4: LOSS}

    def score(plan):
        loss = np.append(order[int(plan.round)], np.float32(0))[plan.id]
        return ValidationResult(loss, 1 - loss)

    history, calls, _ = play("loss_based(low=1, high=4, share=0.3, every=2)", 6, score)
    best, reverse = [1, 4, 1, 4, 1, 1], [1, 1, 4, 1, 4, 1]
    assert [rank.tolist() for rank, _ in history] == [[1] * N, best, best, reverse, reverse, best]
    assert [t for t, _, _ in calls] == [0, 0, 2, 2, 4, 4]
    assert all(set(plan.rank[plan.weight > 0]) == {1} for _, _, plan in calls)


def test_cohorts_are_scored_when_they_first_take_part():
    history, calls, fed = play("loss_based(low=1, high=4, share=0.5, scored='cohort')", 12)
    known: list[int] = []
    visits = {t: plan for t, _, plan in calls}
    for t, (rank, _) in enumerate(history):
        best = sorted(known, key=lambda k: LOSS[k])[: -(-len(known) // 2)]
        assert np.flatnonzero(rank == 4).tolist() == sorted(best)
        new = [k for k in fed.sample(t) if k not in known]
        got = visits[t].id[visits[t].weight > 0].tolist() if t in visits else []
        assert sorted(got) == sorted(new)
        known += new
    assert len(known) == N and len(calls) > 2


def test_random_ranks_need_no_training():
    history, calls, _ = play("loss_based(low=1, high=4, share=0.5, order='random', every=1)", 9)
    assert calls == []
    assert history[0][0].tolist() == [1] * N
    assert all(np.sum(rank == 4) == 3 for rank, _ in history[1:])
    assert len({tuple(rank) for rank, _ in history[1:]}) > 3


@pytest.mark.parametrize("promoted", ["server", "fresh"])
def test_components_of_a_raised_rank_are_drawn_once(promoted):
    spec = f"loss_based(low=1, high=4, share=0.3, every=1, promoted='{promoted}')"
    history, _, _ = play(spec, 4)
    want = [f"before round {t}" for t in range(4)]
    if promoted == "fresh":
        want[1] += ", renewed"
    assert [adapter for _, adapter in history] == want


def test_resumed_run_reallocates_identically():
    """A checkpoint needs only the ranks and the scores."""
    spec = "loss_based(low=1, high=4, share=0.5, scored='cohort')"
    whole, _, fed = play(spec, 6)
    review = allocate(spec, clients=N, seed=0, component_size=1).schedule
    assert review is not None
    measure = lambda state, plan: ValidationResult(*(np.append(LOSS, np.float32(0))[plan.id],) * 2)  # noqa: E731
    rank, scores = np.full(N, 1), ClientScores.initial(N)
    for t in range(6):  # a new process in every round
        reallocate = reallocation.make_reallocate(review, fed, measure, lambda old: old)
        _, rank, scores, _ = reallocate(t, RATE, state_of(""), rank, scores)
        np.testing.assert_array_equal(rank, whole[t][0])


def test_renewed_components_keep_low_ranks_and_sharding():
    lora_spec = problems.bag().spec
    old, new = (problems.random_adapter(lora_spec, seed) for seed in (0, 1))
    mesh = federated.client_mesh(2)
    placed = jax.device_put(jax.tree.map(jnp.asarray, old), federated.everywhere(mesh))
    got = reallocation.reinitialize_above(lora_spec, 3, placed, jax.tree.map(jnp.asarray, new))
    for path, pair in got.items():
        np.testing.assert_array_equal(pair.a[..., :3], old[path].a[..., :3])
        np.testing.assert_array_equal(pair.a[..., 3:], new[path].a[..., 3:])
        np.testing.assert_array_equal(pair.b[..., :3, :], old[path].b[..., :3, :])
        np.testing.assert_array_equal(pair.b[..., 3:, :], new[path].b[..., 3:, :])
        assert all(x.sharding == y.sharding for x, y in zip(pair, placed[path], strict=True))
