"""The frozen record that an encoder is built from."""

import dataclasses
import math
from collections.abc import Iterator

from fedjax_lora.core.errors import raise_all
from fedjax_lora.models import config_checks
from fedjax_lora.models.families import FAMILIES, Family


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Everything that decides an encoder's shapes and its function, given its parameters.

    Attributes:
      family: a key of `families.FAMILIES`.
      vocab_size: rows of the token embedding table.
      embedding_size: width of the embedding tables; equals `hidden` unless factorised.
      hidden: width of the hidden states.
      layers: number of layers that run.
      heads: attention heads; divides `hidden`.
      intermediate: width inside the feed-forward block.
      max_positions: rows of the position embedding table; `max_tokens` says what fits.
      type_vocab: rows of the token-type table; 0 for a family without one.
      pad_token_id: the id that position counting skips (RoBERTa).
      layer_norm_eps: added to the variance in every LayerNorm.
      activation: a key of `activations.ACTIVATIONS`, by its Hugging Face name.
      hidden_dropout: rate on embeddings and on what each block adds.
      attention_dropout: rate on attention weights.
      head_dropout: rate inside the classification head.
      initializer_range: standard deviation of newly initialised kernels and tables.
      num_labels: width of the logits; 1 for regression.
      pooling: ``family`` as Hugging Face does it, ``mean`` over the tokens that are not padding.
      dtype: what matrix products compute in; parameters, LayerNorm, softmax and logits stay
        float32.
      remat: recompute each layer in the backward pass instead of storing its activations.
      scan_unroll: layers per step of the layer loop; None picks by backend.
      architectures: class names the checkpoint was saved from, as its config lists them.
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
        """The facts of this config's family."""
        return FAMILIES[self.family]

    @property
    def prefix(self) -> str:
        """The base model's name inside a Hugging Face checkpoint with a head."""
        return self.traits.prefix

    def with_dropout(self, rate: float) -> "EncoderConfig":
        """The same model with this rate in every dropout."""
        return dataclasses.replace(
            self, hidden_dropout=rate, attention_dropout=rate, head_dropout=rate
        )

    @property
    def head(self) -> str:
        """Which head is used: a mean has no family head of its own, so it gets the linear one."""
        return self.traits.head if self.pooling == "family" else "linear"

    @property
    def has_pooler(self) -> bool:
        """Whether the tanh pooler takes part; a mean does not go through it."""
        return self.traits.pooler and self.pooling == "family"

    @property
    def first_position(self) -> int:
        """The position table's row of the first token."""
        return self.pad_token_id + 1 if self.traits.padded_positions else 0

    @property
    def max_tokens(self) -> int:
        """The longest input: rows of the position table from the first position on."""
        return self.max_positions - self.first_position


def _problems(config: EncoderConfig) -> Iterator[str]:
    """Every field that is out of range, in words."""
    rates = ("hidden_dropout", "attention_dropout", "head_dropout")
    yield from config_checks.problems(config, families=FAMILIES, rates=rates)
    yield from config_checks.sizes(config, {"embedding_size": config_checks.LARGEST["hidden"]})
    yield from config_checks.sizes(config, {"type_vocab": 2**16}, least=0)
    if not 0 < config.layer_norm_eps < math.inf:
        yield f"layer_norm_eps is {config.layer_norm_eps} but must be above 0 and finite"
    if config.family in FAMILIES and not 0 <= config.first_position < config.max_positions:
        yield f"pad_token_id {config.pad_token_id} leaves none of {config.max_positions} positions"
    if config.num_labels < 1:
        yield f"num_labels is {config.num_labels} but must be at least 1 (1 means regression)"
    if config.heads > 0 and config.hidden % config.heads:
        yield f"hidden size {config.hidden} is not a multiple of the {config.heads} heads"
