"""Configuration of a decoder."""

import dataclasses
from collections.abc import Iterator

from fedjax_lora.core.errors import raise_all
from fedjax_lora.models import config_checks, rope
from fedjax_lora.models.rope import Rope

DECODERS = ("llama", "mistral", "qwen2", "qwen3")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Configuration that determines a decoder's parameter shapes and its function.

    Attributes:
      family: the architecture's name, one of `DECODERS`; the other fields express how the families
        differ.
      vocab_size: rows of the token embedding table.
      hidden: width of the hidden states.
      layers: number of layers that run.
      heads: attention heads.
      kv_heads: heads of keys and values; divides `heads`.
      head_dim: features of a head.
      intermediate: width inside the feed-forward block.
      max_positions: the context window that the checkpoint states; see `max_tokens`.
      rope: the position embedding.
      norm_eps: added to the mean square in every RMSNorm.
      activation: of the gate, a key of `activations.ACTIVATIONS`.
      qkv_bias: query, key and value have biases.
      output_bias: the attention's output projection has one.
      mlp_bias: the feed-forward projections have them.
      qk_norm: queries and keys are normalised per head.
      sliding_window: number of tokens, itself included, to which a token attends in a sliding
        layer; None if there is no such layer.
      full_layers: indices of the layers with full attention in spite of `sliding_window`.
      tied: the embedding table is also the vocabulary matrix.
      attention_dropout: rate on attention weights.
      initializer_range: standard deviation of newly initialised kernels and tables.
      num_labels: width of a classifier's logits; 1 for regression; 0 for a language model.
      pooling: input of a classifier's head: the last token (``family``) or the ``mean`` of all.
      dtype: compute dtype of matrix products; RMSNorm, softmax and logits are float32.
      remat: recompute each layer in the backward pass instead of storing its activations.
      scan_unroll: layers per step of the layer loop; None chooses by backend.
      architectures: class names in the checkpoint's config.
    """

    family: str
    vocab_size: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    max_positions: int
    rope: Rope = dataclasses.field(default_factory=Rope)
    norm_eps: float = 1e-6
    activation: str = "silu"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    full_layers: tuple[int, ...] = ()
    tied: bool = False
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    num_labels: int = 0
    pooling: str = "family"
    dtype: str = "float32"
    remat: bool = False
    scan_unroll: int | None = None
    architectures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        raise_all("The decoder cannot be built", _problems(self))

    @property
    def prefix(self) -> str:
        """Prefix of the base model's tensors in a Hugging Face checkpoint with a head."""
        return "model"

    def with_dropout(self, rate: float) -> "DecoderConfig":
        """Return the config with this dropout rate everywhere."""
        return dataclasses.replace(self, attention_dropout=rate)

    @property
    def max_tokens(self) -> int:
        """Longest text in tokens: the stated window, or the stretched one if that is longer."""
        if self.rope.type in ("linear", "dynamic"):
            return int(self.max_positions * self.rope.factor)
        return max(self.max_positions, int(self.rope.original_positions * self.rope.factor))


def _problems(config: DecoderConfig) -> Iterator[str]:
    """Yield a message for every field that is out of range."""
    yield from config_checks.problems(config, families=DECODERS, rates=("attention_dropout",))
    yield from config_checks.sizes(config, {"kv_heads": config_checks.LARGEST["heads"]})
    if config.kv_heads > 0 and config.heads % config.kv_heads:
        yield f"the {config.heads} heads are not a multiple of the {config.kv_heads} kv_heads"
    if config.head_dim < 4 or config.head_dim % 2:
        yield f"head_dim is {config.head_dim} but must be even and at least 4"
    if config.num_labels < 0:
        yield f"num_labels is {config.num_labels} but must be at least 0 (0: a language model)"
    if config.sliding_window is not None and config.sliding_window < 1:
        yield f"sliding_window is {config.sliding_window} but must be at least 1, or None"
    yield from rope.problems(config.rope)
