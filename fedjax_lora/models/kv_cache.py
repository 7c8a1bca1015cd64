"""What tokens see: the cache of keys and values, positions, and the masks over its slots."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fedjax_lora.models.decoder_config import DecoderConfig
from fedjax_lora.models.rope import angles


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far, with room for more.

    Attributes:
      keys: turned by their positions, in the compute dtype.
      values: in the compute dtype.
      mask: True where a slot holds a token, False for padding and for room.
      filled: slots in use, padding included.
    """

    keys: Float[Array, "L n slots kv d"]
    values: Float[Array, "L n slots kv d"]
    mask: Bool[Array, "n slots"]
    filled: Int[Array, ""]


def init_cache(config: DecoderConfig, *, rows: int, slots: int) -> Cache:
    """An empty cache for `rows` texts of up to `slots` tokens, padding included."""
    shape = (config.layers, rows, slots, config.kv_heads, config.head_dim)
    empty = lambda: jnp.zeros(shape, config.dtype)  # noqa: E731
    return Cache(empty(), empty(), jnp.zeros((rows, slots), bool), jnp.zeros((), jnp.int32))


class View(NamedTuple):
    """Where a batch's tokens are and what they see.

    Attributes:
      turn: angles of the tokens' positions.
      mask: True where a token may attend to a slot in a layer that sees everything.
      near: True within the sliding window; None if there is none.
      slides: which layers see the window only.
      slot: where the batch's first token goes in the cache.
      seen: True where a slot holds a token, those of the batch included.
    """

    turn: Float[Array, "n t half"]
    mask: Bool[Array, "n 1 t s"]
    near: Bool[Array, "1 1 t s"] | None
    slides: Bool[Array, " L"]
    slot: Int[Array, ""]
    seen: Bool[Array, "n s"]

    def seen_by(self, layer: Int[Array, ""]) -> Bool[Array, "n 1 t s"]:
        """True where a token may attend to a slot in one layer."""
        return self.mask if self.near is None else self.mask & (self.near | ~self.slides[layer])


def make_view(
    config: DecoderConfig,
    mask: Bool[Array, "n t"],
    positions: Int[Array, "n t"] | None,
    cache: Cache | None,
) -> View:
    """The view of a batch; without a cache the slots are the batch's own tokens."""
    if positions is None:
        positions = _counted(mask, cache)
    slot = jnp.zeros((), jnp.int32) if cache is None else cache.filled
    seen = mask if cache is None else jax.lax.dynamic_update_slice(cache.mask, mask, (0, slot))
    own = slot + jnp.arange(mask.shape[1], dtype=jnp.int32)[:, None]
    other = jnp.arange(seen.shape[1], dtype=jnp.int32)[None, :]
    near = None
    if config.sliding_window is not None:
        near = (own - other < config.sliding_window)[None, None]
    turn = angles(config.rope, positions, width=config.head_dim, window=config.max_positions)
    slides = jnp.array([layer not in config.full_layers for layer in range(config.layers)])
    before = seen[:, None, None, :] & (other <= own)[None, None]
    return View(turn, before, near, slides, slot, seen)


def _counted(mask: Array, cache: Cache | None) -> Int[Array, "n t"]:
    """Tokens before each token of its text, padding not counted."""
    before = jnp.cumsum(mask.astype(jnp.int32), axis=1, dtype=jnp.int32) - 1
    if cache is not None:
        before = before + jnp.sum(cache.mask, axis=1, dtype=jnp.int32)[:, None]
    return jnp.maximum(before, 0)


def update_layer(
    cache: Cache,
    view: View,
    layer: Int[Array, ""],
    key: Float[Array, "n t kv d"],
    value: Float[Array, "n t kv d"],
) -> tuple[Cache, Float[Array, "n slots kv d"], Float[Array, "n slots kv d"]]:
    """The cache with the batch's keys and values in one layer, and all that this layer has."""
    at = (layer, 0, view.slot, 0, 0)
    keys = jax.lax.dynamic_update_slice(cache.keys, key[None], at)
    values = jax.lax.dynamic_update_slice(cache.values, value[None], at)
    return cache._replace(keys=keys, values=values), keys[layer], values[layer]


def advance(cache: Cache, view: View) -> Cache:
    """The cache once all layers have remembered the batch."""
    return cache._replace(mask=view.seen, filled=cache.filled + view.mask.shape[2])
