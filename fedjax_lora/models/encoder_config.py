"""Configuration of an encoder."""

import dataclasses
import math
from collections.abc import Iterator

from fedjax_lora.core.errors import raise_all
from fedjax_lora.models import config_checks
from fedjax_lora.models.families import FAMILIES, Family


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Configuration that determines an encoder's parameter shapes and its function.

    Attributes:
      family: a key of `families.FAMILIES`.
      vocab_size: rows of the token embedding table.
      embedding_size: width of the embedding tables; equals `hidden` unless factorised.
      hidden: width of the hidden states.
      layers: number of layers that run.
      heads: attention heads; divides `hidden`.
      intermediate: width inside the feed-forward block.
      max_positions: rows of the position embedding table; see `max_tokens`.
      distance_buckets: buckets of distances on each side, of a family with disentangled attention.
      longest_distance: the distance from which on all are in one bucket.
      distance_norm: the embeddings of distances are normalised.
      type_vocab: rows of the token-type table; 0 for a family without one.
      pad_token_id: the id that position counting skips (RoBERTa).
      layer_norm_eps: added to the variance in every LayerNorm.
      activation: a key of `activations.ACTIVATIONS`, by its Hugging Face name.
      hidden_dropout: rate on embeddings and on the residual branches.
      attention_dropout: rate on attention weights.
      head_dropout: rate inside the classification head.
      initializer_range: standard deviation of newly initialised kernels and tables.
      num_labels: width of the logits; 1 for regression.
      pooling: ``family`` as in Hugging Face's classes, or ``mean`` over tokens without padding.
      dtype: compute dtype of matrix products; parameters, LayerNorm, softmax and logits are
        float32.
      remat: recompute each layer in the backward pass instead of storing its activations.
      scan_unroll: layers per step of the layer loop; None chooses by backend.
      architectures: class names in the checkpoint's config.
    """

    family: str
    vocab_size: int
    embedding_size: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    max_positions: int
    type_vocab: int
    pad_token_id: int
    distance_buckets: int = 0
    longest_distance: int = 0
    distance_norm: bool = False
    layer_norm_eps: float = 1e-12
    activation: str = "gelu"
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    head_dropout: float = 0.1
    initializer_range: float = 0.02
    num_labels: int = 2
    pooling: str = "family"
    dtype: str = "float32"
    remat: bool = False
    scan_unroll: int | None = None
    architectures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        raise_all("The encoder cannot be built", _problems(self))

    @property
    def traits(self) -> Family:
        """Properties of the model family."""
        return FAMILIES[self.family]

    @property
    def prefix(self) -> str:
        """Prefix of the base model's tensors in a Hugging Face checkpoint with a head."""
        return self.traits.prefix

    def with_dropout(self, rate: float) -> "EncoderConfig":
        """Return the config with this dropout rate everywhere."""
        return dataclasses.replace(
            self, hidden_dropout=rate, attention_dropout=rate, head_dropout=rate
        )

    @property
    def head(self) -> str:
        """Key of the head in `heads.HEADS`: the family's, or the linear one with mean pooling."""
        return self.traits.head if self.pooling == "family" else "linear"

    @property
    def projects_embeddings(self) -> bool:
        """Whether a projection leads from the embeddings to the hidden width."""
        traits = self.traits
        wider = traits.square_projection or self.embedding_size != self.hidden
        return traits.factorised and wider

    @property
    def has_pooler(self) -> bool:
        """Whether the tanh pooler is used; mean pooling does not use it."""
        return self.traits.pooler and self.pooling == "family"

    @property
    def first_position(self) -> int:
        """Row of the position table for the first token."""
        return self.pad_token_id + 1 if self.traits.padded_positions else 0

    @property
    def max_tokens(self) -> int:
        """Longest text in tokens: rows of the position table from the first position on."""
        return self.max_positions - self.first_position


def _problems(config: EncoderConfig) -> Iterator[str]:
    """Yield a message for every field that is out of range."""
    rates = ("hidden_dropout", "attention_dropout", "head_dropout")
    yield from config_checks.problems(config, families=FAMILIES, rates=rates)
    yield from config_checks.sizes(config, {"embedding_size": config_checks.LARGEST["hidden"]})
    yield from config_checks.sizes(config, {"type_vocab": 2**16}, least=0)
    if config.family in FAMILIES and config.traits.disentangled:
        yield from config_checks.sizes(config, {"distance_buckets": 2**16}, least=4)
        if config.longest_distance <= config.distance_buckets // 2 + 1:
            yield f"longest_distance is {config.longest_distance}, which the buckets do not need"
    if not 0 < config.layer_norm_eps < math.inf:
        yield f"layer_norm_eps is {config.layer_norm_eps} but must be above 0 and finite"
    if config.family in FAMILIES and not 0 <= config.first_position < config.max_positions:
        yield f"pad_token_id {config.pad_token_id} leaves none of {config.max_positions} positions"
    if config.num_labels < 1:
        yield f"num_labels is {config.num_labels} but must be at least 1 (1 means regression)"
    if config.heads > 0 and config.hidden % config.heads:
        yield f"hidden size {config.hidden} is not a multiple of the {config.heads} heads"
