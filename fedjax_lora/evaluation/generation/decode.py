"""Decoding with a key-value cache as one compiled program."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fedjax_lora import lora, models
from fedjax_lora.core.types import Adapter, Gain, Key, Params
from fedjax_lora.evaluation.generation.sampling import GREEDY, Sampling, sample_token
from fedjax_lora.models import Cache, LanguageModel

__all__ = ["Generated", "generate"]


class Generated(NamedTuple):
    """Generated tokens of a batch of prompts.

    Attributes:
      tokens: generated token ids; zeros after the end of a row.
      length: number of generated tokens of each row, the stop token included.
    """

    tokens: Int[Array, "n new"]
    length: Int[Array, " n"]


class _LoopState(NamedTuple):
    """State of the decoding loop.

    Attributes:
      step: number of tokens generated so far.
      last: last token of each row.
      done: whether a row has ended.
      generated: tokens so far.
      cache: keys and values of all tokens read so far.
    """

    step: Int[Array, ""]
    last: Int[Array, " n"]
    done: Bool[Array, " n"]
    generated: Generated
    cache: Cache


@functools.partial(jax.jit, static_argnames=("module", "new_tokens", "sampling", "stop", "per_row"))
def generate(
    module: LanguageModel,
    params: Params,
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
    """Continue every prompt until a stop token or `new_tokens` tokens.

    One program is compiled per shape of the prompts; key, parameters and adapters are arguments of
    the program.

    Args:
      module: the language model.
      params: its parameters.
      input_ids: prompts, padded on the left.
      attention_mask: True for tokens, False for padding.
      new_tokens: largest number of generated tokens.
      adapter: factors by path, ``a: [(L,) i, R]`` and ``b: [(L,) R, o]``; None for the base model.
      gain: multiplier of each component by path, ``[(L,) R]``; None without an adapter.
      per_row: whether the leaves of `adapter` and `gain` have a leading axis ``n`` with one adapter
        per row.
      sampling: the sampling rule.
      stop: token ids that end a row.
      key: key of the samples, from which row ``j`` uses ``fold_in(key, j)``; not used by `GREEDY`.
    """
    rows, width = input_ids.shape
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
        jax.random.key(0) if key is None else key, jnp.arange(rows)
    )
    next_logits = _make_next_logits(module, params, adapter or {}, gain or {}, per_row=per_row)

    def advance(state: _LoopState, ids: Array, mask: Array) -> _LoopState:
        """Read tokens and choose the one after them."""
        logits, cache = next_logits(ids, mask, state.cache)
        step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, state.step)
        token = sample_token(logits, sampling, step_keys)
        active = ~state.done
        tokens = state.generated.tokens.at[:, state.step].set(jnp.where(active, token, 0))
        length = state.generated.length + active.astype(jnp.int32)
        done = functools.reduce(jnp.logical_or, (token == end for end in stop), state.done)
        return _LoopState(state.step + 1, token, done, Generated(tokens, length), cache)

    def is_unfinished(state: _LoopState) -> Array:
        return (state.step < new_tokens) & ~jnp.all(state.done)

    def next_token(state: _LoopState) -> _LoopState:
        return advance(state, state.last[:, None], jnp.ones((rows, 1), bool))

    zeros = jnp.zeros(rows, jnp.int32)
    empty = _LoopState(
        step=jnp.zeros((), jnp.int32),
        last=zeros,
        done=jnp.zeros(rows, bool),
        generated=Generated(jnp.zeros((rows, new_tokens), jnp.int32), zeros),
        cache=models.init_cache(module.config, rows=rows, slots=width + new_tokens),
    )
    first = advance(empty, input_ids, attention_mask)
    return jax.lax.while_loop(is_unfinished, next_token, first).generated


def _make_next_logits(
    module: LanguageModel, params: Any, adapter: Adapter, gain: Gain, *, per_row: bool
) -> Callable[[Array, Array, Cache], tuple[Array, Cache]]:
    """Build ``(ids [n, t], mask [n, t], cache) -> (logits after the last token [n, V], cache)``."""

    def read(adapter: Adapter, gain: Gain, ids: Array, mask: Array, cache: Cache):
        decoded = lora.apply(module, params, adapter, gain, ids, mask, cache=cache)
        return decoded.hidden[:, -1], decoded.cache

    def read_row(adapter: Adapter, gain: Gain, ids: Array, mask: Array, cache: Cache):
        hidden, cache = read(adapter, gain, ids[None], mask[None], _with_row(cache))
        return hidden[0], _without_row(cache)

    def next_logits(ids: Array, mask: Array, cache: Cache) -> tuple[Float[Array, "n V"], Cache]:
        if per_row:
            # The base is not mapped: under vmap each of its products stays one for all rows.
            axes = Cache(keys=1, values=1, mask=0, filled=None)  # type: ignore[arg-type]
            rows = jax.vmap(read_row, in_axes=(0, 0, 0, 0, axes), out_axes=(0, axes))
            hidden, cache = rows(adapter, gain, ids, mask, cache)
        else:
            hidden, cache = read(adapter, gain, ids, mask, cache)
        return models.logits(params, hidden, softcap=module.config.logit_softcap), cache

    return next_logits


def _with_row(cache: Cache) -> Cache:
    return Cache(cache.keys[:, None], cache.values[:, None], cache.mask[None], cache.filled)


def _without_row(cache: Cache) -> Cache:
    return Cache(cache.keys[:, 0], cache.values[:, 0], cache.mask[0], cache.filled)
