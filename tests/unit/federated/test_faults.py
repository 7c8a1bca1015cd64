"""Dropped clients and stragglers: in plans, in every method and in whole runs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_lora as fl
from experiments.robustness.malformed_input import valid
from fedjax_lora import InputError, federated, methods
from fedjax_lora.federated import transforms
from fedjax_lora.federated.faults import FAULTS, make_faults, steps_taken
from fedjax_lora.runs import build
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.compilation import programs
from tests._helpers import closed_form_rounds, problems
from tests._helpers.problems import (
    COHORT,
    SIZES,
    assert_same_bits,
    bag_rounds,
    ranks_for,
    stub_rounds,
)

kinds_of_method = pytest.mark.parametrize("method", problems.one_of_each_kind())

RANK = np.array([1, 2, 4, 3, 2, 1])
ALL_DROPPED = ("dropout(probability=1.0)",)
MIXED = ("dropout(probability=0.4)", "stragglers(share=0.6)")


def federation(*faults: str, **options):
    return problems.round_federation(faults=make_faults(faults), **options)


def plan_of(t: int, *faults: str, method: str = "zero_padding", **options):
    return federation(*faults, **options).plan(t, ranks_for(method), 0.05)


def stub_plan_of(t: int, *faults: str):
    """A plan of clients that `problems.STUB` has room for."""
    return federation(*faults).plan(t, np.minimum(RANK, problems.STUB.rank), 0.05)


# -------------------------------------------------------------------------------------------- plans


@given(
    share=st.floats(0, 1),
    work=st.none() | st.floats(1e-9, 1),
    steps=st.integers(1, 400),
    draw=st.tuples(*[st.integers(0, 99)] * 3),
)
@settings(deadline=None)
def test_straggler_steps_are_in_range_and_deterministic(share, work, steps, draw):
    faults = (FAULTS["dropout"](probability=share), FAULTS["stragglers"](share=share, work=work))
    assert steps_taken((), steps, draw=draw) == steps
    answered = steps_taken(faults[:1], steps, draw=draw)
    assert answered in (0, steps)
    late = steps_taken(faults[1:], steps, draw=draw)
    assert 1 <= late <= steps
    assert steps_taken(faults, steps, draw=draw) == steps_taken(faults, steps, draw=draw) <= steps


def test_fault_rates_match_the_options():
    fault = make_faults(MIXED)
    seen = np.array([steps_taken(fault, 100, draw=(0, t, k)) for t in range(80) for k in range(50)])
    assert np.mean(seen == 0) == pytest.approx(0.4, abs=0.03)
    answered = seen[seen > 0]
    assert np.mean(answered < 100) == pytest.approx(0.6, abs=0.03)
    assert np.mean(answered[answered < 100]) == pytest.approx(50, abs=2)  # uniform from 1 to 99
    half = make_faults(["stragglers(share=1.0, work=0.5)"])
    assert [steps_taken(half, n, draw=(0, 0, 0)) for n in (1, 2, 3, 8)] == [1, 1, 2, 4]
    exact = make_faults(["stragglers(share=1.0, work=0.07)"])
    assert steps_taken(exact, 100, draw=(0, 0, 0)) == 7


def test_faults_do_not_depend_on_the_cohort():
    whole = federation(*MIXED, cohort=6, padded=6)
    small = federation(*MIXED)
    plan, part = (fed.plan(3, RANK, 0.05) for fed in (whole, small))
    at = [plan.id.tolist().index(k) for k in part.id[:COHORT]]
    np.testing.assert_array_equal(part.batches.steps[:COHORT], plan.batches.steps[at])
    np.testing.assert_array_equal(part.weight[:COHORT], plan.weight[at])


def test_straggler_trains_on_its_first_batches():
    """It keeps a prefix of its batches; nothing else in the plan changes."""
    for t in range(6):
        want = plan_of(t, cohort=6, padded=7)
        got = plan_of(t, "stragglers(share=1.0)", cohort=6, padded=7)
        fed = federation("stragglers(share=1.0)", cohort=6, padded=7)
        late = []
        for place, k in enumerate(got.id[:6]):
            other = want.id.tolist().index(k)
            steps, due = got.batches.steps[place], want.batches.steps[other]
            assert steps < due or steps == due == 1
            late += [k] * int(steps < due)
            np.testing.assert_array_equal(
                got.batches.index[place, :steps], want.batches.index[other, :steps]
            )
            np.testing.assert_array_equal(
                got.batches.valid[place, :steps], want.batches.valid[other, :steps]
            )
            assert not got.batches.valid[place, steps:].any()
        assert fed.events(got) == {"dropped": [], "stragglers": sorted(late)} and late
        assert sorted(got.weight[:6]) == sorted(want.weight[:6])
        assert np.all(np.diff(got.batches.steps) <= 0)


def test_dropped_client_is_drawn_with_weight_zero():
    fed, seen = federation(*MIXED, cohort=6, padded=7), set()
    for t in range(12):
        plan = fed.plan(t, RANK, 0.05)
        dropped = fed.events(plan)["dropped"]
        seen |= set(dropped)
        assert sorted(plan.id[:6]) == list(range(6))
        np.testing.assert_array_equal(fed.drawn(plan), [True] * 6 + [False])
        np.testing.assert_array_equal(plan.weight == 0, np.isin(plan.id, [*dropped, 6]))
        np.testing.assert_array_equal(plan.batches.steps == 0, plan.weight == 0)
        np.testing.assert_array_equal(plan.rank[:6], RANK[plan.id[:6]])
    assert seen == set(range(6))


def test_faults_do_not_change_shapes_or_types():
    kinds = {
        tuple((np.shape(x), np.asarray(x).dtype) for x in jax.tree.leaves(plan_of(t, *faults)))
        for t in range(4)
        for faults in ((), MIXED, ALL_DROPPED)
    }
    assert len(kinds) == 1


def test_clients_chosen_for_scoring_have_no_faults():
    """Clients that are scored for their rank never drop out."""
    plan = federation(*ALL_DROPPED).plan(0, RANK, 0.05, ids=np.array([1, 4]))
    assert np.all(plan.weight[:2] > 0) and np.all(plan.batches.steps[:2] > 0)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("drop_out(probability=0.1)", "Unknown fault 'drop_out'; did you mean 'dropout'?"),
        ("dropout", "fault 'dropout' needs the option probability"),
        ("dropout(probability=1.5)", "needs probability from 0 to 1, got 1.5"),
        ("dropout(probability='often')", "probability is float, got 'often'"),
        ("stragglers(share=-0.1)", "needs share from 0 to 1, got -0.1"),
        ("stragglers(share=0.5, work=0)", "needs work above 0 and at most 1, got 0"),
        ("stragglers(share=0.5, work=1e999)", "needs work above 0 and at most 1, got inf"),
    ],
)
def test_invalid_faults_are_refused_in_one_sentence(spec, words):
    with pytest.raises(InputError) as caught:
        make_faults([spec])
    assert words in str(caught.value)


# ------------------------------------------------------------------------------------- every method


@kinds_of_method
def test_dropped_client_equals_an_absent_client(method):
    """For several rounds in a row, and in the program that all other clients use."""
    made = bag_rounds(method, "vmap")
    state, other = made.state(), made.state()
    dropped = 0
    for t in range(4):
        plan = plan_of(t, *MIXED, method=method)
        gone = plan.weight == 0
        dropped += int(gone[:COHORT].sum())
        absent = plan._replace(
            id=np.where(gone, len(SIZES), plan.id).astype(np.int32),
            rank=np.where(gone, 1, plan.rank).astype(np.int32),
        )
        state, seen = made.run(state, plan)
        other, _ = made.run(other, absent)
        assert_same_bits(problems.copy(state), problems.copy(other))
        assert not np.any(seen.rejected)
        np.testing.assert_array_equal(np.asarray(seen.rank)[gone], plan.rank[gone])
        np.testing.assert_array_equal(np.asarray(seen.examples) == 0, gone)
    assert dropped and problems.changed(problems.copy(state), made.begin)
    assert made.fn.compiled._cache_size() == 1


@kinds_of_method
def test_if_no_client_answers_the_state_is_unchanged(method):
    made = bag_rounds(method, "vmap")
    before, _ = made.run(made.state(), plan_of(0, method=method))
    before = problems.copy(before)
    after, seen = made.run(made.place(before), plan_of(1, *ALL_DROPPED, method=method))
    assert_same_bits(problems.copy(after), before)
    assert not np.any(seen.rejected) and not np.any(seen.examples)


@pytest.mark.parametrize("heads", ["average", "local", "frozen"])
@pytest.mark.parametrize("method", ["zero_padding", "fedsa_lora"])
def test_if_no_client_answers_heads_and_client_state_are_unchanged(method, heads):
    """The server's momentum, the clients' own heads and what a method keeps for them."""
    lora_spec = problems.STUB
    optimizer = None if method == "fedsa_lora" else optax.sgd(0.7, momentum=0.9)
    made = stub_rounds(
        "quadratic", heads=heads, method=methods.make(method, lora_spec), server_optimizer=optimizer
    )
    rank = np.full(len(SIZES), 2)
    state, _ = made.run(made.state(), federation().plan(0, rank, 0.3))
    before = problems.copy(state)
    after, _ = made.run(made.place(before), federation(*ALL_DROPPED).plan(1, rank, 0.3))
    assert_same_bits(problems.copy(after), before)


def careless():
    """A rule that forgets that no client may be left, and renames every rank."""
    plain = methods.make("zero_padding", problems.STUB)

    def aggregate(server, own, cohort, start, result):
        mean = jax.tree.map(lambda x: jnp.mean(x, axis=0) + 1, result)
        return methods.AggregateResult(server._replace(adapter=mean), own + 1, cohort.rank + 1)

    return dataclasses.replace(
        plain, aggregate=aggregate, init_clients=lambda count: jnp.zeros(count, jnp.int32)
    )


def test_method_cannot_change_state_of_dropped_clients():
    made = stub_rounds("quadratic", method=careless())
    after, seen = made.run(made.state(), stub_plan_of(0, *ALL_DROPPED))
    assert_same_bits(problems.copy(after), made.begin)
    np.testing.assert_array_equal(seen.rank, stub_plan_of(0, *ALL_DROPPED).rank)
    t = next(t for t in range(9) if 0 < np.sum(stub_plan_of(t, *MIXED).weight == 0) - 1 < COHORT)
    plan = stub_plan_of(t, *MIXED)
    after, seen = made.run(made.state(), plan)
    answered = plan.weight > 0
    np.testing.assert_array_equal(seen.rank, plan.rank + answered)
    visits = np.zeros(len(SIZES), int)
    visits[plan.id[answered]] = 1
    np.testing.assert_array_equal(after.clients.method, visits)


def test_weights_are_renormalised_over_present_clients():
    """The mean head is that of partial work, by examples: descent in closed form."""
    made, head = stub_rounds("quadratic"), np.zeros(3)
    state = made.state()
    for t in range(6):
        plan = stub_plan_of(t, *MIXED)
        state, _ = made.run(state, plan)
        heads = np.array([closed_form_rounds.descend(head, plan, k) for k in range(len(plan.id))])
        if plan.weight.any():
            head = np.average(heads, axis=0, weights=plan.weight)
        np.testing.assert_allclose(state.head["w"], head, rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------------------------- privacy, shapes


def test_present_clients_draw_independent_noise():
    """Each message carries its own noise, so the guarantee does not rest on others answering."""
    noisy = (closed_form_rounds.noise(),)
    made = stub_rounds("quadratic", heads="frozen", updates=noisy)
    plan = stub_plan_of(0)

    def sent_by(*places):
        weight = np.where(np.isin(np.arange(len(plan.id)), places), plan.weight, 0)
        state, _ = made.run(made.state(), plan._replace(weight=weight.astype(np.float32)))
        return np.asarray(state.server.adapter["layer"].b, np.float64)

    alone = [sent_by(k) for k in range(COHORT)]
    own = [plan.rank[k] for k in range(COHORT)]
    for one, rank in zip(alone, own, strict=True):
        assert np.std(one[:rank]) > 0.2  # multiplier 0.5 times norm 1
    for pair in ([0, 1], [1, 2]):
        want = np.average([alone[k] for k in pair], axis=0, weights=plan.weight[pair])
        np.testing.assert_allclose(sent_by(*pair), want, atol=1e-6)
    # What is reported is for a client that is drawn in every round and always answers.
    report = transforms.make_privacy_report(noisy, cohort=3, clients=6)
    assert (
        report(2)["epsilon"]
        >= report(2)["epsilon_if_cohorts_stay_secret"]
        > report(1)["epsilon_if_cohorts_stay_secret"]
    )


def wrong(change):
    """Zero padding, and then ``change`` of its outcome."""
    plain = methods.make("zero_padding", problems.STUB)
    aggregate = lambda *given: change(plain.aggregate(*given))  # noqa: E731
    return dataclasses.replace(plain, aggregate=aggregate)


def _longer(outcome):
    pair = outcome.server.adapter["layer"]
    longer = {"layer": pair._replace(b=jnp.concatenate([pair.b, pair.b]))}
    return outcome._replace(server=outcome.server._replace(adapter=longer))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_longer, "server/adapter/layer/b is float32[4,5] but must be float32[2,5]"),
        (
            lambda x: x._replace(server=x.server._replace(adapter={"other": 1.0})),
            "server/adapter/layer/a is missing; server/adapter/layer/b is missing; "
            "server/adapter/other is not expected",
        ),
        (lambda x: x._replace(rank=x.rank[:2]), "rank is int32[2] but must be int32[4]"),
        (
            lambda x: x._replace(rank=x.rank.astype(jnp.float32)),
            "rank is float32[4] but must be int32[4]",
        ),
        (lambda x: x._replace(clients=jnp.zeros(4)), "clients is not expected"),
    ],
)
def test_method_with_wrong_shapes_is_refused_with_paths(change, words):
    made = stub_rounds("quadratic", method=wrong(change))
    for attempt in (
        lambda: made.run(made.state(), stub_plan_of(0)),
        lambda: federated.check_method(wrong(change), made.begin, 4),
    ):
        with pytest.raises(InputError) as caught:
            attempt()
        assert words in str(caught.value)


def test_training_with_wrong_shapes_is_refused_with_paths():
    def train(base, data, clients, rate):
        adapter = jax.tree.map(lambda x: x[..., :1], clients.params.adapter)
        seen = jnp.zeros(clients.rank.shape)
        return clients.params._replace(adapter=adapter), closed_form_rounds.report(seen)

    method = methods.make("zero_padding", problems.STUB)
    fn = federated.compile_round(method, problems.Bound(train))
    made = stub_rounds("quadratic")
    with pytest.raises(InputError, match=r"returns: adapter/layer/a is float32\[4,3,1\] but"):
        fn(made.base, made.data, made.state(), stub_plan_of(0), jax.random.key(0))


def test_update_transform_with_wrong_shapes_is_refused_with_paths():
    def apply(start, trained, trainable, weight, key):
        return trained._replace(head={}), weight

    update = transforms.UpdateTransform(apply=apply, stage="client")
    made = stub_rounds("quadratic", updates=(update,))
    with pytest.raises(InputError, match="updates make of the clients' results: head/w is missing"):
        made.run(made.state(), stub_plan_of(0))


# ------------------------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """The config of a run on a very small model and two dozen texts, and what such runs share."""
    folder = tmp_path_factory.mktemp("small") / "good"
    valid.write(folder)
    config = configs.from_dict(valid.settings(folder) | {"lora": {}})
    return config, {"assets": build.load_assets(config), "programs": programs()}


@pytest.fixture
def run_with(small_run, tmp_path):
    """A run by clients of one class each."""
    config, shared = small_run
    federation = {
        "cohort": 3,
        "rounds": 4,
        "ranks": "tiers(ranks=[1, 2])",
        "partition": "shards(per_client=1)",
    }

    def play(*faults, method="zero_padding", **local):
        fed = dataclasses.replace(config.federation, **federation, method=method, faults=faults)
        own = dataclasses.replace(config.local, **{"batch": 2, "optimizer": "sgd"} | local)
        changed = dataclasses.replace(config, federation=fed, local=own)
        return fl.run(changed, out=tmp_path / "run", **shared)

    return play


def strict(out):
    """The metrics as any reader of JSON sees them, which has no NaN."""
    refuse = lambda word: pytest.fail(f"{word} is no JSON")  # noqa: E731
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_run_records_dropped_clients_and_traffic(run_with):
    result = run_with("dropout(probability=0.4)", "stragglers(share=0.5, work=0.5)")
    head = 4 * sum(x.size for x in jax.tree.leaves(result.state.head))
    size = 4 * result.spec.component_size
    for event in ("dropped", "stragglers"):
        assert any(record[event] for record in result.records)
    for record in result.records:
        assert not set(record["dropped"]) & set(record["stragglers"])
        # All ranks are as they began: the method does not change them.
        missing = record["down_bytes"] - record["up_bytes"]
        dropped = record["dropped"]
        assert missing == size * result.rank[dropped].sum() + head * len(dropped)
        clients = record["clients"]
        assert clients["id"] == sorted(clients["id"]) and len(clients["id"]) == 3
        assert sum(clients["up_bytes"]) == record["up_bytes"]
        assert sum(clients["down_bytes"]) == record["down_bytes"]
        nothing = [
            k for k, *rest in zip(*clients.values(), strict=True) if rest[:3] == [None, 0, 0]
        ]
        assert nothing == dropped
    assert strict(result.out) == result.records


@pytest.mark.slow
def test_stacked_adapter_holds_present_clients_only(run_with):
    """FLoRA: each of the three clients that were drawn receives all that was sent, and a head."""
    result = run_with("dropout(probability=0.4)", method="flora")
    head = 4 * sum(x.size for x in jax.tree.leaves(result.state.head))
    assert any(record["dropped"] for record in result.records)
    for record in result.records:
        stack = record["up_bytes"] - head * (3 - len(record["dropped"]))
        assert record["down_bytes"] == 3 * (stack + head)


def test_run_without_any_answering_client_completes(run_with):
    result = run_with(*ALL_DROPPED)
    for record in result.records:
        assert record["train_loss"] is None and record["up_bytes"] == record["examples"] == 0
        assert len(record["dropped"]) == 3 and record["down_bytes"] > 0
    assert len({record["loss"] for record in result.records}) == 1
    assert all(not np.any(pair.b) for pair in result.state.server.adapter.values())
    assert strict(result.out) == result.records


def test_diverging_run_finishes_and_reports_it(run_with):
    """The model is finite but too large: the next updates are not finite and are rejected."""
    result = run_with(learning_rate=1e16)
    assert any(record["rejected"] for record in result.records)
    assert strict(result.out) == result.records
    for leaf in jax.tree.leaves((result.state.server.adapter, result.state.head)):
        assert np.all(np.isfinite(leaf))


def test_overflowing_model_has_no_loss(small_run):
    config, shared = small_run
    made = build.build(config, shared["assets"], shared["programs"])
    state = made.begin().state
    assert made.evaluate(state)["loss"] > 0
    head = jax.tree.map(lambda x: jnp.full_like(x, 3e38), state.head)
    assert made.evaluate(state._replace(head=head))["loss"] is None
