"""A padded cohort of mixed ranks against each client on its own: ordinary adapters, optax, a loop.

The reference shares nothing with the library but the model and the batches. Its adapters have the
client's true rank and are multiplied into the kernels, its batches are not padded, and the
components a client does not train are folded into its base, as a real client would do.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests._helpers import problems
from tests._helpers.problems import R, assert_close, cohort_fn, make_clients, plan_for

RATE = 0.01
SCALE = 6.0 / R  # alpha / R, for every client
DECAY, EPS, CLIP = 0.1, 1e-4, 1.0  # what `problems.training` asks for by name


def set_kernel(params: dict, path: str, kernel: Any) -> dict:
    """A copy with another kernel at a path."""
    name, _, rest = path.partition("/")
    inner = set_kernel(params[name], rest, kernel) if rest else {**params[name], "kernel": kernel}
    return {**params, name: inner}


def get_kernel(params: dict, path: str) -> Any:
    return functools.reduce(lambda node, name: node[name], path.split("/"), params)["kernel"]


def merged(params: dict, adapter: dict) -> dict:
    for path, (a, b) in adapter.items():
        kernel = get_kernel(params, path) + SCALE * jnp.einsum("lir,lro->lio", a, b)
        params = set_kernel(params, path, kernel)
    return params


@functools.cache
def step_fn(problem: str) -> Any:
    module = getattr(problems, problem)().module
    adamw = optax.adamw(RATE, weight_decay=DECAY, eps=EPS)
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), adamw)

    def loss(trained: dict, base: dict, rows: dict) -> jax.Array:
        params = {**merged(base, trained["adapter"]), "head": trained["head"]}
        logits = module.apply({"params": params}, rows["ids"], rows["mask"], rows["types"])
        return -jnp.mean(jax.nn.log_softmax(logits)[np.arange(len(rows["label"])), rows["label"]])

    @jax.jit
    def step(trained: dict, state: Any, base: dict, rows: dict) -> tuple:
        value, grads = jax.value_and_grad(loss)(trained, base, rows)
        with jax.numpy_dtype_promotion("standard"):  # optax is written for it
            updates, state = optimizer.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state, value

    return optimizer.init, step


def train_alone(problem: str, client: dict, base: dict, batches: list[np.ndarray]) -> tuple:
    data = jax.tree.map(np.asarray, getattr(problems, problem)().data)
    init, step = step_fn(problem)
    state, total, count = init(client), 0.0, 0
    for rows in batches:
        mask = np.arange(problems.WIDTH) < data.length[rows, None]
        given = {"ids": data.ids[rows], "mask": mask, "types": data.types[rows]}
        client, state, value = step(client, state, base, {**given, "label": data.label[rows]})
        total, count = total + len(rows) * float(value), count + len(rows)
    return client, total / count


def unpadded(batches: Any, k: int) -> list[np.ndarray]:
    return [batches.index[k, s][batches.valid[k, s]] for s in range(int(batches.steps[k]))]


@pytest.mark.parametrize(
    ("problem", "sizes", "folded"),
    [
        ("bag", (1, 5, 9), False),
        ("bag", (1, 5, 9), True),
        pytest.param("encoder", (12,), False, marks=pytest.mark.slow),
        pytest.param("encoder", (12,), True, marks=pytest.mark.slow),
    ],
)
def test_padded_cohort_equals_clients_trained_separately(problem, sizes, folded):
    made = getattr(problems, problem)()
    plan = plan_for(made, rate=RATE)
    count = len(plan.id)
    trains = np.arange(R) < plan.rank[:, None]
    if folded:
        rng = np.random.default_rng(0)
        trains = rng.permuted(trains, axis=1)
        assert any((row != np.sort(row)[::-1]).any() for row in trains)  # not all are prefixes
    start = make_clients(made, plan, trainable=trains if folded else None)
    fn = cohort_fn(problem, mode="vmap", clients_per_step=count)
    result, report = jax.device_get(fn(made.base, made.data, start, plan.rate))

    seen = []
    for k in range(count):
        batches = unpadded(plan.batches, k)
        examples = sum(len(rows) for rows in batches)
        if examples not in sizes:
            continue
        seen.append(examples)
        own, fixed = np.flatnonzero(trains[k]), np.flatnonzero(~trains[k])
        assert len(own) == plan.rank[k]
        pick = lambda tree, chosen, k=k: {  # noqa: E731
            path: (np.asarray(pair.a[k])[..., chosen], np.asarray(pair.b[k])[..., chosen, :])
            for path, pair in tree.items()
        }
        base = merged(made.base, pick(start.params.adapter, fixed)) if folded else made.base
        client = {
            "adapter": pick(start.params.adapter, own),
            "head": jax.tree.map(lambda x, k=k: x[k], start.params.head),
        }
        want, loss = train_alone(problem, client, base, batches)
        assert problems.changed(want, client)
        assert_close(pick(result.adapter, own), want["adapter"])
        assert_close(jax.tree.map(lambda x, k=k: x[k], result.head), want["head"])
        assert report.loss[k] == pytest.approx(loss, rel=1e-6)
        assert report.examples[k] == examples
        begun = pick(start.params.adapter, fixed)
        if not folded:
            assert all(not x.any() for pair in begun.values() for x in pair)
        problems.assert_same_bits(pick(result.adapter, fixed), begun)
    assert sorted(seen) == sorted(sizes)
