"""Causal language models, and decoders and encoders of their layers with a classification head."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fedjax_lora.core.types import Params
from fedjax_lora.models.activations import ACTIVATIONS
from fedjax_lora.models.decoder import Decoded, Decoder
from fedjax_lora.models.decoder_config import DecoderConfig
from fedjax_lora.models.encoder import Mask, Tokens, mean_of_tokens
from fedjax_lora.models.kv_cache import Cache
from fedjax_lora.models.norms import layer_norm


class LanguageModel(nn.Module):
    """A decoder and its vocabulary matrix, for use with `logits`.

    Parameters are ``{'decoder': ..., 'vocabulary': ..., 'head': {}}``, without ``vocabulary`` if it
    is tied to the embedding table. A language model has no head to train.
    """

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
        """Compute the hidden states of a batch; see `Decoder` for the arguments."""
        if not self.config.tied and self.is_initializing():
            rows = nn.Embed(self.config.vocab_size, self.config.hidden, name="vocabulary")
            rows(jnp.zeros((), jnp.int32))
        return Decoder(self.config, name="decoder")(
            input_ids,
            attention_mask,
            positions=positions,
            cache=cache,
            deterministic=deterministic,
        )


def logits(
    params: Params, hidden: Float[Array, "*n h"], *, softcap: float | None = None
) -> Float[Array, "*n V"]:
    """Compute float32 logits over the vocabulary.

    This is the largest array of a language model: call the function only for the states that need
    logits, in parts.

    Args:
      params: of a `LanguageModel`.
      hidden: hidden states, in the compute dtype.
      softcap: the config's ``logit_softcap``.
    """
    part = params["vocabulary"] if "vocabulary" in params else params["decoder"]["embed_tokens"]
    table = part["embedding"].astype(hidden.dtype)
    values = jax.lax.dot_general(
        hidden,
        table,
        (((hidden.ndim - 1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    return values if softcap is None else softcap * jnp.tanh(values / softcap)


class ModernClassifier(nn.Module):
    """An encoder with a decoder's layers and a head; parameters are ``{'encoder', 'head'}``.

    The head of ModernBERT (arXiv 2412.13663) is a layer, a norm and the output layer, on the first
    token or the mean of all, as the config says; with mean pooling it is one linear layer.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        input_ids: Tokens,
        attention_mask: Mask,
        token_types: Tokens | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "n labels"]:
        """Compute float32 logits; the model has no token types and ignores `token_types`."""
        config = self.config
        encoder = Decoder(config, name="encoder")
        hidden = encoder(input_ids, attention_mask, deterministic=deterministic).hidden
        own = config.pooling == "family"
        if own and config.head_pooling == "first":
            pooled = hidden[:, 0].astype(jnp.float32)
        else:
            pooled = mean_of_tokens(hidden, jnp.asarray(attention_mask))
        return PredictionHead(config, deterministic, name="head")(pooled)


class PredictionHead(nn.Module):
    """The head of a `ModernClassifier`, in float32."""

    config: DecoderConfig
    deterministic: bool

    @nn.compact
    def __call__(self, pooled: Float[Array, "n h"]) -> Float[Array, "n labels"]:
        """Compute logits."""
        config = self.config
        if config.pooling == "family":
            dense = nn.Dense(config.hidden, use_bias=config.head_bias, name="dense")
            pooled = ACTIVATIONS[config.head_activation](dense(pooled))
            options = {"eps": config.norm_eps, "dtype": "float32", "bias": config.norm_bias}
            pooled = layer_norm(pooled, name="norm", **options)
        pooled = nn.Dropout(config.head_dropout, deterministic=self.deterministic)(pooled)
        return nn.Dense(config.num_labels, name="classifier")(pooled)


class DecoderClassifier(nn.Module):
    """A decoder with a linear head without bias; parameters are ``{'decoder', 'head'}``.

    The head is applied to the last token that is not padding, as in Hugging Face's
    ``ForSequenceClassification``, or to the mean of all such tokens.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        input_ids: Tokens,
        attention_mask: Mask,
        token_types: Tokens | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "n labels"]:
        """Compute float32 logits; decoders have no token types and ignore `token_types`."""
        decoder = Decoder(self.config, name="decoder")
        hidden = decoder(input_ids, attention_mask, deterministic=deterministic).hidden
        pool = mean_of_tokens if self.config.pooling == "mean" else last_token
        pooled = pool(hidden, jnp.asarray(attention_mask))
        return ScoreHead(self.config, name="head")(pooled)


def last_token(hidden: Float[Array, "n t h"], mask: Bool[Array, "n t"]) -> Float[Array, "n h"]:
    """Float32 state of each text's last token; padding may be on either side."""
    last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0].astype(jnp.float32)


class ScoreHead(nn.Module):
    """A linear classification head without bias, in float32."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, pooled: Float[Array, "n h"]) -> Float[Array, "n labels"]:
        """Compute logits."""
        return nn.Dense(self.config.num_labels, use_bias=False, name="score")(pooled)
