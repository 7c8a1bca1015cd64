"""Configuration of a decoder."""

import dataclasses
import math
from collections.abc import Iterator

from fedjax_lora.core.errors import raise_all, unknown
from fedjax_lora.models import config_checks, rope
from fedjax_lora.models.activations import ACTIVATIONS
from fedjax_lora.models.rope import Rope

DECODERS = (
    "gemma2",
    "gemma3_text",
    "gpt2",
    "internlm3",
    "llama",
    "mistral",
    "opt",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
)
ENCODERS = ("modernbert",)
"""Encoders with the layers of a decoder, whose tokens attend in both directions."""

WITHOUT_CLASSIFIER = ("internlm3",)
"""Families for which `transformers` has no class with a classification head."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Configuration that determines a decoder's parameter shapes and its function.

    Attributes:
      family: the architecture's name, one of `DECODERS` or `ENCODERS`; the other fields express how
        the families differ.
      vocab_size: rows of the token embedding table.
      hidden: width of the hidden states.
      layers: number of layers that run.
      heads: attention heads.
      kv_heads: heads of keys and values; divides `heads`.
      head_dim: features of a head.
      intermediate: width inside the feed-forward block.
      max_positions: the context window that the checkpoint states; see `max_tokens`.
      causal: tokens attend to earlier tokens alone; False for an encoder.
      rope: the position embedding; None for a learned table of `max_positions` rows, added to the
        token embeddings.
      first_position: rows of that table before the one of position 0.
      local_rope: that of sliding layers, if it is another one; None if not.
      unrotated_layers: indices of the layers without a position embedding.
      layer_norm: every norm is a LayerNorm, not an RMSNorm.
      norm_bias: LayerNorms have biases.
      embedding_norm: the embeddings are normalised, and not again in the first layer.
      norm_eps: added to the mean square (or variance) in every norm.
      norm_offset: added to the stored scales of every RMSNorm.
      sandwich_norms: blocks normalise their outputs too, before the residual is added.
      embedding_scale: multiplier of the token embeddings.
      gated: the feed-forward block multiplies its inner features by a gate.
      activation: of the gate, or of the inner features without one; a key of
        `activations.ACTIVATIONS`.
      qkv_bias: query, key and value have biases.
      output_bias: the attention's output projection has one.
      mlp_bias: the feed-forward projections have them.
      qk_norm: queries and keys are normalised per head.
      fused: query, key and value are one matrix, and so are gate and up if there is a gate.
      attention_scale: multiplier of the products of queries and keys; None for ``head_dim**-0.5``.
      attention_softcap: limit of their size, by a tanh; None for none.
      logit_softcap: likewise of a language model's logits.
      sliding_window: number of tokens, itself included, to which a token attends in a sliding
        layer, and in an encoder one more of earlier and of later tokens each; None if there is no
        such layer.
      full_layers: indices of the layers with full attention in spite of `sliding_window`.
      tied: the embedding table is also the vocabulary matrix.
      attention_dropout: rate on attention weights.
      hidden_dropout: rate on the residual branches.
      embedding_dropout: rate on the embeddings.
      head_dropout: rate inside an encoder's classification head.
      initializer_range: standard deviation of newly initialised kernels and tables.
      num_labels: width of a classifier's logits; 1 for regression; 0 for a language model.
      pooling: input of a classifier's head: the last token, or of an encoder what `head_pooling`
        says (``family``); or the ``mean`` of all, with a linear head.
      head_pooling: input of an encoder's own head: the ``first`` token or the ``mean`` of all.
      head_activation: inside an encoder's own head, a key of `activations.ACTIVATIONS`.
      head_bias: the first layer of that head has a bias.
      dtype: compute dtype of matrix products; norms, softmax and logits are float32.
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
    causal: bool = True
    rope: Rope | None = dataclasses.field(default_factory=Rope)
    first_position: int = 0
    local_rope: Rope | None = None
    unrotated_layers: tuple[int, ...] = ()
    layer_norm: bool = False
    norm_bias: bool = True
    embedding_norm: bool = False
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    sandwich_norms: bool = False
    embedding_scale: float = 1.0
    gated: bool = True
    activation: str = "silu"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    fused: bool = False
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    sliding_window: int | None = None
    full_layers: tuple[int, ...] = ()
    tied: bool = False
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    embedding_dropout: float = 0.0
    head_dropout: float = 0.0
    initializer_range: float = 0.02
    num_labels: int = 0
    pooling: str = "family"
    head_pooling: str = "first"
    head_activation: str = "gelu"
    head_bias: bool = False
    dtype: str = "float32"
    remat: bool = False
    scan_unroll: int | None = None
    architectures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        raise_all("The decoder cannot be built", _problems(self))

    @property
    def prefix(self) -> str:
        """Prefix of the base model's tensors in a Hugging Face checkpoint with a head."""
        return "transformer" if self.family == "gpt2" else "model"

    def with_dropout(self, rate: float) -> "DecoderConfig":
        """Return the config with this dropout rate everywhere."""
        return dataclasses.replace(
            self,
            attention_dropout=rate,
            hidden_dropout=rate,
            embedding_dropout=rate,
            head_dropout=0.0 if self.causal else rate,
        )

    @property
    def max_tokens(self) -> int:
        """Longest text in tokens: the stated window, or the stretched one if that is longer."""
        if self.rope is None:
            return self.max_positions
        if self.rope.type in ("linear", "dynamic"):
            return int(self.max_positions * self.rope.factor)
        return max(self.max_positions, int(self.rope.original_positions * self.rope.factor))


def _problems(config: DecoderConfig) -> Iterator[str]:
    """Yield a message for every field that is out of range."""
    rates = ("attention_dropout", "hidden_dropout", "embedding_dropout", "head_dropout")
    families = (*DECODERS, *ENCODERS)
    yield from config_checks.problems(config, families=families, rates=rates)
    yield from config_checks.sizes(config, {"first_position": 2**16}, least=0)
    yield from config_checks.sizes(config, {"kv_heads": config_checks.LARGEST["heads"]})
    if config.kv_heads > 0 and config.heads % config.kv_heads:
        yield f"the {config.heads} heads are not a multiple of the {config.kv_heads} kv_heads"
    if config.head_dim < 4 or config.head_dim % 2:
        yield f"head_dim is {config.head_dim} but must be even and at least 4"
    if config.num_labels < 0:
        yield f"num_labels is {config.num_labels} but must be at least 0 (0: a language model)"
    yield from _head_problems(config)
    if config.sliding_window is not None and config.sliding_window < 1:
        yield f"sliding_window is {config.sliding_window} but must be at least 1, or None"
    yield from _scale_problems(config)
    yield from _rope_problems(config)


def _head_problems(config: DecoderConfig) -> Iterator[str]:
    if config.head_activation not in ACTIVATIONS:
        yield str(unknown("activation of the head", config.head_activation, ACTIVATIONS)).rstrip(
            "."
        )
    if config.head_pooling not in ("first", "mean"):
        yield f"head_pooling is {config.head_pooling!r} but must be first or mean"


def _scale_problems(config: DecoderConfig) -> Iterator[str]:
    for name in ("attention_scale", "attention_softcap", "logit_softcap"):
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            yield f"{name} is {value} but must be above 0 and finite, or None"


def _rope_problems(config: DecoderConfig) -> Iterator[str]:
    ropes = [rope for rope in (config.rope, config.local_rope) if rope is not None]
    for one in ropes:
        yield from rope.problems(one)
    # One factor and one table of angles serve all layers.
    if config.local_rope is not None and "dynamic" in {one.type for one in ropes}:
        yield "rope type 'dynamic' in a model whose sliding layers have another one"
    several = config.local_rope is not None or config.unrotated_layers
    if several and any(one.attention_factor != 1 for one in ropes):
        yield "a rope attention factor in a model whose layers differ in their position embedding"
