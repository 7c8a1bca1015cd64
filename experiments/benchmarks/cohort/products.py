"""Only the matrix products of a round's steps: the limit of the machine."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.cohort.work import Case, Work
from fedjax_lora.models import EncoderConfig


def contender(case: Case, config: EncoderConfig, work: Work) -> Callable[[], float]:
    """Return a function that computes all products of the round, with the shapes of our steps."""
    kernels = _kernels(config)
    shapes = [
        tuple(work.shape[k, s].tolist())
        for k in range(len(work.rank))
        for s in range(int(work.steps[k]))
    ]
    steps = {shape: jax.jit(_step(config, *shape)) for shape in set(shapes)}
    states = {s: jnp.full((s[-1], config.hidden), 1e-2, jnp.float32) for s in set(shapes)}

    def round() -> float:
        for shape in shapes:
            jax.block_until_ready(steps[shape](kernels, states[shape]))
        return float("nan")  # nothing is learned

    return round


def _kernels(config: EncoderConfig) -> list[dict[str, Any]]:
    h, m = config.hidden, config.intermediate
    sizes = {"query": (h, h), "key": (h, h), "value": (h, h), "mix": (h, h), "up": (h, m)}
    sizes["down"] = (m, h)
    rng = np.random.default_rng(0)
    make = lambda i, o: jnp.asarray(rng.normal(0, i**-0.5, (i, o)).astype(np.float32))  # noqa: E731
    return [{n: make(*size) for n, size in sizes.items()} for _ in range(config.layers)]


def _step(config: EncoderConfig, n: int, t: int, tokens: int) -> Callable[[Any, Any], Any]:
    """One step of `n` texts of `t` tokens, of which only `tokens` are real.

    All layers forwards, then all layers backwards; only attention includes padding. Gradients of
    the frozen kernels are not computed. The last layer computes queries and later products for the
    first tokens only; no gradient flows below the first layer's query and value.
    """
    h, heads = config.hidden, config.heads

    def attend(q: Any, k: Any, v: Any) -> Any:
        """The two products of attention, forwards; `q` may hold only first tokens."""
        whole = lambda x: jnp.pad(x, ((0, n * t - tokens), (0, 0))) if len(x) > n else x  # noqa: E731
        split = lambda x: whole(x).reshape(n, -1, heads, h // heads)  # noqa: E731
        weight = jnp.einsum("nqhd,nkhd->nhqk", split(q), split(k))
        return jnp.einsum("nhqk,nkhd->nqhd", weight, split(v)).reshape(-1, h)[: len(q)]

    def layer(x: Any, w: dict[str, Any], last: bool) -> Any:
        first = x[:n] if last else x
        mixed = attend(first @ w["query"], x @ w["key"], x @ w["value"])
        return (mixed @ w["mix"]) @ w["up"] @ w["down"]

    def back(g: Any, x: Any, w: dict[str, Any], lowest: bool) -> Any:
        """`g` may hold only first tokens; the returned gradient is of all tokens."""
        g = (g @ w["down"].T @ w["up"].T) @ w["mix"].T
        g = attend(attend(g, x, x), x, x)  # each of the two products has two gradients
        if lowest:
            return g
        down = x @ w["key"].T + x @ w["value"].T
        return down.at[: len(g)].add(g @ w["query"].T)

    def step(kernels: list[dict[str, Any]], x: Any) -> Any:
        y = x
        for at, w in enumerate(kernels):
            y = layer(y, w, at == len(kernels) - 1)
        for at, w in reversed(list(enumerate(kernels))):
            y = back(y, x, w, at == 0)
        return y

    return step
