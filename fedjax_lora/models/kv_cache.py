"""The cache of keys and values, and the positions and attention masks of new tokens."""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fedjax_lora.models.decoder_config import DecoderConfig
from fedjax_lora.models.rope import angles


class Cache(NamedTuple):
    """Keys and values of the tokens so far, with free slots for further tokens.

    Attributes:
      keys: keys rotated by their positions, in the compute dtype.
      values: values, in the compute dtype.
      mask: True for slots with a token, False for padding and free slots.
      filled: number of slots in use, padding included.
    """

    keys: Float[Array, "L n slots kv d"]
    values: Float[Array, "L n slots kv d"]
    mask: Bool[Array, "n slots"]
    filled: Int[Array, ""]


def init_cache(config: DecoderConfig, *, rows: int, slots: int) -> Cache:
    """Make an empty cache for `rows` texts of up to `slots` tokens, padding included."""
    shape = (config.layers, rows, slots, config.kv_heads, config.head_dim)
    empty = lambda: jnp.zeros(shape, config.dtype)  # noqa: E731
    return Cache(empty(), empty(), jnp.zeros((rows, slots), bool), jnp.zeros((), jnp.int32))


class View(NamedTuple):
    """Positions and attention masks of a batch's tokens.

    Attributes:
      positions: positions of the tokens in their texts.
      turn: rotary angles of the positions; None without a rotary embedding.
      near_turn: those of sliding layers, if they are others; None if not.
      rotates: True for layers with a position embedding.
      mask: True where a token may attend to a slot in a layer with full attention.
      near: True within the sliding window; None without a window.
      slides: True for layers whose attention is limited to the window.
      slot: cache slot of the batch's first token.
      occupied: True for slots with a token, those of the batch included.
    """

    positions: Int[Array, "n t"]
    turn: Float[Array, "n t half"] | None
    near_turn: Float[Array, "n t half"] | None
    rotates: Bool[Array, " L"] | None
    mask: Bool[Array, "n 1 #t s"]
    near: Bool[Array, "1 1 t s"] | None
    slides: Bool[Array, " L"]
    slot: Int[Array, ""]
    occupied: Bool[Array, "n s"]

    def turn_of(self, layer: Int[Array, ""]) -> Float[Array, "n t half"]:
        """Rotary angles in one layer, of a model with a rotary embedding."""
        turn = cast(Array, self.turn)
        if self.near_turn is not None:
            turn = jnp.where(self.slides[layer], self.near_turn, turn)
        return turn if self.rotates is None else jnp.where(self.rotates[layer], turn, 0.0)

    def seen_by(self, layer: Int[Array, ""]) -> Bool[Array, "n 1 #t s"]:
        """Attention mask of one layer: True where a token may attend to a slot."""
        return self.mask if self.near is None else self.mask & (self.near | ~self.slides[layer])


def make_view(
    config: DecoderConfig,
    mask: Bool[Array, "n t"],
    positions: Int[Array, "n t"] | None,
    cache: Cache | None,
) -> View:
    """Compute the view of a batch; without a cache the slots are the tokens of the batch."""
    if positions is None:
        positions = _count_positions(mask, cache)
    slot = jnp.zeros((), jnp.int32) if cache is None else cache.filled
    occupied = mask if cache is None else jax.lax.dynamic_update_slice(cache.mask, mask, (0, slot))
    query_slot = slot + jnp.arange(mask.shape[1], dtype=jnp.int32)[:, None]
    key_slot = jnp.arange(occupied.shape[1], dtype=jnp.int32)[None, :]
    near = None
    if config.sliding_window is not None:
        apart = query_slot - key_slot
        near = (
            apart < config.sliding_window if config.causal else abs(apart) <= config.sliding_window
        )
        near = near[None, None]
    sizes = {"width": config.head_dim, "window": config.max_positions}
    turn = near_turn = rotates = None
    if config.rope is not None:
        turn = angles(config.rope, positions, **sizes)
    if config.local_rope is not None:
        near_turn = angles(config.local_rope, positions, **sizes)
    if config.unrotated_layers:
        rotates = _layers_but(config, config.unrotated_layers)
    slides = _layers_but(config, config.full_layers)
    seen = occupied[:, None, None, :]
    if config.causal:
        seen = seen & (key_slot <= query_slot)[None, None]
    return View(positions, turn, near_turn, rotates, seen, near, slides, slot, occupied)


def _layers_but(config: DecoderConfig, excluded: tuple[int, ...]) -> Bool[Array, " L"]:
    return jnp.array([layer not in excluded for layer in range(config.layers)])


def _count_positions(mask: Array, cache: Cache | None) -> Int[Array, "n t"]:
    """Number of tokens before each token in its text, without padding."""
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
    """Store the batch's keys and values in one layer of the cache.

    Returns:
      The new cache, and all keys and values of the layer.
    """
    at = (layer, 0, view.slot, 0, 0)
    keys = jax.lax.dynamic_update_slice(cache.keys, key[None], at)
    values = jax.lax.dynamic_update_slice(cache.values, value[None], at)
    return cache._replace(keys=keys, values=values), keys[layer], values[layer]


def advance(cache: Cache, view: View) -> Cache:
    """Mark the batch's slots as filled, once all layers have stored their keys and values."""
    return cache._replace(mask=view.occupied, filled=cache.filled + view.mask.shape[2])
