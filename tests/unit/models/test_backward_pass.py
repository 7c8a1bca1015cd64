"""What accelerators keep for the backward pass: less than JAX would, for the same gradients."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import lora, models
from fedjax_lora.core.target import Target, compiling_for
from fedjax_lora.models import activations, norms
from fedjax_lora.models.attention import attend
from fedjax_lora.models.module_types import module_of

TPU = Target(platform="tpu", kind="TPU v5 lite", devices=tuple(jax.devices()[:1]))
"""Programs are written as for a TPU, and run here."""

ROUNDING = {"float64": 1e-12, "float32": 2e-6, "bfloat16": 3e-2}  # of the largest entry


def numbers(*shape: int, seed: int = 0, dtype: str = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def close(got: Any, want: Any, tolerance: float) -> None:
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        found, wanted = (np.asarray(z, np.float64) for z in (x, y))
        assert np.abs(wanted).max() > 0, "a vacuous comparison"
        np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def gradients(fn: Any, *arrays: jax.Array) -> Any:
    """Of a loss that weighs every entry of the result differently."""

    def loss(*arrays: jax.Array) -> jax.Array:
        y = fn(*arrays)
        y = y.astype(jnp.float64 if y.dtype == jnp.float64 else jnp.float32)
        return jnp.sum(y * numbers(*y.shape, seed=9, dtype=y.dtype.name))

    return jax.jit(jax.grad(loss, argnums=tuple(range(len(arrays)))))(*arrays)


def kept_bytes(fn: Any, *arrays: jax.Array) -> int:
    """What the backward pass reads besides the gradient."""
    backward = jax.eval_shape(lambda *arrays: jax.vjp(fn, *arrays)[1], *arrays)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(backward))


@pytest.mark.parametrize(
    "dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow), "bfloat16"]
)
@pytest.mark.parametrize("name", sorted(activations.ACTIVATIONS))
def test_activation_gradients_equal_autodiff(name: str, dtype: str):
    with jax.enable_x64(dtype == "float64"):
        x = 3 * numbers(40, seed=1, dtype=dtype)
        plain, own = (functools.partial(f, name) for f in (plain_activation, accelerated))
        np.testing.assert_array_equal(own(x), plain(x))
        close(gradients(own, x), gradients(plain, x), ROUNDING[dtype])


def plain_activation(name: str, x: jax.Array) -> jax.Array:
    return activations.ACTIVATIONS[name](x)


def accelerated(name: str, x: jax.Array) -> jax.Array:
    with compiling_for(TPU):
        return activations.activate(name, x)


def plain_norm(centred: bool, x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """As Flax computes it."""
    mean = jnp.mean(x, -1, keepdims=True) if centred else 0
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x - mean), -1, keepdims=True) + 1e-3)
    return (x - mean) * (inverse * scale[None]) + bias[None]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("centred", [True, False])
def test_norm_gradients_equal_autodiff(centred: bool, dtype: str):
    with jax.enable_x64(dtype == "float64"):
        x, scale, bias = (
            numbers(*shape, seed=n, dtype=dtype) for n, shape in enumerate([(6, 24), (24,), (24,)])
        )
        own = functools.partial(norms.normalise, 1e-3, dtype, centred)
        plain = functools.partial(plain_norm, centred)
        close(own(x, scale, bias), plain(x, scale, bias), ROUNDING[dtype])
        close(gradients(own, x, scale, bias), gradients(plain, x, scale, bias), ROUNDING[dtype])


def test_backward_pass_keeps_one_array_in_the_compute_dtype():
    x = numbers(8, 16, 64, dtype="bfloat16")
    array = x.size * 2

    def norm(x: jax.Array) -> jax.Array:
        ones = jnp.ones(64)
        return norms.normalise(1e-6, "bfloat16", True, x.astype(jnp.float32), ones, 0 * ones)

    assert array <= kept_bytes(norm, x) < 1.2 * array
    assert kept_bytes(functools.partial(accelerated, "gelu"), x) == array
    assert kept_bytes(functools.partial(plain_activation, "gelu"), x) > 2 * array
    heads = numbers(2, 64, 4, 8)
    mask = jnp.ones((2, 1, 1, 64), bool)

    def attention(q: jax.Array) -> jax.Array:
        with compiling_for(TPU):
            return attend(q, heads, heads, mask)

    scores = 2 * 4 * 64 * 64 * 4
    assert kept_bytes(attention, heads) < scores
    assert kept_bytes(lambda q: attend(q, heads, heads, mask), heads) > scores


@pytest.mark.parametrize(
    ("family", "remat", "dtype", "unroll"),
    [
        ("bert", False, "float32", 1),
        pytest.param("bert", True, "bfloat16", None, marks=pytest.mark.slow),
        ("qwen3", True, "float32", None),
    ],
)
def test_factor_gradients_of_several_clients_equal_autodiff(
    family: str, remat: bool, dtype: str, unroll: int | None
):
    """Through a scan over layers, and without one; under `vmap`, for a whole model."""
    model = models.tiny(family=family, num_labels=3)
    config = dataclasses.replace(model.config, scan_unroll=unroll, remat=remat, dtype=dtype)
    module: nn.Module = module_of(config)
    spec = lora.make_spec(model.params, targets="all-linear", rank=2)
    first = lora.init(spec, jax.random.key(1))
    clients = jax.tree.map(lambda x: 0.2 * numbers(2, *x.shape, seed=x.size), first)
    ids = np.random.default_rng(0).integers(2, 100, (2, 3, 7)).astype(np.int32)
    mask = np.arange(7) < np.array([7, 4, 2])[:, None]

    with compiling_for(TPU):  # stacked parameters, whether or not there is a loop
        base = models.frozen_base(dataclasses.replace(model, config=config))
    assert jax.tree.structure(base | {"head": 0}) == jax.tree.structure(model.params | {"head": 0})

    def gradient(adapter: Any, ids: jax.Array) -> Any:
        def loss(adapter: Any) -> jax.Array:
            y = lora.apply(module, model.params, adapter, lora.uniform_gain(spec), ids, mask)
            return -jnp.mean(jax.nn.log_softmax(y)[:, 1])

        return jax.grad(loss)(adapter)

    # JAX's own attention in bfloat16 is lowered by rules that promote.
    with jax.numpy_dtype_promotion("standard"):
        want = jax.jit(jax.vmap(gradient))(clients, ids)
        with compiling_for(TPU):
            got = jax.jit(jax.vmap(gradient))(clients, ids)
    for path, pair in want.items():
        tolerance = 1e-5 if dtype == "float32" else 0.1
        close(got[path], pair, tolerance)
