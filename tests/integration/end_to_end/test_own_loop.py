"""A custom training loop: every method against a plain loop over clients with merged weights."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lora as fl
from experiments.examples import own_loop
from fedjax_lora import lora
from fedjax_lora.core.types import Adapter, LoRA
from fedjax_lora.federated import cohort_of
from fedjax_lora.methods import Method
from tests._helpers import problems
from tests._helpers.problems import differences

ROUNDS = 2
TOLERANCE = 2e-4
"""Of parameters near 1 after two rounds of ten Adam steps, in another order of summation."""

OPTIMIZER = optax.adam(own_loop.RATE, eps=1e-4)

some_methods = pytest.mark.parametrize(
    "name", problems.one_of_each_kind({*problems.KINDS, "hetlora"})
)
"""By default one of each kind, and one with a penalty. Every
method has its oracle in `test_oracles`."""


@pytest.fixture(autouse=True)
def as_users_have_it():
    """The example is a user's code: with JAX's own promotion of types and shapes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@functools.cache
def loop(name: str) -> Any:
    params, state, losses = own_loop.federate(name, rounds=ROUNDS)
    return jax.device_get(params), jax.device_get(state.server), losses


@functools.cache
def first_params() -> Any:
    data, _ = own_loop.make_data()
    return own_loop.Net().init(jax.random.key(0), data["x"][:1])["params"]


def merged(params: Any, adapter: Adapter, gain: Any, coefficients: Any) -> Any:
    """The network with one client's product added to its kernels."""
    layers = {path: dict(layer) for path, layer in params.items()}
    for path, (a, b) in adapter.items():
        size = gain[path] * coefficients[path] if coefficients else gain[path]
        layers[path]["kernel"] = layers[path]["kernel"] + (a * size) @ b
    return layers


@functools.cache
def training_step(rates: Any, penalty: Any, project: Any) -> Any:
    """One step of Adam as `fl.methods.Method` describes it, compiled once for all clients."""

    def loss(values: Any, params: Any, gain: Any, rank: jax.Array, batch: Any) -> jax.Array:
        full = merged(params, values["adapter"], gain, values["coefficients"])
        each = own_loop.loss_fn(
            lambda x: own_loop.Net().apply({"params": full}, x), batch, jax.random.key(0)
        )
        return jnp.mean(each) + (penalty(values["adapter"], rank) if penalty else 0.0)

    @jax.jit
    def step(values: Any, moments: Any, free: Any, *given: Any) -> Any:
        grads = jax.tree.map(lambda g, m: g * m, jax.grad(loss)(values, *given), free)
        steps, moments = OPTIMIZER.update(grads, moments)
        steps = {
            "adapter": {
                p: LoRA(rates.a * x, rates.b * y) for p, (x, y) in steps["adapter"].items()
            },
            "coefficients": jax.tree.map(lambda x: rates.coefficients * x, steps["coefficients"]),
        }
        new = jax.tree.map(lambda x, s, m: x + s * m, values, steps, free)
        if project is not None:
            new["adapter"] = jax.tree.map(
                lambda x, y, m: jnp.where(m, x, y),
                project(new["adapter"]),
                new["adapter"],
                free["adapter"],
            )
        return new, moments

    return step


def trained_client(method: Method, params: Any, start: Any, rank: int, batches: Any) -> Any:
    """One client's local training; returns its factors."""
    step = training_step(method.rates, method.penalty, method.project)
    values, moments = start["values"], OPTIMIZER.init(start["values"])
    for batch in batches:
        values, moments = step(
            values, moments, start["trainable"], params, start["gain"], np.int32(rank), batch
        )
    values = jax.device_get(values)
    return {
        path: LoRA(a * values["coefficients"][path], b) if values["coefficients"] else LoRA(a, b)
        for path, (a, b) in values["adapter"].items()
    }


def trained_cohort(method: Method, params: Any, init: Any, plan: Any, data: Any) -> Adapter:
    """All clients, one after another; stacked."""
    init, results = jax.device_get(init), []
    for k, rank in enumerate(plan.rank):
        own = jax.tree.map(lambda x, k=k: x[k], init._replace(trainable=()))
        mask = jax.tree.map(lambda x, k=k: x[k] if x.shape[0] > 1 else x[0], init.trainable)
        learns = {p: np.any(m.a, axis=-2) | np.any(m.b, axis=-1) for p, m in mask.items()}
        start = {
            "values": {"adapter": own.adapter, "coefficients": own.coefficients},
            "trainable": {
                "adapter": mask,
                "coefficients": learns if own.coefficients else own.coefficients,
            },
            "gain": own.gain,
        }
        if own.trained_coefficients:
            start["trainable"]["coefficients"] = own.trained_coefficients
        batches = [jax.tree.map(lambda x, i=i: x[i], data) for i in plan.batches.index[k]]
        results.append(trained_client(method, params, start, int(rank), batches))
    return jax.tree.map(lambda *xs: jnp.asarray(np.stack(xs)), *results)


def plain_loop(method: Method, name: str) -> Any:
    """`own_loop.federate` again: nothing but the method's functions and the user's network."""
    (data, members), rng, key = own_loop.make_data(), np.random.default_rng(1), jax.random.key(0)
    params, count = first_params(), own_loop.CLIENTS
    sizes = np.array([len(rows) for rows in members])
    ranks = own_loop.RANKS if fl.methods.takes_mixed_ranks(name) else np.full(count, 8)
    ranks = np.array(ranks)
    kernels = {path: params[path]["kernel"] for path in params}
    server = method.init(fl.lora.init(method.spec, jax.random.fold_in(key, 1)), kernels)
    clients = method.init_clients(count)
    for t in range(ROUNDS):
        ids = rng.choice(count, size=own_loop.COHORT, replace=False)
        shape = (own_loop.STEPS, own_loop.BATCH)
        rows = np.stack([rng.choice(members[i], shape) for i in ids])
        plan = fl.federated.cohort(ids, ranks[ids], sizes[ids], rows, round=t, data=data).plan
        traced = jax.tree.map(jnp.asarray, plan)
        cohort = cohort_of(method.spec, traced, traced.weight, key)
        own = jax.tree.map(lambda x, ids=ids: x[ids], clients)
        full = lora.with_kernels(params, server.kernels)
        init = method.broadcast(server, own, cohort)
        if method.select is not None:
            probed = trained_cohort(method, full, init, plan, data)
            init = method.select(cohort.round, cohort.rank, init, probed)
        result = trained_cohort(method, full, init, plan, data)
        after = method.aggregate(server, own, cohort, init, result)
        server, ranks[ids] = after.server, np.asarray(after.rank)
        clients = jax.tree.map(lambda x, y, ids=ids: x.at[ids].set(y), clients, after.clients)
    full = lora.with_kernels(params, server.kernels)
    gain = fl.lora.uniform_gain(method.spec)
    return jax.device_get(merged(full, server.adapter, gain, ())), jax.device_get(server)


def method_of(name: str) -> Method:
    return fl.methods.make(name, fl.lora.make_spec(first_params(), targets="hidden|out", rank=8))


def apart(one: Any, other: Any) -> float:
    return max(differences(one, other).values())


@some_methods
def test_custom_loop_equals_a_loop_over_clients(name: str):
    params, _, losses = loop(name)
    want, _ = plain_loop(method_of(name), name)
    assert apart(params, want) < TOLERANCE
    assert apart(params, jax.device_get(first_params())) > 100 * TOLERANCE
    assert np.all(np.isfinite(losses))


@pytest.mark.parametrize(
    ("name", "forgotten"),
    [
        ("hetlora", {"penalty": None}),
        ("lora_a2", {"select": None}),
        ("lora_a2", {"rates": fl.methods.Method.rates}),
        ("fedrora", {"project": None}),
    ],
)
def test_missing_method_hook_is_detected(name: str, forgotten: dict[str, Any]):
    """The comparison above tells a loop that leaves out one hook of a method."""
    without, _ = plain_loop(dataclasses.replace(method_of(name), **forgotten), name)
    assert apart(loop(name)[0], without) > 2 * TOLERANCE


@pytest.mark.parametrize("name", ["flora", pytest.param("fedex_lora", marks=pytest.mark.slow)])
def test_kernels_changed_by_a_method_are_part_of_the_model(name: str):
    params, server, _ = loop(name)
    for path, kernel in server.kernels.items():
        assert np.abs(kernel - np.asarray(first_params()[path]["kernel"])).max() > 10 * TOLERANCE
        if name == "flora":  # nothing else is in the adapter
            np.testing.assert_array_equal(params[path]["kernel"], kernel)


def test_ranks_lowered_by_a_method_stay_low():
    """HetLoRA's clients prune; the loop gives the same ranks every round."""
    data, members = own_loop.make_data()
    method = fl.methods.hetlora(method_of("hetlora").spec, gamma=0.5, penalty=1.0)
    train = fl.federated.local_training(own_loop.Net(), own_loop.loss_fn, optax.sgd(0.1))
    step = fl.federated.make_round(method, train)
    params = first_params()
    state = fl.federated.init(method, params, jax.random.key(0), num_clients=own_loop.CLIENTS)
    state = state._replace(
        server=state.server._replace(adapter=jax.tree.map(jnp.ones_like, state.server.adapter))
    )
    rows = np.stack([members[i][:8].reshape(1, 8) for i in range(2)])
    seen = []
    for t in range(2):
        cohort = fl.federated.cohort([0, 1], 8, 1.0, rows, round=t, data=data)
        state, metrics = step(params, state, cohort)
        seen.append(np.asarray(metrics.rank).tolist())
    assert seen == [[4, 4], [2, 2]]
    assert np.asarray(state.loop.most).tolist() == [2, 2, *[8] * (own_loop.CLIENTS - 2)]
