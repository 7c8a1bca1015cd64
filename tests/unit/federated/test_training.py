"""Local training: the effect of each step on each client, mostly in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_lora.core.types import BatchShape, ClientParams, LoRA
from fedjax_lora.data.batch_shapes import padded_shapes, row_buckets
from fedjax_lora.federated import ClientHooks, LocalTraining, optimizers
from fedjax_lora.federated.training import split_gain
from tests._helpers import problems
from tests._helpers.problems import (
    STUB,
    batches_of,
    cohort_fn,
    make_clients,
    plan_for,
    stub_clients,
)

POINTS = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
BEGIN = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
# A client with one example, a full step and a short one, three steps, and an absent client.
WORK = batches_of([[3]], [[0, 1], [2]], [[4, 5], [6, 7], [8]], [])

FACTORS = {
    path: LoRA(*(np.random.default_rng(2).normal(size=(2, *x.shape)).astype(np.float32) for x in p))
    for path, p in STUB.shapes().items()
}


@functools.cache
def descend():
    """Gradient descent on the quadratic, compiled."""
    return jax.jit(LocalTraining(problems.quadratic(), optax.sgd(1.0)))


def by_hand(begin, batches, rate):
    """Gradient descent on half the squared distance, one client: parameters and mean loss."""
    w, total, count = begin.astype(np.float64), 0.0, 0
    for s in range(int(batches.steps)):
        x = POINTS[batches.index[s][batches.valid[s]]].astype(np.float64)
        total += 0.5 * np.sum((w - x) ** 2)
        count += len(x)
        w = w - rate * (w - x.mean(axis=0))
    return w, total / max(count, 1), count


@pytest.mark.parametrize("rate", [0.1, 0.7])
def test_every_client_takes_its_own_number_of_steps(rate):
    got, report = descend()((), POINTS, stub_clients(BEGIN, WORK), jnp.float32(rate))
    for k in range(4):
        w, loss, count = by_hand(BEGIN[k], jax.tree.map(lambda x, k=k: x[k], WORK), rate)
        np.testing.assert_allclose(got.head["w"][k], w, rtol=2e-6, atol=1e-7)
        assert report.loss[k] == pytest.approx(loss, rel=1e-6)
        assert report.examples[k] == count
    assert report.examples.tolist() == [1, 3, 5, 0]


def test_client_keeps_its_parameters_after_its_last_step():
    """Also while other clients train on further batches."""
    fewer = WORK._replace(steps=np.array([0, 1, 3, 0], np.int32))
    got, report = descend()((), POINTS, stub_clients(BEGIN, fewer), jnp.float32(0.3))
    for k in range(4):
        w, loss, _ = by_hand(BEGIN[k], jax.tree.map(lambda x, k=k: x[k], fewer), 0.3)
        np.testing.assert_allclose(got.head["w"][k], w, rtol=2e-6, atol=1e-7)
        assert report.loss[k] == pytest.approx(loss, rel=1e-6)
    assert report.examples.tolist() == [0, 2, 5, 0]
    np.testing.assert_array_equal(np.asarray(got.head["w"])[[0, 3]], BEGIN[[0, 3]])


def test_client_keeps_its_optimizer_state_after_its_last_step():
    """Momentum would carry a client on after its last step."""
    train = jax.jit(LocalTraining(problems.quadratic(), optax.sgd(1.0, momentum=0.9)))
    got, _ = train((), POINTS, stub_clients(BEGIN, WORK), jnp.float32(0.5))
    want = BEGIN[0] - 0.5 * (BEGIN[0] - POINTS[3])
    np.testing.assert_allclose(got.head["w"][0], want, rtol=2e-6)


def test_learning_rate_change_does_not_recompile():
    descend.cache_clear()
    fn, start = descend(), stub_clients(BEGIN, WORK)
    moved = []
    for rate in (0.0, 0.01, 0.02):
        got, _ = fn((), POINTS, start, jnp.float32(rate))
        moved.append(np.asarray(got.head["w"][0] - BEGIN[0]))
    np.testing.assert_array_equal(moved[0], 0)
    np.testing.assert_allclose(moved[2], 2 * moved[1], rtol=1e-4)  # one step: linear in the rate
    assert fn._cache_size() == 1


def test_non_finite_example_affects_only_its_client():
    """Rows that fill up a batch are never those of another client."""
    fed = problems.federation(problems.texts(), cohort=len(problems.SIZES))
    plan = fed.plan(0, problems.RANK, 0.1)
    data = np.random.default_rng(0).normal(size=(sum(problems.SIZES), 3)).astype(np.float32)
    begin = np.zeros((len(plan.id), 3))
    start = stub_clients(begin, plan.batches)
    for owner, rows in enumerate(fed.members):
        broken = data.copy()
        broken[rows[0]] = np.nan
        got, _ = descend()((), broken, start, jnp.float32(0.1))
        sound = np.isfinite(got.head["w"]).all(axis=1)
        assert plan.id[~sound].tolist() == [owner]


# ------------------------------------------------------------------------------ gradients and hooks


def step_of_linear(optimizer, **who):
    """One step on the inner product with ones everywhere, so that all gradients are 1."""
    train = jax.jit(LocalTraining(problems.linear(), optimizer))
    begin = np.zeros((2, 3))
    start = stub_clients(begin, batches_of([[0]], [[1]]), adapter=FACTORS, **who)
    gradient = jax.tree.map(lambda x: jnp.ones(x.shape[1:]), start.params)
    got, _ = train(gradient, POINTS, start, jnp.float32(0.5))
    return jax.tree.map(lambda x, y: np.asarray(x - y), got, start.params)


@pytest.mark.parametrize(
    ("who", "numbers"),
    [
        ({}, 3 * 2 + 2 * 5 + 3),
        ({"train_head": False}, 3 * 2 + 2 * 5),
        ({"train_adapter": False}, 3),
    ],
)
def test_gradient_norm_is_clipped_over_trained_parameters(who, numbers):
    moved = step_of_linear(optimizers.optimizer("sgd", clip=0.2), **who)
    norm = numbers**0.5
    for part, trained in (("adapter", "train_adapter"), ("head", "train_head")):
        for leaf in jax.tree.leaves(getattr(moved, part)):
            want = -0.5 * 0.2 / norm if who.get(trained, True) else 0.0
            np.testing.assert_allclose(leaf, want, rtol=1e-5, atol=0 if want == 0 else 1e-6)


def test_small_gradient_is_not_clipped():
    moved = step_of_linear(optimizers.optimizer("sgd", clip=100.0))
    for leaf in jax.tree.leaves(moved):
        np.testing.assert_allclose(leaf, -0.5, rtol=1e-6)


def test_penalty_changes_the_gradient_but_not_the_reported_loss():
    """``rank / 2 * ||a||^2`` shrinks ``a`` by ``rate * rank`` and leaves the rest alone."""

    def penalty(adapter, rank):
        return 0.5 * rank.astype(jnp.float32) * jnp.sum(jnp.square(adapter["layer"].a))

    train = jax.jit(
        LocalTraining(problems.quadratic(), optax.sgd(1.0), hooks=ClientHooks(penalty=penalty))
    )
    work = batches_of([[0]], [[1]])
    start = stub_clients(BEGIN[:2], work, adapter=FACTORS)._replace(rank=jnp.array([1, 2]))
    got, report = train((), POINTS, start, jnp.float32(0.1))
    plain, plain_report = descend()((), POINTS, start, jnp.float32(0.1))
    shrunk = FACTORS["layer"].a * (1 - 0.1 * np.array([1, 2])).reshape(2, 1, 1)
    np.testing.assert_allclose(got.adapter["layer"].a, shrunk, rtol=1e-5)
    np.testing.assert_array_equal(got.adapter["layer"].b, FACTORS["layer"].b)
    problems.assert_same_bits(got.head, plain.head)
    np.testing.assert_allclose(report.loss, plain_report.loss, rtol=1e-6)


# -------------------------------------------------------------------------------- who is left alone


@pytest.mark.parametrize("spec", ["adamw(weight_decay=0.5)", "sgd(momentum=0.9)", "lion"])
def test_frozen_parameters_are_bitwise_unchanged(spec):
    """Even if its gradient is not zero and the optimizer would decay it."""
    train = jax.jit(LocalTraining(problems.linear(), optimizers.optimizer(spec)))
    start = stub_clients(BEGIN[:2], batches_of([[0], [1]], [[2], [3]]), adapter=FACTORS)
    mask = jnp.array([[True, False], [False, True]])  # one component of each client
    trainable = {"layer": LoRA(mask[:, None, :], mask[:, :, None])}
    start = start._replace(trainable=start.trainable._replace(adapter=trainable))
    gradient = jax.tree.map(lambda x: jnp.ones(x.shape[1:]), start.params)
    got, _ = train(gradient, POINTS, start, jnp.float32(0.1))
    a, b = got.adapter["layer"]
    for k, j in ((0, 0), (1, 1)):
        np.testing.assert_array_equal(a[k, :, 1 - j], FACTORS["layer"].a[k, :, 1 - j])
        np.testing.assert_array_equal(b[k, 1 - j], FACTORS["layer"].b[k, 1 - j])
        assert np.all(a[k, :, j] != FACTORS["layer"].a[k, :, j])
        assert np.all(b[k, j] != FACTORS["layer"].b[k, j])


def test_inactive_components_stay_exactly_zero():
    made = problems.encoder()
    plan = plan_for(made)
    start = make_clients(made, plan)
    fn = cohort_fn("encoder", mode="vmap", clients_per_step=len(plan.id))
    result, _ = fn(made.base, made.data, start, plan.rate)
    for pair in result.adapter.values():
        for k, r in enumerate(plan.rank):
            assert np.all(np.asarray(pair.a[k, ..., r:]) == 0)
            assert np.all(np.asarray(pair.b[k, ..., r:, :]) == 0)
            assert np.all(np.asarray(pair.a[k, ..., :r]) != 0)


def test_frozen_head_and_folded_components_are_bitwise_unchanged():
    made = problems.bag()
    plan = plan_for(made)
    trains = np.random.default_rng(0).permuted(np.arange(4) < plan.rank[:, None], axis=1)
    start = make_clients(made, plan, trainable=trains, train_head=False)
    fn = cohort_fn("bag", mode="vmap", clients_per_step=len(plan.id))
    result, _ = fn(made.base, made.data, start, plan.rate)
    problems.assert_same_bits(result.head, start.params.head)
    old, new = start.params.adapter["layers/query"], result.adapter["layers/query"]
    kept_a = np.all(np.asarray(old.a == new.a), axis=(1, 2))  # [c, R]
    kept_b = np.all(np.asarray(old.b == new.b), axis=(1, 3))
    np.testing.assert_array_equal(kept_a, ~trains)
    np.testing.assert_array_equal(kept_b, ~trains)


# --------------------------------------------------------------------------------- shapes of a step

SHAPES = (
    BatchShape(2, 8, 12),
    BatchShape(2, 16, 32),
    BatchShape(4, 16, 20),
    BatchShape(4, 16, 40),
    BatchShape(4, 32, 128),
)


def shapes_seen(batches, count):
    """Per client and step: the shape that the wave's step was computed with."""
    train = jax.jit(LocalTraining(problems.shape_seen(), optax.sgd(1.0), shapes=SHAPES))
    seen = []
    for s in range(batches.index.shape[1]):
        # A client's mean loss over its first s + 1 steps, times its examples, minus that before.
        upto = batches._replace(steps=np.minimum(batches.steps, s + 1))
        _, report = train((), POINTS, stub_clients(np.zeros((count, 3)), upto), jnp.float32(0))
        seen.append(np.asarray(report.loss * report.examples))
    return np.diff(np.array(seen), axis=0, prepend=0).T


def test_each_step_uses_the_smallest_shape_that_fits_all_clients():
    work = batches_of(
        [[0, 1, 2, 3], [4], [5, 6]],
        [[0], [1, 2]],
        size=4,
        longest=[[5, 3, 7], [9, 4, 20]],  # the third step of the second client does not happen
        tokens=[[18, 3, 12], [9, 13, 20]],
    )
    # First step: 4 rows and 18 tokens (first client), 9 in a text (second). Second: 2 rows, and 13
    # tokens (second client) are one too many for the first shape. Third: the second client is done
    # and its 20 tokens count no more.
    rows = np.array([[4, 1, 2], [1, 2, 0]])
    shape = [problems.shape_number(SHAPES[n]) for n in (2, 1, 0)]
    np.testing.assert_allclose(shapes_seen(work, 2), rows * np.array(shape), rtol=1e-5)


def test_texts_beyond_all_shapes_are_truncated_to_the_last():
    work = batches_of([[0, 1]], size=4, steps=1, longest=40)
    want = 2 * problems.shape_number(SHAPES[-1])
    np.testing.assert_allclose(shapes_seen(work, 1), [[want]], rtol=1e-5)


UNPADDED = (
    BatchShape(2, 8, 12), BatchShape(2, problems.WIDTH, 32), BatchShape(4, problems.WIDTH, 64),
)  # fmt: skip


@pytest.mark.parametrize(
    ("problem", "options"),
    [
        pytest.param(
            "encoder",
            {"shapes": padded_shapes([problems.BATCH], (8, problems.WIDTH))},
            marks=pytest.mark.slow,
        ),
        ("encoder", {"shapes": UNPADDED, "unpadded": True}),
        ("bag", {"shapes": padded_shapes(row_buckets(problems.BATCH), (problems.WIDTH,))}),
    ],
)
def test_batch_shapes_do_not_change_the_result(problem, options):
    made = getattr(problems, problem)()
    plan = plan_for(made)
    start, count = make_clients(made, plan), len(plan.id)
    want = cohort_fn(problem, mode="vmap", clients_per_step=count)(
        made.base, made.data, start, plan.rate
    )
    # One client at a time, so that short texts and half-empty batches do get their small shapes.
    steps = np.arange(plan.batches.index.shape[1]) < plan.batches.steps[:, None]
    assert plan.batches.longest[steps].min() <= 8 < plan.batches.longest[steps].max()
    assert set(plan.batches.valid.sum(axis=2)[steps]) >= {1, problems.BATCH}
    got = cohort_fn(problem, mode="vmap", clients_per_step=1, **options)(
        made.base, made.data, start, plan.rate
    )
    problems.assert_close(got, want)


# ------------------------------------------------------------------------------------------ dropout


def test_gain_is_split_between_trained_and_fixed_components():
    gain = {"layer": jnp.array([[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]])}
    mask = jnp.array([[True, False, False], [False, True, True]])
    for a, b in ((True, True), (True, False), (False, True)):
        trainable = {"layer": LoRA(mask[:, None, :] & a, mask[:, :, None] & b)}
        trained, fixed = split_gain(gain, ClientParams(trainable, {}))
        np.testing.assert_array_equal(trained["layer"], [[1, 0, 0], [0, 4, 5]])
        np.testing.assert_array_equal(fixed["layer"], [[0, 2, 0], [3, 0, 0]])


def bag_with_dropout(rate, trains, mode="vmap"):
    made = problems.bag()
    plan = plan_for(made)
    start = make_clients(made, plan, trainable=trains)
    clients_per_step = len(plan.id) if mode == "vmap" else 1
    fn = cohort_fn(
        "bag",
        mode=mode,
        clients_per_step=clients_per_step,
        **({"lora_dropout": rate} if rate else {}),
    )
    return fn(made.base, made.data, start, plan.rate)


def test_dropout_does_not_affect_folded_components():
    nothing = np.zeros((len(problems.SIZES), problems.R), bool)
    problems.assert_close(bag_with_dropout(0.5, nothing), bag_with_dropout(0, nothing))


def test_dropout_affects_trained_components():
    everything = np.ones((len(problems.SIZES), problems.R), bool)
    dropped, whole = bag_with_dropout(0.5, everything), bag_with_dropout(0, everything)
    assert np.all(np.abs(np.asarray(dropped[1].loss - whole[1].loss)) > 1e-3)


def test_dropout_does_not_depend_on_the_mode():
    trains = np.random.default_rng(0).random((len(problems.SIZES), problems.R)) < 0.5
    problems.assert_close(
        bag_with_dropout(0.5, trains, mode="vmap"), bag_with_dropout(0.5, trains, mode="loop")
    )


def test_every_client_and_step_has_its_own_random_key():
    """The gradient is a draw from the key, so that what a client moved by shows its keys."""
    train = jax.jit(LocalTraining(problems.noise(), optax.sgd(1.0)))
    draws = []
    for steps in (1, 2, 3):
        work = batches_of(*[[[0]] * steps] * 4)
        got, _ = train((), POINTS, stub_clients(np.zeros((4, 3)), work), jnp.float32(1))
        draws.append(-np.asarray(got.head["w"]))
    each = np.diff(np.array(draws), axis=0, prepend=0).reshape(12, 3)  # [s * c, d]
    distance = np.abs(each[:, None] - each[None]).max(axis=2)
    assert np.all(distance[~np.eye(12, dtype=bool)] > 1e-2)
    # The same key gives the same draw, wherever the client is.
    order = np.array([2, 0, 3, 1])
    start = stub_clients(np.zeros((4, 3)), batches_of(*[[[0]] * 3] * 4))
    moved, _ = train((), POINTS, start._replace(key=start.key[order]), jnp.float32(1))
    np.testing.assert_allclose(-moved.head["w"], draws[-1][order], atol=1e-6)
