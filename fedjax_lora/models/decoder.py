"""One Flax module for decoders of the Llama shape: Llama 2 and 3, TinyLlama, Mistral, Qwen 2 to 3.

Every projection is a plain `nn.Dense` under its Hugging Face name, and the layers are one scanned
module, so that code outside can find each product by its module path
(``decoder/layers/self_attn/q_proj``) and can give any module its own variables, in any collection,
with a leading layer axis.
"""

from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fedjax_lora.models.activations import ACTIVATIONS
from fedjax_lora.models.attention import mix
from fedjax_lora.models.decoder_config import DecoderConfig
from fedjax_lora.models.encoder import Mask, Tokens, check_batch
from fedjax_lora.models.kv_cache import Cache, View, extended, look
from fedjax_lora.models.rope import rotate
from fedjax_lora.models.stack import layers_per_step
from fedjax_lora.storage import promote


class Decoded(NamedTuple):
    """What a decoder makes of a batch.

    Attributes:
      hidden: states after the final norm, in the compute dtype.
      cache: with the batch's tokens added; None if none was given.
    """

    hidden: Float[Array, "n t h"]
    cache: Cache | None


class PerLayer(NamedTuple):
    """What one layer gets; stacked, what the layer loop takes a slice of.

    Attributes:
      slides: whether it sees the sliding window only.
      past: keys and values in the cache; None without one.
    """

    slides: Bool[Array, "*L"]
    past: tuple[Float[Array, "*L n slots kv d"], Float[Array, "*L n slots kv d"]] | None


def _dense(config: DecoderConfig, features: int, name: str, *, bias: bool) -> nn.Dense:
    return nn.Dense(features, use_bias=bias, name=name, dtype=config.dtype, promote_dtype=promote)


def _norm(config: DecoderConfig, name: str, x: Array) -> Array:
    """RMSNorm in float32, whatever comes in; the compute dtype goes out."""
    norm = nn.RMSNorm(name=name, epsilon=config.norm_eps, dtype=jnp.float32)
    return norm(x.astype(jnp.float32)).astype(config.dtype)


class Attention(nn.Module):
    """Causal self-attention in groups of query heads."""

    config: DecoderConfig
    deterministic: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "n t h"], layer: PerLayer, view: View
    ) -> tuple[Float[Array, "n t h"], tuple[Array, Array]]:
        """What is added to the states, and the batch's own keys and values."""
        config = self.config
        query = self._heads(x, "q_proj", config.heads)
        key = self._heads(x, "k_proj", config.kv_heads)
        value = self._heads(x, "v_proj", config.kv_heads)
        if config.qk_norm:
            query, key = _norm(config, "q_norm", query), _norm(config, "k_norm", key)
        query, key = (rotate(z, view.turn, config.rope.attention_factor) for z in (query, key))
        keys, values = key, value
        if layer.past is not None:
            at = (0, view.slot, 0, 0)
            keys = jax.lax.dynamic_update_slice(layer.past[0], key, at)
            values = jax.lax.dynamic_update_slice(layer.past[1], value, at)
        mask = view.mask if view.near is None else view.mask & (view.near | ~layer.slides)
        drop = None
        if config.attention_dropout and not self.deterministic:
            drop = nn.Dropout(config.attention_dropout, deterministic=False)
        mixed = mix(query, keys, values, mask, drop=drop)
        y = _dense(config, config.hidden, "o_proj", bias=config.output_bias)(
            mixed.reshape(*x.shape[:2], config.heads * config.head_dim)
        )
        return y, (key, value)

    def _heads(self, x: Array, name: str, heads: int) -> Array:
        config = self.config
        y = _dense(config, heads * config.head_dim, name, bias=config.qkv_bias)(x)
        return y.reshape(*x.shape[:2], heads, config.head_dim)


class FeedForward(nn.Module):
    """SwiGLU: a gated projection up, and one down."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "n t h"]) -> Float[Array, "n t h"]:
        """What is added to the states."""
        config = self.config
        gate, up = (
            _dense(config, config.intermediate, name, bias=config.mlp_bias)(x)
            for name in ("gate_proj", "up_proj")
        )
        y = ACTIVATIONS[config.activation](gate) * up
        return _dense(config, config.hidden, "down_proj", bias=config.mlp_bias)(y)


class Layer(nn.Module):
    """One decoder layer in the form `nn.scan` wants: carry in, carry and output out."""

    config: DecoderConfig
    deterministic: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "n t h"], layer: PerLayer, view: View
    ) -> tuple[Float[Array, "n t h"], tuple[Array, Array] | None]:
        """New states; the batch's keys and values if there is a cache to put them into."""
        config = self.config
        attention = Attention(config, self.deterministic, name="self_attn")
        y, new = attention(_norm(config, "input_layernorm", x), layer, view)
        x = x + y
        y = FeedForward(config, name="mlp")(_norm(config, "post_attention_layernorm", x))
        return x + y, None if layer.past is None else new


def _scanned(config: DecoderConfig) -> Any:
    """`Layer` repeated: every collection has a leading layer axis."""
    unroll = layers_per_step(config.layers, config.scan_unroll)
    # A loop keeps XLA from merging the recomputation with the original; unrolled layers do not.
    layer = nn.remat(Layer, prevent_cse=unroll > 1) if config.remat else Layer
    return nn.scan(
        layer,
        length=config.layers,
        unroll=unroll,
        variable_axes={True: 0},
        split_rngs={True: True},
        in_axes=cast(int, (0, nn.broadcast)),
    )


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
        """States of a batch, or of the next tokens of the texts in a cache.

        Args:
          input_ids: token ids.
          attention_mask: True for tokens, False for padding, on either side.
          positions: of the tokens in their texts; counted from the mask (and the cache) if None.
          cache: of the tokens before; there must be room for ``t`` more.
          deterministic: False applies dropout, with keys from the ``dropout`` stream.

        Raises:
          InputError: texts longer than the window, or a mask that is not boolean.
        """
        config = self.config
        check_batch(config, input_ids, attention_mask)
        at = None if positions is None else jnp.asarray(positions)
        view = look(config, jnp.asarray(attention_mask), at, cache)
        # Rows are taken before they are cast: never a second table.
        table = nn.Embed(config.vocab_size, config.hidden, name="embed_tokens")
        x = table(jnp.asarray(input_ids)).astype(config.dtype)
        slides = jnp.array(
            [
                config.sliding_window is not None and layer not in config.full_layers
                for layer in range(config.layers)
            ]
        )
        past = None if cache is None else (cache.keys, cache.values)
        x, new = _scanned(config)(config, deterministic, name="layers")(
            x, PerLayer(slides, past), view
        )
        hidden = _norm(config, "norm", x)
        return Decoded(hidden, None if cache is None else extended(cache, view, new))
