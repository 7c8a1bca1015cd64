"""One Flax module for decoders of the Llama shape: Llama 2 and 3, TinyLlama, Mistral, Qwen 2 to 3.

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
from fedjax_lora.models.norms import rms_norm
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
    """RMSNorm computed in float32, with its result in the compute dtype."""
    return rms_norm(x, name=name, eps=config.norm_eps, dtype=config.dtype)


class Attention(nn.Module):
    """Causal self-attention with grouped query heads."""

    config: DecoderConfig
    deterministic: bool

    @nn.compact
    def __call__(self, states: States, x: Float[Array, "n t h"], view: View) -> States:
        """Add the attention of `x`, the normalised states, and cache the keys and values."""
        config = self.config
        query = self._heads(x, "q_proj", config.heads)
        key = self._heads(x, "k_proj", config.kv_heads)
        value = self._heads(x, "v_proj", config.kv_heads)
        if config.qk_norm:
            query, key = _norm(config, "q_norm", query), _norm(config, "k_norm", key)
        query, key = (rotate(z, view.turn, config.rope.attention_factor) for z in (query, key))
        cache, keys, values = states.cache, key, value
        if cache is not None:
            cache, keys, values = update_layer(cache, view, states.layer, key, value)
        mask = view.seen_by(states.layer)
        drop = None
        if config.attention_dropout and not self.deterministic:
            drop = nn.Dropout(config.attention_dropout, deterministic=False)
        mixed = attend(query, keys, values, mask, drop=drop)
        y = _dense(config, config.hidden, "o_proj", bias=config.output_bias)(
            mixed.reshape(*x.shape[:2], config.heads * config.head_dim)
        )
        return states._replace(x=states.x + y, cache=cache)

    def _heads(self, x: Array, name: str, heads: int) -> Array:
        config = self.config
        y = _dense(config, heads * config.head_dim, name, bias=config.qkv_bias)(x)
        return y.reshape(*x.shape[:2], heads, config.head_dim)


class FeedForward(nn.Module):
    """SwiGLU feed-forward block."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "n t h"]) -> Float[Array, "n t h"]:
        """Compute the block's contribution to the hidden states."""
        config = self.config
        gate, up = (
            _dense(config, config.intermediate, name, bias=config.mlp_bias)(x)
            for name in ("gate_proj", "up_proj")
        )
        y = activate(config.activation, gate) * up
        return _dense(config, config.hidden, "down_proj", bias=config.mlp_bias)(y)


class Layer(nn.Module):
    """One decoder layer."""

    config: DecoderConfig
    deterministic: bool

    @nn.compact
    def __call__(self, states: States, view: View) -> States:
        """Apply the layer."""
        config = self.config
        attention = Attention(config, self.deterministic, name="self_attn")
        states = attention(states, _norm(config, "input_layernorm", states.x), view)
        x = states.x
        y = FeedForward(config, name="mlp")(_norm(config, "post_attention_layernorm", x))
        return States(x + y, states.layer + 1, states.cache)


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
        # Rows are looked up before the cast, so that the table is not copied.
        table = nn.Embed(config.vocab_size, config.hidden, name="embed_tokens")
        x = table(jnp.asarray(input_ids)).astype(config.dtype)
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
