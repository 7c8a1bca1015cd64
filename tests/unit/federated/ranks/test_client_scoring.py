"""Scores of each client's model after local training, on the validation examples."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import federated, lora, methods
from fedjax_lora.core.types import ClientParams
from fedjax_lora.evaluation import metrics
from fedjax_lora.evaluation import predict as prediction
from fedjax_lora.federated.objectives import value_score
from fedjax_lora.federated.ranks import client_scoring
from tests._helpers import problems
from tests._helpers.problems import COHORT, PADDED, WIDTH, bag_rounds

VALIDATION = problems.texts(seed=9)
BUCKETS = (8, WIDTH)
TOLERANCE = 2e-6
"""Of losses near 1.5, summed in float32 here and in float64 there; measured: at most 1.3e-7."""


def objective() -> federated.Objective:
    return federated.text_classification(problems.bag().module, BUCKETS)


@functools.cache
def score_fn(method: str, mode: str) -> Any:
    mesh = federated.client_mesh(problems.DEVICES) if mode == "sharded" else None
    clients_per_step = 2 if mode == "vmap" else 1
    execution: Any = federated.Execution(mode=mode, clients_per_step=clients_per_step, mesh=mesh)
    client_update = federated.make_client_update(
        methods.make(method, problems.bag().spec), problems.training("bag"), execution=execution
    )
    rows = client_scoring.bucket_by_length(np.asarray(VALIDATION.length), BUCKETS, batch=5)
    validate = client_scoring.make_validate_fn(objective(), rows)
    return client_scoring.make_score_fn(client_update, validate, execution)


def seen(method: str, mode: str, plan: federated.Plan, state: Any = None, **other: Any):
    made = bag_rounds(method, mode)
    state = made.state() if state is None else state
    base, data = other.get("base", made.base), other.get("data", made.data)
    validation = jax.device_put(VALIDATION, jax.tree.leaves(data)[0].sharding)
    fn = score_fn(method, mode)
    return fn(base, data, validation, state, plan, jax.random.key(0))


def plan_of(t: int = 0, rate: float = 0.05) -> federated.Plan:
    return problems.round_federation().plan(t, problems.RANK, rate)


def test_client_score_is_that_of_the_model_it_would_send():
    """A round in which no other client counts leaves its adapter and head on the server."""
    made, plan, spec = bag_rounds("zero_padding", "vmap"), plan_of(), problems.bag().spec
    got = seen("zero_padding", "vmap", plan)
    predict = prediction.make_predict(objective(), batch=7)
    label = np.asarray(VALIDATION.label)
    losses = []
    for place in range(COHORT):
        alone = (np.arange(PADDED) == place).astype(np.float32)
        state, _ = made.run(made.state(), plan._replace(weight=alone))
        gain = lora.uniform_gain(spec, int(plan.rank[place]))
        trained = ClientParams(state.server.adapter, state.head)
        output = predict(prediction.AdaptedParams(made.base, trained, gain), VALIDATION)
        losses.append(metrics.mean_loss(label, output))
        assert got.accuracy[place] == pytest.approx(metrics.accuracy(label, output), abs=1e-6)
    np.testing.assert_allclose(got.loss[:COHORT], losses, rtol=0, atol=TOLERANCE)
    assert np.ptp(losses) > 100 * TOLERANCE


@pytest.mark.parametrize("method", [pytest.param("zero_padding", marks=pytest.mark.slow), "flora"])
def test_execution_modes_give_the_same_scores(method):
    """Also where the method has changed the base."""
    plan = plan_of(1)
    states = {mode: bag_rounds(method, mode) for mode in ("loop", "vmap", "sharded")}
    found = {}
    for mode, made in states.items():
        after, _ = made.run(made.state(), plan_of(0))
        found[mode] = problems.copy(seen(method, mode, plan, after))
    for mode in ("vmap", "sharded"):
        for one, other in zip(found[mode], found["loop"], strict=True):
            np.testing.assert_allclose(one[:COHORT], other[:COHORT], rtol=0, atol=TOLERANCE)
    before = seen(method, "loop", plan)
    assert np.max(np.abs(before.loss - found["loop"].loss)) > 100 * TOLERANCE


@pytest.mark.parametrize("mode", ["vmap", "sharded"])
def test_scoring_compiles_once_and_donates_nothing(mode):
    state = bag_rounds("zero_padding", mode).state()
    for t in range(3):
        plan = plan_of(t, 0.01 * (t + 1))
        seen("zero_padding", mode, plan._replace(rank=np.roll(plan.rank, t)), state)
    assert score_fn("zero_padding", mode)._cache_size() == 1
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_non_finite_client_has_infinite_loss_and_changes_no_other_score():
    made, plan = bag_rounds("zero_padding", "vmap"), plan_of()
    good = seen("zero_padding", "vmap", plan)
    rows = problems.members()[plan.id[1]]
    data = made.data._replace(ids=made.data.ids.at[rows, 0].set(problems.BROKEN))
    table = made.base["words"]["embedding"].at[problems.BROKEN].set(jnp.nan)
    base = {**made.base, "words": {"embedding": table}}
    got = seen("zero_padding", "vmap", plan, base=base, data=data)
    assert np.isfinite(got.loss[:COHORT]).tolist() == [True, False, True]
    np.testing.assert_array_equal(got.loss[::2], good.loss[::2])
    np.testing.assert_array_equal(got.accuracy[::2], good.accuracy[::2])


class Pairs(NamedTuple):
    x: Any
    label: Any


def test_regression_is_scored_by_squared_error():
    rng = np.random.default_rng(0)
    data = Pairs(*(rng.normal(size=7).astype(np.float32) for _ in range(2)))
    take = lambda data, index, length: jax.tree.map(lambda x: jnp.asarray(x)[index], data)  # noqa: E731
    line = lambda base, trained, gain, batch: trained.head["w"][None] * batch.x[:, None]  # noqa: E731
    rows = client_scoring.bucket_by_length(np.ones(7, int), (1,), batch=3)
    score = lambda output, batch: value_score(output, batch.label)  # noqa: E731
    validate = client_scoring.make_validate_fn(federated.Objective(line, line, take, score), rows)
    slope = np.array([[0.5], [-2.0]], np.float32)
    made = problems.stub_clients(slope, problems.batches_of([[0]], [[0]]))
    got = validate({}, data, made, jnp.float32(0))
    want = np.mean((slope.astype(float) * data.x - data.label) ** 2, axis=1)
    np.testing.assert_allclose(got.loss, want, rtol=1e-6)
    np.testing.assert_array_equal(got.accuracy, [0, 0])


@pytest.mark.parametrize("batch", [1, 4, 50])
def test_length_buckets_hold_every_example_once(batch):
    length = np.array([8, 1, 16, 9, 3, 8, 2])
    rows = client_scoring.bucket_by_length(length, (8, 12, 20), batch=batch)
    used = np.concatenate([part.index[part.valid] for part in rows])
    assert sorted(used) == list(range(7))
    for part in rows:
        assert length[part.index].max() <= part.size
        steps, rows_of_a_step = part.index.shape
        assert rows_of_a_step <= batch and steps == -(-part.valid.sum() // batch)
        assert (~part.valid).sum() < steps, "less than a row to spare in each batch"
    assert [part.size for part in rows] == [8, 12, 20]


def test_length_bucket_without_examples_is_left_out():
    rows = client_scoring.bucket_by_length(np.array([3, 20]), (8, 12, 20), batch=2)
    assert [part.size for part in rows] == [8, 20]
