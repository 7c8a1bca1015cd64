"""One Flax module for the encoders of `families.FAMILIES`: BERT and those of its shape.

Every projection is a plain `nn.Dense`, and the layers are one scanned module. Other code can
therefore find each product by its module path (``encoder/layers/attention/query``) and give any
module variables of its own, in any collection, with a leading layer axis.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.quantization import promote
from fedjax_lora.models import layer_stack
from fedjax_lora.models.activations import activate
from fedjax_lora.models.attention import attend
from fedjax_lora.models.decoder_config import DecoderConfig
from fedjax_lora.models.encoder_config import EncoderConfig
from fedjax_lora.models.norms import layer_norm
from fedjax_lora.models.relative_positions import (
    Distances,
    RelativePositions,
    disentangled_bias,
    distance_rows,
)
from fedjax_lora.models.unpadding import Layout, layout

Tokens = Int[Array | np.ndarray, "n t"]
Mask = Bool[Array | np.ndarray, "n t"]
Places = Int[Array | np.ndarray, "rows"]


class Encoded(NamedTuple):
    """Output of an encoder.

    Attributes:
      hidden: the last layer's states, in the compute dtype; of the first token only if
        ``pooled_only`` allowed it.
      pooled: one float32 vector per text, by the config's pooling.
    """

    hidden: Float[Array, "n q h"]
    pooled: Float[Array, "n h"]


def dense(config: EncoderConfig, features: int, name: str, dtype: str | None = None) -> nn.Dense:
    """Make a projection, by default in the compute dtype of the config."""
    return nn.Dense(features, name=name, dtype=dtype or config.dtype, promote_dtype=promote)


def _normalise(config: EncoderConfig, x: Array) -> Array:
    """LayerNorm computed in float32, with its result in the compute dtype."""
    return layer_norm(x, name="norm", eps=config.layer_norm_eps, dtype=config.dtype)


class Embeddings(nn.Module):
    """Normalised sum of token, position and token-type embeddings."""

    config: EncoderConfig
    deterministic: bool

    @nn.compact
    def __call__(
        self, input_ids: Tokens, token_types: Tokens | None
    ) -> Float[Array, "n t {self.config.embedding_size}"]:
        """Compute the embeddings, in the compute dtype."""
        config = self.config
        x = self._rows("word", config.vocab_size, input_ids)
        if not config.traits.disentangled:
            x = x + self._rows("position", config.max_positions, _positions(config, input_ids))
        if config.type_vocab:
            types = jnp.zeros_like(input_ids) if token_types is None else token_types
            x = x + self._rows("token_type", config.type_vocab, types)
        x = _normalise(config, x)
        return nn.Dropout(config.hidden_dropout, deterministic=self.deterministic)(x)

    def _rows(self, name: str, rows: int, index: Int[Array | np.ndarray, "*n"]) -> Array:
        # Rows are looked up before the cast, so that the table is not copied.
        table = nn.Embed(rows, self.config.embedding_size, name=name)
        return table(jnp.asarray(index)).astype(jnp.float32)


def _positions(config: EncoderConfig, input_ids: Tokens) -> Int[Array, "_n t"]:
    """Rows of the position table, with a batch axis of size 1 if all texts have the same."""
    if not config.traits.padded_positions:
        return jnp.arange(input_ids.shape[1])[None]
    real = (jnp.asarray(input_ids) != config.pad_token_id).astype(jnp.int32)
    return jnp.cumsum(real, axis=1, dtype=jnp.int32) * real + config.pad_token_id


class Attention(nn.Module):
    """Self-attention with its residual connection and LayerNorm."""

    config: EncoderConfig
    deterministic: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*rows h"],
        at: Layout,
        first_tokens: int | None,
        bias: Float[Array, "1 heads t t"] | None,
        distances: Distances | None,
    ) -> Float[Array, "*rows_left h"]:
        """Apply the block; with `first_tokens`, to ``[n, first_tokens, h]`` of each text only."""
        config = self.config

        def heads(x: Array) -> Array:
            return x.reshape(*x.shape[:2], config.heads, config.hidden // config.heads)

        key_of, value_of, query_of = (
            dense(config, config.hidden, name) for name in ("key", "value", "query")
        )
        key, value = (heads(at.texts(of(x))) for of in (key_of, value_of))
        texts, states = at.texts, at.states
        if first_tokens is not None:
            x = at.texts(x)[:, :first_tokens]
            texts = states = lambda x: x
            bias = None if bias is None else bias[:, :, :first_tokens]
        query = heads(texts(query_of(x)))
        if distances is not None:
            states_of = nn.Dropout(config.hidden_dropout, deterministic=self.deterministic)
            rows = states_of(distances.states)[None]
            far_key, far_query = (heads(of(rows))[0] for of in (key_of, query_of))
            bias = disentangled_bias(query, key, far_query, far_key, distances.rows)
            query = query * jnp.asarray(3**-0.5, query.dtype)  # three terms in place of one
        drop = None
        if config.attention_dropout and not self.deterministic:
            drop = nn.Dropout(config.attention_dropout, deterministic=False)
        mixed = attend(query, key, value, at.mask[:, None, None], bias=bias, drop=drop)
        mixed = states(mixed.reshape(*mixed.shape[:2], config.hidden))
        y = dense(config, config.hidden, "output")(mixed)
        if config.traits.attention_output_dropout:
            y = nn.Dropout(config.hidden_dropout, deterministic=self.deterministic)(y)
        return _normalise(config, x + y)


class FeedForward(nn.Module):
    """Feed-forward block with residual connection and LayerNorm."""

    config: EncoderConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x: Float[Array, "*rows h"]) -> Float[Array, "*rows h"]:
        """Apply the block."""
        config = self.config
        y = dense(config, config.intermediate, "intermediate")(x)
        y = dense(config, config.hidden, "output")(activate(config.activation, y))
        if config.traits.feed_forward_dropout:
            y = nn.Dropout(config.hidden_dropout, deterministic=self.deterministic)(y)
        return _normalise(config, x + y)


class Layer(nn.Module):
    """One encoder layer."""

    config: EncoderConfig
    deterministic: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*rows h"],
        at: Layout,
        first_tokens: int | None = None,
        bias: Float[Array, "1 heads t t"] | None = None,
        distances: Distances | None = None,
    ) -> Float[Array, "*rows_left h"]:
        """Apply the layer; with `first_tokens`, to ``[n, first_tokens, h]`` of each text only."""
        attention = Attention(self.config, self.deterministic, name="attention")
        x = attention(x, at, first_tokens, bias, distances)
        return FeedForward(self.config, self.deterministic, name="feed_forward")(x)


class Encoder(nn.Module):
    """Embeddings, layers and pooling of a frozen or trained base model."""

    config: EncoderConfig

    @nn.compact
    def __call__(
        self,
        input_ids: Tokens,
        attention_mask: Mask,
        token_types: Tokens | None = None,
        *,
        deterministic: bool = True,
        pooled_only: bool = False,
        at: Places | None = None,
    ) -> Encoded:
        """Encode a batch.

        Args:
          input_ids: token ids.
          attention_mask: True for tokens, False for padding.
          token_types: segment of each token; None means all 0. Ignored by DistilBERT, which has
            no segments.
          deterministic: False applies dropout, with keys from the ``dropout`` stream.
          pooled_only: compute the last layer only for the tokens that pooling reads.
          at: compute no padding: ascending indices of the tokens in the flattened batch, followed
            by ``n * t`` for spare rows. The states of padding are then 0.

        Raises:
          InputError: texts longer than the position table, or a mask that is not boolean.
        """
        config = self.config
        check_batch(config, input_ids, attention_mask)
        x = Embeddings(config, deterministic, name="embeddings")(input_ids, token_types)
        bias = None
        if config.traits.relative_positions:
            bias = RelativePositions(config.heads, name="relative_positions")(input_ids.shape[1])
        distances = self._distances(input_ids.shape[1]) if config.traits.disentangled else None
        if config.projects_embeddings:
            x = dense(config, config.hidden, "projection")(x)
        where = layout(jnp.asarray(attention_mask), None if at is None else jnp.asarray(at))
        first = pooled_only and config.pooling == "family"
        # In a loop, all layers must return the shapes that they take.
        unrolled = layer_stack.is_unrolled(config.layers, config.scan_unroll)
        first_tokens = 1 if first and unrolled else None
        x = layer_stack.run(
            Layer(config, deterministic, name="layers"),
            lambda layer, x, last: layer(x, where, first_tokens if last else None, bias, distances),
            where.states(x),
            count=config.layers,
            scan_unroll=config.scan_unroll,
            shared=config.traits.shared_layers,
            remat=config.remat,
        )
        x = where.texts(x) if first_tokens is None else x
        return Encoded(hidden=x, pooled=self._pool(x, where.mask))

    def _distances(self, tokens: int) -> Distances:
        """Embeddings of the buckets of distances, and the bucket of every two tokens."""
        config = self.config
        buckets, longest = config.distance_buckets, config.longest_distance
        table = nn.Embed(2 * buckets, config.hidden, name="distances")
        states = table(jnp.arange(2 * buckets)).astype(config.dtype)
        if config.distance_norm:
            states = layer_norm(
                states, name="distance_norm", eps=config.layer_norm_eps, dtype=config.dtype
            )
        return Distances(states, distance_rows(tokens, buckets, longest))

    def _pool(self, hidden: Array, mask: Array) -> Float[Array, "n h"]:
        if self.config.pooling == "mean":
            return mean_of_tokens(hidden, mask)
        first = hidden[:, 0].astype(jnp.float32)
        if self.config.has_pooler:
            return jnp.tanh(
                dense(self.config, self.config.hidden, "pooler", dtype="float32")(first)
            )
        return first


def mean_of_tokens(hidden: Float[Array, "n t h"], mask: Bool[Array, "n t"]) -> Float[Array, "n h"]:
    """Float32 mean of the states that are not padding; 0 for a text without tokens."""
    weight = mask.astype(jnp.float32)[:, :, None]
    total = jnp.sum(hidden.astype(jnp.float32) * weight, axis=1)
    return total / jnp.maximum(jnp.sum(weight, axis=1), 1.0)


def check_batch(
    config: EncoderConfig | DecoderConfig, input_ids: Tokens, attention_mask: Mask
) -> None:
    """Check a batch before an encoder or decoder reads it.

    Raises:
      InputError: texts longer than the config's ``max_tokens``, or a mask that is not boolean.
    """
    if input_ids.shape[1] > config.max_tokens:
        raise InputError(
            f"The texts have {input_ids.shape[1]} tokens but this {config.family} model takes at "
            f"most {config.max_tokens}; truncate them."
        )
    if attention_mask.dtype != jnp.bool_:
        raise InputError(
            f"attention_mask must be boolean, not {attention_mask.dtype}; pass mask != 0."
        )
