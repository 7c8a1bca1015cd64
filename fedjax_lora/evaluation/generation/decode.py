"""Decoding as one compiled program: the prompts at once, then token by token from a cache."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fedjax_lora import lora, models
from fedjax_lora.core.types import Adapter, Gain, Key
from fedjax_lora.evaluation.generation.sampling import GREEDY, Sampling, sample_token
from fedjax_lora.models import Cache, LanguageModel


class Generated(NamedTuple):
    """What was written after each prompt.

    Attributes:
      tokens: zeros after the end.
      length: tokens of each row, the stop token included.
    """

    tokens: Int[Array, "n new"]
    length: Int[Array, "n"]


class _Progress(NamedTuple):
    """What the loop carries."""

    step: Int[Array, ""]
    last: Int[Array, "n"]
    done: Bool[Array, "n"]
    generated: Generated
    cache: Cache


@functools.partial(jax.jit, static_argnames=("module", "new_tokens", "sampling", "stop", "per_row"))
def generate(
    module: LanguageModel,
    params: Mapping[str, Any],
    input_ids: Int[Array, "n t"],
    attention_mask: Bool[Array, "n t"],
    *,
    new_tokens: int,
    adapter: Adapter | None = None,
    gain: Gain | None = None,
    per_row: bool = False,
    sampling: Sampling = GREEDY,
    stop: tuple[int, ...] = (),
    key: Key | None = None,
) -> Generated:
    """Continue every prompt until a stop token, or for `new_tokens`.

    One program for each shape of the prompts: the key, parameters and adapters are data.

    Args:
      module: the language model.
      params: its parameters.
      input_ids: prompts, padded on the left.
      attention_mask: True for tokens, False for padding.
      new_tokens: how many tokens to write at most.
      adapter: added to the base; none by default.
      gain: of the adapter's components.
      per_row: leaves of `adapter` and `gain` have a leading axis ``n``: each row has its own.
      sampling: how tokens are chosen.
      stop: ids after which a row is finished.
      key: for sampling; row ``j`` draws from ``fold_in(key, j)``. Not needed by `GREEDY`.
    """
    rows, width = input_ids.shape
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
        jax.random.key(0) if key is None else key, jnp.arange(rows)
    )
    scores_after = _scorer(module, params, adapter or {}, gain or {}, per_row=per_row)

    def advance(progress: _Progress, ids: Array, mask: Array) -> _Progress:
        """Read the next tokens and choose the one after them."""
        scores, cache = scores_after(ids, mask, progress.cache)
        fresh = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, progress.step)
        token = sample_token(scores, sampling, fresh)
        going = ~progress.done
        tokens = progress.generated.tokens.at[:, progress.step].set(jnp.where(going, token, 0))
        length = progress.generated.length + going.astype(jnp.int32)
        ended = functools.reduce(jnp.logical_or, (token == end for end in stop), progress.done)
        return _Progress(progress.step + 1, token, ended, Generated(tokens, length), cache)

    def going_on(progress: _Progress) -> Array:
        return (progress.step < new_tokens) & ~jnp.all(progress.done)

    def next_token(progress: _Progress) -> _Progress:
        return advance(progress, progress.last[:, None], jnp.ones((rows, 1), bool))

    count = jnp.zeros(rows, jnp.int32)
    begin = _Progress(
        step=jnp.zeros((), jnp.int32),
        last=count,
        done=jnp.zeros(rows, bool),
        generated=Generated(jnp.zeros((rows, new_tokens), jnp.int32), count),
        cache=models.init_cache(module.config, rows=rows, slots=width + new_tokens),
    )
    first = advance(begin, input_ids, attention_mask)
    return jax.lax.while_loop(going_on, next_token, first).generated


def _scorer(module: LanguageModel, params: Any, adapter: Adapter, gain: Gain, *, per_row: bool):
    """``(ids [n, t], mask [n, t], cache) -> (scores after the last token [n, V], cache)``."""

    def read(adapter: Adapter, gain: Gain, ids: Array, mask: Array, cache: Cache):
        decoded = lora.apply(module, params, adapter, gain, ids, mask, cache=cache)
        return decoded.hidden[:, -1], decoded.cache

    def read_row(adapter: Adapter, gain: Gain, ids: Array, mask: Array, cache: Cache):
        hidden, cache = read(adapter, gain, ids[None], mask[None], _with_row(cache))
        return hidden[0], _without_row(cache)

    def scores_after(ids: Array, mask: Array, cache: Cache) -> tuple[Float[Array, "n V"], Cache]:
        if per_row:
            # Only adapters differ between rows: under vmap each base matmul stays one product.
            axes = Cache(keys=1, values=1, mask=0, filled=None)  # type: ignore[arg-type]
            rows = jax.vmap(read_row, in_axes=(0, 0, 0, 0, axes), out_axes=(0, axes))
            hidden, cache = rows(adapter, gain, ids, mask, cache)
        else:
            hidden, cache = read(adapter, gain, ids, mask, cache)
        return models.logits(params, hidden), cache

    return scores_after


def _with_row(cache: Cache) -> Cache:
    return Cache(cache.keys[:, None], cache.values[:, None], cache.mask[None], cache.filled)


def _without_row(cache: Cache) -> Cache:
    return Cache(cache.keys[:, 0], cache.values[:, 0], cache.mask[0], cache.filled)
