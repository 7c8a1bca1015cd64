"""Trained coefficients: a padded cohort against each client on its own, and whole rounds."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_lora import federated, lora, methods
from fedjax_lora.core import trees
from fedjax_lora.core.types import ClientParams, LoRA, Rates
from fedjax_lora.federated import optimizers, transforms
from fedjax_lora.federated.client_update import cohort_of
from fedjax_lora.federated.remote import trained_from
from fedjax_lora.methods.fedrora import directions
from tests._helpers import problems
from tests._helpers.problems import R, assert_close, assert_same_bits, make_clients, plan_for

RATE, TIMES, SCALE = 0.01, 7.0, 6.0 / R
PATH = "layers/query"


def begin(plan: Any) -> federated.Clients:
    """Unit directions and random coefficients at each client's first `r` components."""
    made = make_clients(problems.bag(), plan)
    rng = np.random.default_rng(3)
    masks = lora.masked_components(made.trainable.adapter)
    draw = lambda m: jnp.where(m, jnp.asarray(rng.normal(size=m.shape), jnp.float32), 0)  # noqa: E731
    sizes = {path: draw(mask) for path, mask in masks.items()}
    params = made.params._replace(adapter=directions(made.params.adapter), coefficients=sizes)
    return made._replace(params=params, trainable=made.trainable._replace(coefficients=masks))


def alone(client: dict, batches: list[np.ndarray]) -> dict:
    """Steps of AdamW on a merged kernel at the client's true rank, lengths set to 1 after each."""
    problem = problems.bag()
    data = jax.tree.map(np.asarray, problem.data)
    rates = {"a": RATE, "b": RATE, "s": TIMES * RATE, "head": RATE}
    adamw = {name: optax.adamw(rate, weight_decay=0.1, eps=1e-4) for name, rate in rates.items()}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.multi_transform(adamw, {k: k for k in rates})
    )

    def loss(x: dict, rows: dict) -> jax.Array:
        layer = problem.base["layers"]["query"]
        added = SCALE * jnp.einsum("lir,lr,lro->lio", x["a"], x["s"], x["b"])
        query = {**layer, "kernel": layer["kernel"] + added}
        params = {**problem.base, "layers": {"query": query}, "head": x["head"]}
        logits = problem.module.apply({"params": params}, rows["ids"], rows["mask"], rows["ids"])
        return -jnp.mean(jax.nn.log_softmax(logits)[np.arange(len(rows["label"])), rows["label"]])

    @jax.jit
    def step(client: dict, state: Any, rows: dict) -> tuple[dict, Any]:
        updates, state = optimizer.update(jax.grad(loss)(client, rows), state, client)
        client = optax.apply_updates(client, updates)
        a, b = client["a"], client["b"]
        unit_a = a / jnp.sqrt(jnp.sum(a * a, axis=1, keepdims=True))
        unit_b = b / jnp.sqrt(jnp.sum(b * b, axis=2, keepdims=True))
        return client | {"a": unit_a, "b": unit_b}, state

    with jax.numpy_dtype_promotion("standard"):  # optax is written for it
        state = jax.jit(optimizer.init)(client)
        for rows in batches:
            mask = np.arange(problems.WIDTH) < data.length[rows, None]
            given = {"ids": data.ids[rows], "mask": mask, "label": data.label[rows]}
            client, state = step(client, state, given)
    return client


def own(params: ClientParams, k: int, r: int) -> dict:
    """What client `k` trains, at its true rank."""
    a, b = params.adapter[PATH]
    return {
        "a": np.asarray(a[k])[..., :r],
        "b": np.asarray(b[k])[..., :r, :],
        "s": np.asarray(params.coefficients[PATH][k])[..., :r],
        "head": jax.tree.map(lambda x: np.asarray(x[k]), params.head),
    }


def test_padded_cohort_equals_clients_trained_separately():
    """Both factors, coefficients at a rate of their own, and the head; padding stays zero."""
    problem = problems.bag()
    plan = plan_for(problem, rate=RATE)
    start = begin(plan)
    fn = problems.cohort_fn(
        "bag",
        mode="vmap",
        clients_per_step=len(plan.id),
        rates=Rates(coefficients=TIMES),
        project=directions,
    )
    result, _ = jax.device_get(fn(problem.base, problem.data, start, plan.rate))
    for k in range(len(plan.id)):
        r = int(plan.rank[k])
        batches = plan.batches
        seen = [batches.index[k, t][batches.valid[k, t]] for t in range(int(batches.steps[k]))]
        if sum(map(len, seen)) not in (5, 12):
            continue  # two batches, one of them short, and three of one shape: few to compile
        want = alone(own(start.params, k, r), seen)
        assert problems.changed(want, own(start.params, k, r))
        assert_close(own(result, k, r), want)
        a, b = result.adapter[PATH]
        np.testing.assert_allclose(np.linalg.norm(a[k], axis=-2)[:, :r], 1, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(b[k], axis=-1)[:, :r], 1, atol=1e-6)
        assert not a[k][..., r:].any() and not b[k][..., r:, :].any()
        assert not result.coefficients[PATH][k][..., r:].any()


def test_frozen_parameters_are_not_projected():
    """Active but frozen components are not normalised: they stay bitwise equal."""
    problem = problems.bag()
    plan = plan_for(problem, rate=RATE)
    start = make_clients(problem, plan, trainable=np.arange(R) < plan.rank[:, None])
    fn = problems.cohort_fn("bag", mode="vmap", clients_per_step=len(plan.id), project=directions)
    result, _ = fn(problem.base, problem.data, start, plan.rate)
    frozen = jax.tree.map(
        lambda x, m: np.where(m, 0, x), start.params.adapter, start.trainable.adapter
    )
    assert any(x.any() for x in jax.tree.leaves(frozen))
    after = jax.tree.map(lambda x, m: np.where(m, 0, x), result.adapter, start.trainable.adapter)
    assert_same_bits(after, frozen)


# ------------------------------------------------------------------------------------- whole rounds


def rounds_of(method: str, *updates: str) -> tuple[Any, Any]:
    """A compiled round with what the method asks of training, and its first state."""
    problem = problems.bag()
    made = methods.make(method, problem.spec)
    train = federated.LocalTraining(
        federated.text_classification(problem.module, (problems.WIDTH,)),
        optimizers.optimizer("sgd"),
    )
    fn = federated.compile_round(made, train, updates=transforms.make_transforms(updates, made))
    kernels = trees.flat(problem.base)
    state = federated.init_state(
        made,
        problems.random_adapter(problem.spec, 7),
        {s.path: kernels[f"{s.path}/kernel"] for s in problem.spec.targets},
        problem.head,
        clients=len(problems.SIZES),
        heads="average",
    )
    return fn, problems.copy(state)


@functools.cache
def play(method: str, *updates: str) -> tuple[Any, Any, Any]:
    """The state after a round, the first state, and the plan."""
    fn, first = rounds_of(method, *updates)
    problem = problems.bag()
    plan = problems.round_federation().plan(0, problems.ranks_for(method), RATE)
    state, _ = fn(problem.base, problem.data, jax.device_put(first), plan, jax.random.key(0))
    return problems.copy(state), first, plan


def test_clients_outside_the_cohort_keep_their_state():
    state, first, plan = play("fedrora")
    drawn = np.isin(np.arange(len(problems.SIZES)), plan.id)
    assert drawn.any() and not drawn.all()
    np.testing.assert_array_equal(state.clients.method.known, drawn)
    at = lambda tree: jax.tree.map(lambda x: x[~drawn], tree)  # noqa: E731
    assert_same_bits(at(state.clients), at(first.clients))


def test_noise_is_added_only_to_sent_parameters():
    """FedSA-LoRA's clients keep the `b` that they trained, whatever is done to their `a`."""
    plain, first, _ = play("fedsa_lora")
    noisy, _, _ = play("fedsa_lora", "gaussian_noise(multiplier=1.0, norm=100.0)")
    assert problems.changed(plain.clients, first.clients)
    assert_same_bits(noisy.clients, plain.clients)
    a = lambda state: {path: pair.a for path, pair in state.server.adapter.items()}  # noqa: E731
    assert problems.changed(a(noisy), a(plain))


def core_by_hand(params: ClientParams, k: int, moves: np.ndarray, batches: list[np.ndarray]) -> Any:
    """Steps of gradient descent on a merged kernel: a client's core and head alone are trained."""
    problem = problems.bag()
    data = jax.tree.map(np.asarray, problem.data)
    a, b = (jnp.asarray(x[k]) for x in params.adapter[PATH])
    take = lambda x: jnp.asarray(x[k])  # noqa: E731
    own = {"core": take(params.coefficients[PATH]), "head": jax.tree.map(take, params.head)}

    @jax.jit
    def gradient(own: dict, rows: dict) -> dict:
        def loss(own: dict) -> jax.Array:
            layer, core = problem.base["layers"]["query"], own["core"]
            first = jnp.einsum("lip,lpq->liq", a[..., :2], core[:, :2])
            second = jnp.einsum("lip,lpq->liq", a[..., 2:], core[:, 2:])
            added = SCALE * jnp.concatenate([first, second], axis=-1) @ b
            query = {**layer, "kernel": layer["kernel"] + added}
            full = {**problem.base, "layers": {"query": query}, "head": own["head"]}
            logits = problem.module.apply({"params": full}, rows["ids"], rows["mask"], rows["ids"])
            right = jax.nn.log_softmax(logits)[np.arange(len(rows["label"])), rows["label"]]
            return -jnp.mean(right)

        return jax.grad(loss)(own)

    for rows in batches:
        mask = np.arange(problems.WIDTH) < data.length[rows, None]
        given = {"ids": data.ids[rows], "mask": mask, "label": data.label[rows]}
        steps = gradient(own, given)
        own["core"] = own["core"] - RATE * jnp.where(moves, steps["core"], 0)
        own["head"] = jax.tree.map(lambda x, g: x - RATE * g, own["head"], steps["head"])
    return own


def test_clients_train_the_cores_of_their_heads_and_nothing_else():
    """Two blocks of two rows: every client against gradient descent on a merged kernel."""
    problem, plan = problems.bag(), plan_for(problems.bag(), rate=RATE)
    method = methods.make("ravan(heads=2)", problem.spec)
    server = method.init(problems.random_adapter(problem.spec, 7), {})
    cohort = cohort_of(problem.spec, plan, plan.weight, jax.random.key(0))
    init = method.broadcast(server, (), cohort)
    made = make_clients(problem, plan)
    params, trains = trained_from(init, made.params.head, made.trainable.head)
    start = made._replace(params=params, gain=init.gain, trainable=trains)
    fn = problems.cohort_fn(
        "bag", mode="vmap", clients_per_step=len(plan.id), optimizer="sgd", clip=None
    )
    result, _ = jax.device_get(fn(problem.base, problem.data, start, plan.rate))
    assert_same_bits(result.adapter, problems.copy(params.adapter))
    rows = np.asarray(trains.coefficients[PATH])
    assert [int(x[0].sum()) for x in rows] == [2 * -(-r // 2) for r in plan.rank.tolist()]
    for k in range(len(plan.id)):
        batches = plan.batches
        seen = [batches.index[k, t][batches.valid[k, t]] for t in range(int(batches.steps[k]))]
        if sum(map(len, seen)) != 12:
            continue  # one shape of batches: few to compile
        want = core_by_hand(params, k, rows[k], seen)
        mine = {
            "core": result.coefficients[PATH][k],
            "head": jax.tree.map(lambda x, k=k: x[k], result.head),
        }
        assert problems.changed(mine["core"], params.coefficients[PATH][k])
        assert_close(mine, want)


@pytest.mark.parametrize("text", ["int8", "bfloat16"])
def test_coefficients_are_quantized_with_one_scale_per_layer(text: str):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    sizes = draw(3, 2, R) * jnp.asarray([1.0, 100.0])[None, :, None]
    mask = jnp.arange(R)[None, None] < jnp.asarray([1, R, 2])[:, None, None]
    mask = jnp.broadcast_to(mask, sizes.shape)
    trained = ClientParams({"x": LoRA(draw(3, 2, 5, R), draw(3, 2, R, 6))}, {}, {"x": sizes})
    factors = LoRA(jnp.ones((3, 2, 1, R), bool), jnp.ones((3, 2, R, 1), bool))
    trainable = ClientParams({"x": factors}, {})
    update = transforms.make_transforms([text], methods.make("fedit", problems.bag().spec))
    got, _ = transforms.apply_transforms(
        update,
        jax.tree.map(jnp.zeros_like, trained),
        trained,
        trainable._replace(coefficients={"x": mask}),
        jnp.ones(3),
        jnp.arange(3),
        jax.random.key(0),
    )
    before, after = np.asarray(sizes), np.asarray(got.coefficients["x"])
    np.testing.assert_array_equal(after[~mask], before[~mask])
    for client in range(3):
        for layer in range(2):
            own = np.asarray(mask)[client, layer]
            x, y = before[client, layer, own], after[client, layer, own]
            step = np.abs(x).max() / 127 if text == "int8" else np.abs(x) / 128
            assert np.all(np.abs(x - y) < 1.001 * step)
            if text == "int8":
                np.testing.assert_allclose(y / step, np.round(y / step), atol=1e-3)
