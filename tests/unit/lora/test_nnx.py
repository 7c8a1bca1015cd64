"""Adapted NNX modules compute what their merged parameters compute, with one base for all."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fedjax_lora import InputError, federated, lora, methods
from fedjax_lora.core.types import Adapter, Gain

WIDTH, HEADS, WORDS, RANK = 8, 2, 11, 2
IDS = jax.random.randint(jax.random.key(5), (3, 6), 0, WORDS)


class Block(nnx.Module):
    """Attention and a feed-forward layer."""

    def __init__(self, rngs: nnx.Rngs):
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 12, rngs=rngs)
        self.down = nnx.Einsum("ntf,fd->ntd", (12, WIDTH), (WIDTH,), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(x)
        return x + self.down(jnp.tanh(self.up(x)))


class Transformer(nnx.Module):
    """A language model: its layers in a list, or one block that is scanned."""

    def __init__(self, rngs: nnx.Rngs, *, scanned: bool = False, remat: bool = False):
        self.scanned, self.remat = scanned, remat
        self.layers: Any
        self.embed = nnx.Embed(WORDS, WIDTH, rngs=rngs)
        if scanned:
            make = nnx.split_rngs(splits=2)(nnx.vmap(Block))
            self.layers = make(rngs)
        else:
            self.layers = nnx.List([Block(rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.LinearGeneral(WIDTH, (2, 3), rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.embed(ids)
        step = lambda block, x: block(x)  # noqa: E731
        step = nnx.remat(step) if self.remat else step
        if self.scanned:
            run = nnx.scan(
                lambda x, block: step(block, x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
            )
            x = run(x, self.layers)
        else:
            for block in self.layers:
                x = step(block, x)
        return self.head(self.norm(x))


def adapt(module: nnx.Module, targets: Any, **options: Any) -> tuple:
    """The pure function, its parameters, a random adapter and its gain."""
    model, params = lora.nnx.split(module)
    spec = lora.make_spec(params, targets=targets, rank=RANK, **options)
    rng = np.random.default_rng(0)
    values = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.4, x.dtype), spec.shapes()
    )
    return model, params, values, lora.uniform_gain(spec)


def assert_close(got, want):
    """To 1e-5 of the largest entry, or of 1: what cancels in an entry leaves its rounding error."""
    want = np.asarray(want)
    atol = 1e-5 * max(1.0, np.max(np.abs(want), initial=0.0))
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def check_equals_merged(module: nnx.Module, x: jax.Array, targets: Any, **options: Any) -> None:
    """Outputs and gradients of the factors and of the base, compiled; see `assert_close`."""
    model, params, adapter, gain = adapt(module, targets, **options)

    def adapted(params: Any, adapter: Adapter) -> jax.Array:
        return model(params, adapter, gain, x)

    def merged(params: Any, adapter: Adapter) -> jax.Array:
        return model.merge(lora.merge(params, adapter, gain))(x)

    def compiled(f: Callable[[Any, Adapter], jax.Array]) -> Any:
        """One program for the gradients and the outputs."""

        def loss(params: Any, adapter: Adapter) -> Any:
            outputs = f(params, adapter)
            return jnp.sum(jnp.sin(outputs)), outputs

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, adapter)

    (ours, got), (right, want) = compiled(adapted), compiled(merged)
    gradients = [ours, right]
    assert float(np.max(np.abs(want - module(x)))) > 1e-2
    assert_close(got, want)
    for ours, right in zip(*map(jax.tree.leaves, gradients), strict=True):
        assert_close(ours, right)
    assert all(np.any(x) for x in jax.tree.leaves(gradients[0][1]))


EVERYTHING = "attention|up|down|head"


@pytest.mark.parametrize(
    ("scanned", "remat"),
    [
        pytest.param(False, False, id="list-stored"),
        pytest.param(False, True, id="list-recomputed", marks=pytest.mark.slow),
        pytest.param(True, False, id="scan-stored", marks=pytest.mark.slow),
        pytest.param(True, True, id="scan-recomputed"),
    ],
)
def test_adapted_nnx_transformer_equals_merged_parameters(scanned: bool, remat: bool):
    module = Transformer(nnx.Rngs(0), scanned=scanned, remat=remat)
    check_equals_merged(module, IDS, EVERYTHING)


def test_nnx_targets_have_paths_stacks_and_sizes():
    shapes = {}
    for scanned in (False, True):
        _, params = lora.nnx.split(Transformer(nnx.Rngs(0), scanned=scanned))
        spec = lora.make_spec(params, targets=EVERYTHING, rank=RANK)
        for s in spec.targets:
            shapes[s.path] = (s.stack, s.inputs, s.outputs)
    assert shapes["layers/0/attention/query"] == ((), WIDTH, WIDTH)
    assert shapes["layers/1/attention/out"] == ((), WIDTH, WIDTH)
    assert shapes["layers/attention/out"] == ((2,), WIDTH, WIDTH)
    assert shapes["layers/down"] == ((2,), 12, WIDTH) and shapes["head"] == ((), WIDTH, 6)


def test_nnx_module_is_not_changed():
    module = Transformer(nnx.Rngs(0))
    before, classes = module(IDS), [type(x) for _, x in nnx.iter_modules(module)]
    model, params, adapter, gain = adapt(module, EVERYTHING)
    assert np.any(model(params, adapter, gain, IDS) != before)
    np.testing.assert_array_equal(module(IDS), before)
    np.testing.assert_array_equal(model.merge(params)(IDS), before)
    assert [type(x) for _, x in nnx.iter_modules(module)] == classes


# ------------------------------------------------------------------------------- clients as an axis


def shapes_of(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """The shape of every array that a program makes."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars)
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from shapes_of(inner)


@pytest.mark.parametrize("merged", [False, True])
def test_the_base_is_never_copied_per_client(merged: bool):
    """No array has the shape of a kernel with a client axis, forward or backward."""
    count = 17
    model, params, adapter, gain = adapt(Transformer(nnx.Rngs(0)), EVERYTHING)
    clients = jax.tree.map(lambda x: jnp.stack([x] * count), (adapter, gain))

    def loss(adapter: Adapter, gain: Gain) -> jax.Array:
        if merged:
            return jnp.sum(model.merge(lora.merge(params, adapter, gain))(IDS))
        return jnp.sum(model(params, adapter, gain, IDS))

    program = jax.make_jaxpr(jax.vmap(jax.grad(loss)))(*clients)
    kernels = {x.shape for x in jax.tree.leaves(params) if x.ndim > 1 and x.shape[0] != WORDS}
    kernels |= {shape[::-1] for shape in kernels}
    copies = [s for s in shapes_of(program.jaxpr) if s[:1] == (count,) and s[1:] in kernels]
    assert bool(copies) == merged


def test_vmap_over_clients_equals_a_loop():
    model, params, adapter, _ = adapt(Transformer(nnx.Rngs(0)), EVERYTHING)
    spec = lora.make_spec(params, targets=EVERYTHING, rank=RANK)
    clients = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), adapter)
    gains = lora.uniform_gain(spec, jnp.array([1, 2]))
    together = jax.jit(jax.vmap(lambda a, g: model(params, a, g, IDS)))(clients, gains)
    for n in range(2):
        alone = model(params, *jax.tree.map(lambda x, n=n: x[n], (clients, gains)), IDS)
        np.testing.assert_allclose(together[n], alone, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------- special structures


class Activated(nnx.Linear):
    """A layer that computes something else than its base class."""

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        return jnp.tanh(super().__call__(inputs, out_sharding))


class Tied(nnx.Module):
    """A kernel that two layers use, one of them transposed."""

    def __init__(self, rngs: nnx.Rngs):
        self.encoder = nnx.Linear(WIDTH, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.encoder(x)) @ self.encoder.kernel[...].T


class Shared(nnx.Module):
    """A layer under two names, called twice."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = self.second = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(jnp.tanh(self.first(x)))


X = jax.random.normal(jax.random.key(1), (4, WIDTH))


@pytest.mark.parametrize(
    ("module", "targets"),
    [(Activated(WIDTH, 5, rngs=nnx.Rngs(0)), "layers"), (Tied(nnx.Rngs(0)), "encoder")],
)
def test_kernels_used_outside_of_nnx_layers_equal_merged_parameters(
    module: nnx.Module, targets: str
):
    whole = nnx.Sequential(module) if targets == "layers" else module
    check_equals_merged(whole, X, targets)


def test_shared_layer_has_one_adapter():
    module = Shared(nnx.Rngs(0))
    assert len(adapt(module, "first|second")[2]) == 1
    check_equals_merged(module, X, "first|second")


class Spare(nnx.Module):
    """A layer that is not called, and a convolution."""

    def __init__(self, rngs: nnx.Rngs):
        self.used, self.spare = nnx.Linear(WIDTH, 4, rngs=rngs), nnx.Linear(WIDTH, 4, rngs=rngs)
        self.filter = nnx.Conv(4, 4, (3,), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.filter(self.used(x))


def test_unused_adapters_and_convolutions_are_refused():
    model, params, adapter, gain = adapt(Spare(nnx.Rngs(0)), "used|spare")
    for run in (model, jax.jit(model)):
        with pytest.raises(InputError, match="The adapter of spare has no effect"):
            run(params, adapter, gain, X)
    model(params, adapter, gain, X, allow_unused=True)
    model, params, adapter, gain = adapt(Spare(nnx.Rngs(0)), "filter")
    with pytest.raises(InputError, match="filter is a convolution, which cannot be adapted"):
        model(params, adapter, gain, X)


def test_dropout_depends_on_the_key_and_spares_fixed_components():
    model, params, adapter, gain = adapt(Transformer(nnx.Rngs(0), scanned=True), EVERYTHING)
    run = jax.jit(lambda seed, fixed: model(
        params, adapter, jax.tree.map(lambda x: 0 * x, gain) if fixed else gain, IDS,
        fixed=gain if fixed else None, dropout=0.5, key=jax.random.key(seed),
    ), static_argnums=1)  # fmt: skip
    plain = model(params, adapter, gain, IDS)
    np.testing.assert_array_equal(run(0, False), run(0, False))
    assert np.any(run(0, False) != run(1, False)) and np.any(run(0, False) != plain)
    np.testing.assert_allclose(run(0, True), plain, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="needs a key"):
        model(params, adapter, gain, IDS, dropout=0.5)


# ----------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("name", [pytest.param("hlora", marks=pytest.mark.slow), "flora"])
def test_federated_rounds_with_mixed_ranks_train_an_nnx_model(name: str):
    """The loss falls, and methods that change the base change kernels of any shape."""
    model, params = lora.nnx.split(Transformer(nnx.Rngs(0)))
    spec = lora.make_spec(params, targets=EVERYTHING, rank=RANK)
    method = methods.make(name, spec)

    def loss_fn(apply: Any, batch: Any, key: Any) -> jax.Array:
        del key
        logits = apply(batch["ids"]).reshape(*batch["ids"].shape, 6)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["ids"] % 6)
        return jnp.mean(each, axis=-1)

    step = federated.make_round(method, federated.local_training(model, loss_fn, optax.adam(2e-2)))
    state = federated.init(method, params, jax.random.key(0), num_clients=3)
    ids = np.asarray(jax.random.randint(jax.random.key(2), (2, 4, 5, 6), 0, WORDS), np.int32)
    losses = []
    for t in range(4):
        round_input = federated.cohort([0, 2], [1, 2], [1, 2], {"ids": ids}, round=t)
        state, metrics = step(params, state, round_input)
        losses.append(float(np.mean(metrics.loss)))
    assert losses[-1] < 0.8 * losses[0]
    trained = model.merge(federated.global_params(method, params, state))
    before, after = (
        float(jnp.mean(loss_fn(m, {"ids": ids.reshape(-1, 6)}, None)))
        for m in (model.merge(params), trained)
    )
    assert after < 0.8 * before
