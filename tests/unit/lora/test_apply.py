"""Adapters on a running model: attached from outside, folded, dropped out, vmapped."""

import contextlib
import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import module as linen_module

from fedjax_lora import InputError, lora, methods
from fedjax_lora.core.types import Adapter, Gain, LoRA
from tests._helpers import small_model
from tests._helpers.small_model import (
    INPUT,
    NET,
    PARAMS,
    TEMPLATE,
    R,
    adapted,
    plain,
    random_adapter,
)

# Two ways to the same sum are compared to the last digit: programs as users compile them.

SUBSETS = [s for r in range(1, R + 1) for s in itertools.combinations(range(R), r)]
SCALE = TEMPLATE.server_scale


def gain_of(components, scale: float = SCALE) -> Gain:
    chosen = jnp.isin(jnp.arange(R), jnp.asarray(components, jnp.int32))
    return lora.spread(TEMPLATE, jnp.where(chosen, jnp.float32(scale), 0.0))


def assert_same_sums(got, want) -> None:
    """Two programs round a sum differently: by units in the last place of its largest terms."""
    unit = np.finfo(np.float32).eps * float(np.max(np.abs(want)))
    np.testing.assert_allclose(got, want, rtol=0, atol=4 * unit)


def rest(components) -> list[int]:
    return [j for j in range(R) if j not in components]


for_clients = jax.jit(jax.vmap(adapted, (None, 0, 0, None)))


def loss(out: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sin(out))


# --------------------------------------------------------------------------------- select and fold


@pytest.mark.parametrize("chosen", SUBSETS)
def test_folding_other_modules_into_the_base_keeps_the_outputs(chosen: tuple):
    """``W + sum_{not K} + sum_K = W + a b`` for every K, up to K = everything (nothing folded).

    In the three ways it can be done: folded into a copy of the base, active but not trained, and
    as gains that bypass dropout.
    """
    adapter = random_adapter(TEMPLATE)
    everything = gain_of(range(R))
    want = adapted(PARAMS, adapter, everything, INPUT)
    folded = lora.merge(PARAMS, adapter, gain_of(rest(chosen)))
    np.testing.assert_allclose(
        adapted(folded, adapter, gain_of(chosen), INPUT), want, rtol=1e-5, atol=1e-5
    )
    fixed = drop(0.0, 0, gain_of(chosen), gain_of(rest(chosen)))
    assert_same_sums(fixed, want)
    if len(chosen) < R:
        cut = adapted(PARAMS, adapter, gain_of(chosen), INPUT)
        assert np.max(np.abs(cut - want)) > 1e-2  # truncating instead would not do


@jax.jit
@jax.grad
def gradient(adapter: Adapter, base: Any, gain: Gain) -> jax.Array:
    return loss(lora.apply(NET, base, adapter, gain, INPUT))


@pytest.mark.parametrize("chosen", [(0,), (2,), (1, 3), (0, 1, 2), (0, 1, 2, 3)])
def test_selected_modules_have_the_gradient_of_the_full_adapter(chosen: tuple):
    """With the others folded or frozen; the others' own gradient is not zero but masked."""
    adapter = random_adapter(TEMPLATE)
    folded = lora.merge(PARAMS, adapter, gain_of(rest(chosen)))
    whole = gradient(adapter, PARAMS, gain_of(range(R)))
    small = gradient(adapter, folded, gain_of(chosen))
    index = np.array(chosen)
    for path in whole:
        for w, s in (
            (whole[path].a[..., index], small[path].a[..., index]),
            (whole[path].b[..., index, :], small[path].b[..., index, :]),
        ):
            assert np.max(np.abs(w)) > 1e-2
            np.testing.assert_allclose(s, w, atol=2e-5 * float(np.max(np.abs(w))))
    inactive = np.array(rest(chosen), int)
    for path in small:  # modules in the base have no gradient at all, exactly
        assert not np.any(small[path].a[..., inactive])
        assert not np.any(small[path].b[..., inactive, :])


def test_clients_with_parallel_modules_start_from_the_global_model():
    """The method's own start, through the forward pass, for clients of any rank."""
    method = methods.make("fed_plora", TEMPLATE)
    server = method.init(random_adapter(TEMPLATE), {})
    cohort = methods.Cohort(
        id=jnp.arange(4),
        rank=jnp.array([1, 2, 3, 4]),
        weight=jnp.ones(4),
        scale=jnp.full(4, SCALE),
        round=jnp.asarray(0),
        key=jax.random.key(0),
    )
    start = jax.jit(method.broadcast)(server, (), cohort)
    outputs = for_clients(PARAMS, start.adapter, start.gain, INPUT)
    want = adapted(PARAMS, server.adapter, gain_of(range(R)), INPUT)
    for out in outputs:
        assert_same_sums(out, want)
    truncating = jax.jit(methods.make("masked_mean", TEMPLATE).broadcast)(server, (), cohort)
    outputs = for_clients(PARAMS, truncating.adapter, truncating.gain, INPUT)
    apart = [float(np.max(np.abs(out - want))) for out in outputs]
    assert min(apart[:3]) > 1e-2 and apart[3] < 1e-5


def test_stacked_factors_merged_into_the_base_give_equal_outputs_to_all():
    """Fresh adapters add exactly nothing to the merged base."""
    method = methods.make("flora", TEMPLATE)
    kernels = {target.path: PARAMS["head"]["kernel"] for target in TEMPLATE.targets[:1]}
    kernels |= {f"layers/{n}": PARAMS["layers"][n]["kernel"] for n in ("query", "value")}
    server = method.init(random_adapter(TEMPLATE), kernels)
    cohort = methods.Cohort(
        id=jnp.arange(4),
        rank=jnp.array([1, 2, 3, 4]),
        weight=jnp.array([1.0, 2.0, 1.0, 3.0]),
        scale=jnp.full(4, SCALE),
        round=jnp.asarray(0),
        key=jax.random.key(0),
    )
    broadcast = jax.jit(method.broadcast)
    start = broadcast(server, (), cohort)
    result = jax.tree.map(
        lambda x, m, d: x + np.where(m, d, np.float32(0)),
        *jax.device_get((start.adapter, start.trainable, random_adapter(TEMPLATE, 5, 4))),
    )
    after = jax.jit(method.aggregate)(server, (), cohort, start, result).server
    base = jax.tree.map(lambda x: x, PARAMS)
    base = base | {"head": base["head"] | {"kernel": after.kernels["head"]}}
    layers = {
        n: base["layers"][n] | {"kernel": after.kernels[f"layers/{n}"]} for n in ("query", "value")
    }
    base = base | {"layers": base["layers"] | layers}
    again = broadcast(after, (), cohort)
    outputs = for_clients(base, again.adapter, again.gain, INPUT)
    for out in outputs:
        assert_same_sums(out, plain(base, INPUT))
    mean = {
        path: np.average(delta, axis=0, weights=cohort.weight)
        for path, delta in jax.jit(lora.deltas)(result, start.gain).items()
    }
    want = server.kernels["layers/value"] + mean["layers/value"]
    np.testing.assert_allclose(base["layers"]["value"]["kernel"], want, atol=1e-5)


# ---------------------------------------------------------------------------------------- gradients


def test_inactive_components_are_a_fixed_point_of_training():
    """Zero in both factors and in the gain: their gradient is exactly zero without any mask."""
    adapter = small_model.cut(random_adapter(TEMPLATE), 2)
    gain = lora.uniform_gain(TEMPLATE, 2)
    for pair in gradient(adapter, PARAMS, gain).values():
        assert not np.any(pair.a[..., 2:]) and not np.any(pair.b[..., 2:, :])
        assert np.all(np.any(pair.a[..., :2] != 0, axis=-2))


def test_gradient_of_the_base_is_that_without_an_adapter():
    """Nothing of the interception leaks into the base's own computation."""
    adapter = lora.init(TEMPLATE, jax.random.key(0))
    gain = lora.uniform_gain(TEMPLATE)
    ours = jax.jit(jax.grad(lambda p: loss(lora.apply(NET, p, adapter, gain, INPUT))))(PARAMS)
    want = jax.jit(jax.grad(lambda p: loss(NET.apply({"params": p}, INPUT))))(PARAMS)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------ dropout


@functools.partial(jax.jit, static_argnums=0)
def drop(rate: float, seed: int, gain: Gain, fixed: Gain | None = None) -> jax.Array:
    adapter = random_adapter(TEMPLATE)
    rngs = {"dropout": jax.random.key(seed)}
    return lora.apply(NET, PARAMS, adapter, gain, INPUT, fixed=fixed, dropout=rate, rngs=rngs)


def test_dropout_does_not_affect_folded_modules():
    """Folded components act like frozen weights; only trained components have dropout."""
    none, everything = gain_of([]), gain_of(range(R))
    want = adapted(PARAMS, random_adapter(TEMPLATE), everything, INPUT)
    assert_same_sums(drop(0.5, 0, none, everything), want)
    assert_same_sums(drop(0.5, 1, none, everything), want)
    assert np.max(np.abs(drop(0.5, 0, everything) - want)) > 1e-2
    assert np.max(np.abs(drop(0.5, 0, gain_of([0]), gain_of([1, 2, 3])) - want)) > 1e-2
    np.testing.assert_array_equal(drop(0.0, 0, everything), drop(0.0, 5, everything))


def test_dropout_depends_on_the_key_and_leaves_the_base_path_alone():
    everything = gain_of(range(R))
    np.testing.assert_array_equal(drop(0.5, 0, everything), drop(0.5, 0, everything))
    assert np.any(drop(0.5, 0, everything) != drop(0.5, 1, everything))
    assert_same_sums(drop(0.5, 0, gain_of([])), plain(PARAMS, INPUT))


def test_dropout_preserves_the_expected_output():
    """Kept inputs are scaled up, so that the expected output of a linear layer is unchanged."""
    adapter = {"head": random_adapter(TEMPLATE)["head"]}
    gain = {"head": gain_of(range(R))["head"]}
    keys = jax.random.split(jax.random.key(0), 4000)
    run = jax.jit(
        jax.vmap(
            lambda key: lora.apply(
                NET, PARAMS, adapter, gain, INPUT[:2], dropout=0.25, rngs={"dropout": key}
            )
        )
    )
    outputs = np.asarray(run(keys), np.float64)
    want = np.asarray(lora.apply(NET, PARAMS, adapter, gain, INPUT[:2]))
    error = outputs.std(axis=0) / np.sqrt(len(keys))
    assert np.all(np.abs(outputs.mean(axis=0) - want) < 5 * error)
    # Inverted dropout of x: variance of x_i * Bernoulli(3/4) * 4/3 is x_i^2 / 3.
    hidden = NET.apply({"params": PARAMS}, INPUT[:2], capture_intermediates=True)[1]
    x = np.asarray(
        hidden["intermediates"]["layers"]["__call__"][0][0][-1]
    )  # the last layer's carry
    assert x.shape == (2, small_model.WIDTH)
    delta = np.asarray(lora.delta(adapter["head"], gain["head"]))
    np.testing.assert_allclose(outputs.var(axis=0), (x**2 / 3) @ delta**2, rtol=0.15)


def test_stacked_layers_have_independent_dropout():
    """The scan splits the key; one mask for all layers would correlate them."""
    keys = jax.random.split(jax.random.key(0), 24)

    @jax.jit
    def outputs(pair: LoRA) -> jax.Array:
        def run(key: jax.Array) -> jax.Array:
            adapter, gain = {"layers/value": pair}, {"layers/value": jnp.ones((3, 1))}
            rngs = {"dropout": key}
            return lora.apply(NET, PARAMS, adapter, gain, INPUT[:1], dropout=0.5, rngs=rngs)

        return jax.vmap(run)(keys)

    kept = []
    for layer in range(3):  # an adapter of this layer that reads its first input only
        a = jnp.zeros((3, 12, 1)).at[layer, 0].set(1.0)
        b = jnp.zeros((3, 1, 10)).at[layer].set(1.0)
        change = np.asarray(outputs(LoRA(a, b)) - plain(PARAMS, INPUT[:1])[None])
        kept.append(np.max(np.abs(change), axis=(1, 2)) > 1e-4)
    assert 0 < kept[0].sum() < 24
    assert np.any(kept[0] != kept[1]) and np.any(kept[1] != kept[2])


# ------------------------------------------------------------------------------- clients as an axis


def test_vmap_over_clients_equals_a_loop():
    """The base unbatched, adapters and gains with a leading client axis."""
    count = 5
    adapter = random_adapter(TEMPLATE, 3, count)
    gain = lora.uniform_gain(TEMPLATE, jnp.array([1, 4, 2, 3, 4], jnp.int32))
    x = jnp.asarray(np.random.default_rng(2).normal(size=(count, 6, 5)), jnp.float32)
    together = jax.jit(jax.vmap(adapted, (None, 0, 0, 0)))(PARAMS, adapter, gain, x)
    for n in range(count):
        alone = adapted(PARAMS, *jax.tree.map(lambda v, n=n: np.asarray(v)[n], (adapter, gain, x)))
        np.testing.assert_allclose(together[n], alone, rtol=1e-5, atol=1e-6)


def test_the_base_is_never_copied_per_client():
    """No intermediate of the vmapped program has a client axis on a kernel, forward or backward."""
    count = 17
    adapter = random_adapter(TEMPLATE, 3, count)
    gain = lora.uniform_gain(TEMPLATE, jnp.full(count, R, jnp.int32))
    x = jnp.zeros((count, 6, 5))

    def train(params, adapter, gain, x):
        return jax.grad(lambda a: loss(lora.apply(NET, params, a, gain, x)))(adapter)

    program = jax.make_jaxpr(jax.vmap(train, (None, 0, 0, 0)))(PARAMS, adapter, gain, x)
    kernels = {leaf.shape[-2:] for leaf in jax.tree.leaves(PARAMS) if leaf.ndim > 1}
    shapes = set(all_shapes(program.jaxpr))
    assert any(shape[:1] == (count,) for shape in shapes)
    copies = [s for s in shapes if count in s and s[-2:] in kernels | {k[::-1] for k in kernels}]
    assert copies == []


def all_shapes(jaxpr) -> list[tuple]:
    shapes = []
    for equation in jaxpr.eqns:
        shapes += [v.aval.shape for v in equation.outvars]
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    shapes += all_shapes(inner)
    return shapes


def test_changing_ranks_or_gains_does_not_retrace():
    traces = []

    @jax.jit
    def run(adapter, gain, x):
        traces.append(0)
        return lora.apply(NET, PARAMS, adapter, gain, x)

    for rank in range(1, R + 1):
        run(random_adapter(TEMPLATE, rank), lora.uniform_gain(TEMPLATE, rank), INPUT)
        run(random_adapter(TEMPLATE, rank), gain_of([rank - 1]), INPUT)
    assert len(traces) == 1


# ------------------------------------------------------------------------------------------ details


def test_only_targeted_layers_are_changed():
    """An adapter on one layer of the stack acts there and nowhere else."""
    where = small_model.spec(layers=[1], targets="query$")
    adapter = random_adapter(where)
    gain = lora.uniform_gain(where)
    merged = lora.merge(PARAMS, adapter, gain)
    np.testing.assert_allclose(
        adapted(PARAMS, adapter, gain, INPUT), plain(merged, INPUT), rtol=1e-5, atol=1e-6
    )
    changed = merged["layers"]["query"]["kernel"] != PARAMS["layers"]["query"]["kernel"]
    assert np.any(changed[1]) and not np.any(changed[0]) and not np.any(changed[2])


def test_activations_keep_their_dtype():
    """A bfloat16 model with float32 adapters computes and returns bfloat16."""
    net = small_model.Net(dtype=jnp.bfloat16)
    adapter, gain = random_adapter(TEMPLATE), gain_of(range(R))
    run = lambda a: lora.apply(net, PARAMS, a, gain, INPUT)  # noqa: E731
    out = jax.jit(run)(adapter)
    assert out.dtype == jnp.bfloat16
    want = adapted(PARAMS, adapter, gain, INPUT)
    np.testing.assert_allclose(
        np.asarray(out, np.float32), want, atol=0.05 * float(np.max(np.abs(want)))
    )
    grad = jax.eval_shape(jax.grad(lambda a: loss(run(a).astype(jnp.float32))), adapter)
    assert {x.dtype for x in jax.tree.leaves(grad)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("leading", [(), (6,), (2, 3, 5)])
def test_low_rank_term_accepts_any_leading_axes(leading: tuple):
    a, b = random_adapter(TEMPLATE)["head"]
    x = np.random.default_rng(0).normal(size=(*leading, 12))
    gain = np.array([1.0, 0.0, 2.0, 0.5], np.float32)
    out = jax.jit(lora.low_rank_term)(x.astype(np.float32), a, b, gain)
    want = x @ (np.asarray(a, np.float64) * gain) @ np.asarray(b, np.float64)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)


def test_adapter_of_another_model_is_refused(key):
    """Interception would find no layer at the path, and training would silently do nothing."""
    layer = nn.Dense(3)
    x = jnp.ones((2, 4))
    params = {"dense": layer.init(key, x)["params"]}
    pair = LoRA(jnp.ones((4, 1)), jnp.ones((1, 3)))
    with pytest.raises(InputError, match="danse has no kernel in the base"):
        lora.apply(layer, params, {"danse": pair}, {"danse": jnp.ones(1)}, x)


def test_leftover_flax_interceptor_is_removed(monkeypatch):
    """As under ``python -O``, where Flax's own removal, an assertion, is not executed."""

    @contextlib.contextmanager
    def leaking(interceptor):
        linen_module._global_interceptor_stack.push(interceptor)
        yield

    adapter, gain = random_adapter(TEMPLATE), lora.uniform_gain(TEMPLATE)
    want = lora.apply(NET, PARAMS, adapter, gain, INPUT)
    monkeypatch.setattr(nn, "intercept_methods", leaking)
    for _ in range(2):
        got = lora.apply(NET, PARAMS, adapter, gain, INPUT)
        np.testing.assert_array_equal(got, want)
    assert len(linen_module._global_interceptor_stack) == 0
