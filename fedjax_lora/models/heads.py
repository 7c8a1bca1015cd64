"""Classification heads of the encoder families, as in Hugging Face, and the full classifier."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from fedjax_lora.models.activations import ACTIVATIONS
from fedjax_lora.models.encoder import Encoder, Mask, Places, Tokens, dense
from fedjax_lora.models.encoder_config import EncoderConfig


class LinearHead(nn.Module):
    """Dropout and one linear layer: BERT, ALBERT, and every mean-pooled encoder."""

    config: EncoderConfig
    deterministic: bool

    @nn.compact
    def __call__(self, pooled: Float[Array, "n h"]) -> Float[Array, "n labels"]:
        """Logits."""
        pooled = nn.Dropout(self.config.head_dropout, deterministic=self.deterministic)(pooled)
        return _dense(self.config, self.config.num_labels, "classifier")(pooled)


class DenseHead(nn.Module):
    """RoBERTa and ELECTRA: a layer between two dropouts, then the output layer."""

    config: EncoderConfig
    deterministic: bool
    activation: str = "tanh"

    @nn.compact
    def __call__(self, pooled: Float[Array, "n h"]) -> Float[Array, "n labels"]:
        """Logits."""
        config = self.config
        x = nn.Dropout(config.head_dropout, deterministic=self.deterministic)(pooled)
        x = ACTIVATIONS[self.activation](_dense(config, config.hidden, "dense")(x))
        x = nn.Dropout(config.head_dropout, deterministic=self.deterministic)(x)
        return _dense(config, config.num_labels, "out_proj")(x)


class PreClassifierHead(nn.Module):
    """DistilBERT: a ReLU layer, dropout, then the output layer."""

    config: EncoderConfig
    deterministic: bool

    @nn.compact
    def __call__(self, pooled: Float[Array, "n h"]) -> Float[Array, "n labels"]:
        """Logits."""
        config = self.config
        x = jax.nn.relu(_dense(config, config.hidden, "pre_classifier")(pooled))
        x = nn.Dropout(config.head_dropout, deterministic=self.deterministic)(x)
        return _dense(config, config.num_labels, "classifier")(x)


class ContextHead(nn.Module):
    """DeBERTa-v3: a GELU layer, dropout, then the output layer."""

    config: EncoderConfig
    deterministic: bool

    @nn.compact
    def __call__(self, pooled: Float[Array, "n h"]) -> Float[Array, "n labels"]:
        """Logits."""
        config = self.config
        x = ACTIVATIONS["gelu"](_dense(config, config.hidden, "pooler")(pooled))
        x = nn.Dropout(config.head_dropout, deterministic=self.deterministic)(x)
        return _dense(config, config.num_labels, "classifier")(x)


HEADS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "context": ContextHead,
        "linear": LinearHead,
        "dense_gelu": functools.partial(DenseHead, activation="gelu"),
        "dense_tanh": DenseHead,
        "pre_classifier": PreClassifierHead,
    }
)


def _dense(config: EncoderConfig, features: int, name: str) -> nn.Dense:
    # A head reads one vector per text, so float32 is cheap and keeps the logits exact.
    return dense(config, features, name, dtype="float32")


class SequenceClassifier(nn.Module):
    """An encoder with a head; parameters are ``{'encoder': ..., 'head': ...}``.

    Use `load` or `random_params` for parameters; ``init`` does not follow Hugging Face's
    initialisation.
    """

    config: EncoderConfig

    @nn.compact
    def __call__(
        self,
        input_ids: Tokens,
        attention_mask: Mask,
        token_types: Tokens | None = None,
        *,
        deterministic: bool = True,
        at: Places | None = None,
    ) -> Float[Array, "n labels"]:
        """Compute float32 logits; see `Encoder` for the arguments."""
        encoded = Encoder(self.config, name="encoder")(
            input_ids,
            attention_mask,
            token_types,
            deterministic=deterministic,
            pooled_only=True,
            at=at,
        )
        head = HEADS[self.config.head](self.config, deterministic, name="head")
        return head(encoded.pooled)
