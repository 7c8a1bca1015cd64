"""One Flax module for the decoders of `decoder_config.DECODERS`: Llama and those of its shape.

Every projection is a plain `nn.Dense` under its Hugging Face name, and the layers are one module
run by `layer_stack`. Other code can therefore find each product by its module path
(``decoder/layers/self_attn/q_proj``) and give any module variables of its own, in any collection,
with a leading layer axis.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fedjax_lora.core.quantization import promote
from fedjax_lora.models import layer_stack
from fedjax_lora.models.activations import activate
from fedjax_lora.models.attention import attend
from fedjax_lora.models.decoder_config import DecoderConfig
from fedjax_lora.models.encoder import Mask, Tokens, check_batch
from fedjax_lora.models.kv_cache import Cache, View, advance, make_view, update_layer
from fedjax_lora.models.norms import layer_norm, rms_norm
from fedjax_lora.models.rope import rotate


class Decoded(NamedTuple):
    """Output of a decoder.

    Attributes:
      hidden: hidden states after the final norm, in the compute dtype.
      cache: the cache with the batch's tokens added; None without a cache.
    """

    hidden: Float[Array, "n t h"]
    cache: Cache | None


class States(NamedTuple):
    """State passed from layer to layer.

    Attributes:
      x: hidden states.
      layer: index of the layer that reads them.
      cache: the cache with the keys and values of earlier layers added; None without a cache.
    """

    x: Float[Array, "n t h"]
    layer: Int[Array, ""]
    cache: Cache | None


def _dense(config: DecoderConfig, features: int, name: str, *, bias: bool) -> nn.Dense:
    return nn.Dense(features, use_bias=bias, name=name, dtype=config.dtype, promote_dtype=promote)


def _norm(config: DecoderConfig, name: str, x: Array) -> Array:
    """The config's kind of norm, computed in float32, with its result in the compute dtype."""
    if config.layer_norm:
        plain = {"eps": config.norm_eps, "dtype": config.dtype, "bias": config.norm_bias}
        return layer_norm(x, name=name, **plain)
    options = {"eps": config.norm_eps, "dtype": config.dtype, "offset": config.norm_offset}
    return rms_norm(x, name=name, **options)


class Attention(nn.Module):
    """Self-attention with grouped query heads, causal in a decoder."""

    config: DecoderConfig
    deterministic: bool

    @nn.compact
    def __call__(self, states: States, x: Float[Array, "n t h"], view: View) -> States:
        """Replace the states by the attention of `x`, normalised ones; cache keys and values."""
        config = self.config
        query, key, value = self._projections(x)
        if config.qk_norm:
            query, key = _norm(config, "q_norm", query), _norm(config, "k_norm", key)
        if config.rope is not None:
            turn = view.turn_of(states.layer)
            query, key = (rotate(z, turn, config.rope.attention_factor) for z in (query, key))
        if config.attention_scale is not None:
            query = query * (config.attention_scale * config.head_dim**0.5)
        cache, keys, values = states.cache, key, value
        if cache is not None:
            cache, keys, values = update_layer(cache, view, states.layer, key, value)
        mask = view.seen_by(states.layer)
        drop = None
        if config.attention_dropout and not self.deterministic:
            drop = nn.Dropout(config.attention_dropout, deterministic=False)
        mixed = attend(query, keys, values, mask, softcap=config.attention_softcap, drop=drop)
        y = _dense(config, config.hidden, "o_proj", bias=config.output_bias)(
            mixed.reshape(*x.shape[:2], config.heads * config.head_dim)
        )
        return states._replace(x=y, cache=cache)

    def _projections(self, x: Array) -> tuple[Array, Array, Array]:
        """Queries, keys and values, by head."""
        config = self.config
        widths = [n * config.head_dim for n in (config.heads, config.kv_heads, config.kv_heads)]
        if config.fused:
            y = _dense(config, sum(widths), "qkv_proj", bias=config.qkv_bias)(x)
            parts = jnp.split(y, [widths[0], widths[0] + widths[1]], axis=-1)
        else:
            parts = [
                _dense(config, width, name, bias=config.qkv_bias)(x)
                for name, width in zip(("q_proj", "k_proj", "v_proj"), widths, strict=True)
            ]
        query, key, value = (y.reshape(*y.shape[:2], -1, config.head_dim) for y in parts)
        return query, key, value


class FeedForward(nn.Module):
    """Feed-forward block, with a gate (SwiGLU) or without."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "n t h"]) -> Float[Array, "n t h"]:
        """Compute the block's contribution to the hidden states."""
        config = self.config
        if not config.gated:
            up = _dense(config, config.intermediate, "up_proj", bias=config.mlp_bias)(x)
            return self._down(activate(config.activation, up))
        if config.fused:
            both = _dense(config, 2 * config.intermediate, "gate_up_proj", bias=config.mlp_bias)(x)
            gate, up = jnp.split(both, 2, axis=-1)
        else:
            gate, up = (
                _dense(config, config.intermediate, name, bias=config.mlp_bias)(x)
                for name in ("gate_proj", "up_proj")
            )
        return self._down(activate(config.activation, gate) * up)

    def _down(self, y: Array) -> Array:
        return _dense(self.config, self.config.hidden, "down_proj", bias=self.config.mlp_bias)(y)


class Layer(nn.Module):
    """One decoder layer."""

    config: DecoderConfig
    deterministic: bool

    @nn.compact
    def __call__(self, states: States, view: View) -> States:
        """Apply the layer."""
        config = self.config
        attention = Attention(config, self.deterministic, name="self_attn")
        x, inner = states.x, "post_attention_layernorm"
        y = _norm(config, "input_layernorm", x)
        if config.embedding_norm:
            y = jnp.where(states.layer == 0, x, y)
        states = attention(states, y, view)
        y = states.x
        if config.sandwich_norms:
            y, inner = _norm(config, inner, y), "pre_feedforward_layernorm"
        x = x + self._drop(y)
        y = FeedForward(config, name="mlp")(_norm(config, inner, x))
        if config.sandwich_norms:
            y = _norm(config, "post_feedforward_layernorm", y)
        return States(x + self._drop(y), states.layer + 1, states.cache)

    def _drop(self, y: Array) -> Array:
        """Dropout of a residual branch."""
        if not self.config.hidden_dropout:
            return y
        return nn.Dropout(self.config.hidden_dropout, deterministic=self.deterministic)(y)


class Decoder(nn.Module):
    """Embeddings, layers and the final norm of a frozen or trained base model."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        input_ids: Tokens,
        attention_mask: Mask,
        *,
        positions: Tokens | None = None,
        cache: Cache | None = None,
        deterministic: bool = True,
    ) -> Decoded:
        """Compute the hidden states of a batch, or of further tokens of the texts in a cache.

        Args:
          input_ids: token ids.
          attention_mask: True for tokens, False for padding, which may be on either side.
          positions: positions of the tokens in their texts; if None, counted from the mask and the
            cache.
          cache: keys and values of the preceding tokens, with room for ``t`` more.
          deterministic: False applies dropout, with keys from the ``dropout`` stream.

        Raises:
          InputError: texts longer than the context window, or a mask that is not boolean.
        """
        config = self.config
        check_batch(config, input_ids, attention_mask)
        at = None if positions is None else jnp.asarray(positions)
        view = make_view(config, jnp.asarray(attention_mask), at, cache)
        x = self._embeddings(jnp.asarray(input_ids), view)
        if config.embedding_norm:
            x = _norm(config, "embed_norm", x)
        if config.embedding_dropout:
            x = nn.Dropout(config.embedding_dropout, deterministic=deterministic)(x)
        states = layer_stack.run(
            Layer(config, deterministic, name="layers"),
            lambda layer, states, last: layer(states, view),
            States(x, jnp.zeros((), jnp.int32), cache),
            count=config.layers,
            scan_unroll=config.scan_unroll,
            remat=config.remat,
        )
        hidden = _norm(config, "norm", states.x)
        return Decoded(hidden, None if cache is None else advance(states.cache, view))

    def _embeddings(self, input_ids: Array, view: View) -> Float[Array, "n t h"]:
        """Embeddings of tokens, and of their positions if these are learned."""
        config = self.config
        # Rows are looked up before the cast, so that the table is not copied.
        table = nn.Embed(config.vocab_size, config.hidden, name="embed_tokens")
        x = table(input_ids).astype(config.dtype)
        if config.embedding_scale != 1:
            x = x * jnp.asarray(config.embedding_scale, x.dtype)
        if config.rope is not None:
            return x
        rows = config.max_positions + config.first_position
        positions = nn.Embed(rows, config.hidden, name="embed_positions")
        return x + positions(view.positions + config.first_position).astype(config.dtype)
