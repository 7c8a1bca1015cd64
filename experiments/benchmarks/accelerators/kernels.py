"""Programs without a model: large products, attention, adapters and the server's factorisation."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.accelerators.timing import seconds
from fedjax_lora.core.subspace import leading_triplets

Record = dict[str, Any]
Case = tuple[str, Callable[[], Record]]


def peak(*, tiny: bool) -> Iterator[Case]:
    """Products of two square matrices."""
    size = 256 if tiny else 8192
    for dtype, precision in (
        ("bfloat16", "default"),
        ("float32", "default"),
        ("float32", "highest"),
    ):
        yield f"{dtype} {precision}", functools.partial(_product, size, dtype, precision)


def _product(size: int, dtype: str, precision: str) -> Record:
    x = jnp.ones((size, size), dtype)
    with jax.default_matmul_precision(precision):
        first, each = seconds(jax.jit(jnp.matmul), x, x)
    return {"first_seconds": first, "seconds": each, "flops": 2 * size**3 / each}


TEXTS = {"encoder": (256, 128, 16, 16, 64, False), "decoder": (64, 512, 32, 8, 64, True)}
"""Texts, tokens, heads of queries, of keys, their width, and whether attention is causal."""


def attention(*, tiny: bool) -> Iterator[Case]:
    """Attention and its gradient by JAX's implementations, in bfloat16."""
    for name, shape in TEXTS.items():
        size = (2, 16, 4, 2, 16, shape[-1]) if tiny else shape
        for implementation in ("xla", "cudnn"):
            case = functools.partial(_attend, size, implementation)
            yield f"{name} {implementation}", case


def _attend(size: tuple, implementation: str) -> Record:
    n, t, heads, shared, width, causal = size
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(n, t, count, width) for count in (heads, shared, shared)]
    wide = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    length = jnp.full((n,), t - 3, jnp.int32)

    def gradient(implementation: str, *x: jax.Array) -> Any:
        function: Any = jax.nn.dot_product_attention
        attend = functools.partial(
            function, is_causal=causal, key_value_seq_lengths=length,
            query_seq_lengths=length, implementation=implementation,
        )  # fmt: skip
        loss = lambda *x: jnp.sum(jnp.square(attend(*x).astype(jnp.float32)))  # noqa: E731
        return jax.grad(loss, argnums=(0, 1, 2))(*x)

    narrow = [x.astype(jnp.bfloat16) for x in wide]
    first, each = seconds(jax.jit(functools.partial(gradient, implementation)), *narrow)
    own = jax.jit(functools.partial(gradient, implementation))(*narrow)
    with jax.default_matmul_precision("highest"):
        exact = jax.jit(functools.partial(gradient, "xla"))(*wide)
    return {"first_seconds": first, "seconds": each, "apart": _apart(own, exact)}


def _apart(got: Any, want: Any) -> float:
    """Return the largest difference, relative to the largest entry of the array."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    each = [jnp.max(jnp.abs(x.astype(jnp.float32) - y)) / jnp.max(jnp.abs(y)) for x, y in pairs]
    return float(jnp.max(jnp.stack(each)))


def adapters(*, tiny: bool) -> Iterator[Case]:
    """``x w + (x a) b`` for 16 clients with factors of their own over one kernel."""
    clients, tokens, width, rank = (2, 16, 32, 4) if tiny else (16, 2048, 1024, 16)
    shapes = (
        (clients, tokens, width), (width, width), (clients, width, rank), (clients, rank, width)
    )  # fmt: skip
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes]
    for name, term in TERMS.items():
        yield name, functools.partial(_adapted, term, arrays)


def _vmapped(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    return jax.vmap(lambda x, a, b: (x @ a) @ b)(x, a, b)


def _masked(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """All clients' factors side by side: each text takes its own columns."""
    clients, width, rank = a.shape
    hidden = x @ jnp.moveaxis(a, 0, 1).reshape(width, clients * rank)
    own = jnp.repeat(jnp.eye(clients, dtype=x.dtype), rank, axis=1)[:, None]
    return (hidden * own) @ b.reshape(clients * rank, -1)


def _ragged(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    clients, tokens, width = x.shape
    sizes = jnp.full((clients,), tokens, jnp.int32)
    rows = x.reshape(clients * tokens, width)
    hidden = jax.lax.ragged_dot(rows, a, sizes)
    return jax.lax.ragged_dot(hidden, b, sizes).reshape(clients, tokens, -1)


TERMS = {
    "kernel alone": lambda x, a, b: jnp.zeros((), x.dtype),
    "vmap": _vmapped,
    "one product with a mask": _masked,
    "ragged products": _ragged,
}


def _adapted(term: Callable[..., jax.Array], arrays: list[jax.Array]) -> Record:
    x, w, a, b = arrays

    def loss(a: jax.Array, b: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square((x @ w + term(x, a, b)).astype(jnp.float32)))

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    first, each = seconds(gradient, a, b, x)

    @jax.jit
    def apart(*arrays: jax.Array) -> jax.Array:
        exact = _vmapped(*(z.astype(jnp.float32) for z in arrays))
        largest = jnp.max(jnp.abs(exact))
        return jnp.max(jnp.abs(term(*arrays).astype(jnp.float32) - exact)) / largest

    return {"first_seconds": first, "seconds": each, "apart": float(apart(x, a, b))}


def server(*, tiny: bool) -> Iterator[Case]:
    """Leading triplets of products of stacked factors, as HLoRA's server needs them, by layer."""
    layers, width, stacked, rank = (2, 32, 8, 4) if tiny else (8, 1024, 512, 32)
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.normal(size=(layers, width, stacked)), jnp.float32)
    b = jnp.asarray(rng.normal(size=(layers, stacked, width)), jnp.float32)
    for name, factor in FACTORISATIONS.items():
        yield name, functools.partial(_factorise, factor, a, b, rank)


def _by_svd(a: jax.Array, b: jax.Array, rank: int) -> Any:
    u, s, vt = jnp.linalg.svd(a @ b, full_matrices=False)
    return u[..., :rank], s[..., :rank], vt[..., :rank, :]


def _by_qr(a: jax.Array, b: jax.Array, rank: int) -> Any:
    """The SVD of the core between two thin QR factorisations."""
    (q_a, r_a), (q_b, r_b) = jnp.linalg.qr(a), jnp.linalg.qr(b.mT)
    u, s, vt = _by_svd(r_a, r_b.mT, rank)
    return q_a @ u, s, vt @ q_b.mT


def _by_iteration(a: jax.Array, b: jax.Array, rank: int) -> Any:
    return jax.vmap(lambda a, b: leading_triplets(a, b, rank))(a, b)


FACTORISATIONS = {"svd": _by_svd, "qr and svd": _by_qr, "subspace iteration": _by_iteration}


def _factorise(factor: Callable[..., Any], a: jax.Array, b: jax.Array, rank: int) -> Record:
    with jax.default_matmul_precision("highest"):
        first, each = seconds(jax.jit(functools.partial(factor, rank=rank)), a, b, repeats=3)
        u, s, vt = map(np.asarray, jax.jit(functools.partial(factor, rank=rank))(a, b))
    product = np.asarray(a) @ np.asarray(b)
    missed = np.linalg.norm(product - (u * s[..., None, :]) @ vt) / np.linalg.norm(product)
    return {"first_seconds": first, "seconds": each, "missed": float(missed)}
