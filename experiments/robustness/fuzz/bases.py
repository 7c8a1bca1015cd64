"""Small random checkpoints of every family, saved by `transformers`, with a tokenizer of words."""

import pathlib
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import transformers

from fedjax_lora import data, interop, lora, models

ENCODERS = ("albert", "bert", "distilbert", "roberta")
DECODERS = ("llama", "mistral", "qwen2", "qwen3")
FAMILIES = (*ENCODERS, *DECODERS)
WORDS = string.ascii_lowercase
VOCABULARY = 32
LABELS = 3
TEXTS = tuple(
    " ".join(WORDS[(7 * row + 3 * n) % 26] for n in range(length))
    for row, length in enumerate((9, 3, 6, 1, 5))
)
LONG_TEXTS = tuple(
    " ".join(WORDS[(7 * row + 3 * n) % 26] for n in range(length))
    for row, length in enumerate((16, 3, 9, 1, 13))
)
"""Texts beyond the small windows of decoders."""

SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
MORE: Mapping[str, Mapping[str, Any]] = {
    "albert": {"embedding_size": 8, "pad_token_id": 0},
    "bert": {"pad_token_id": 0},
    "distilbert": {"pad_token_id": 0},
    "roberta": {"pad_token_id": 1},
    **{
        name: {"num_key_value_heads": 2, "pad_token_id": 0, "rms_norm_eps": 1e-3}
        for name in DECODERS
    },
}

CLASSES: Mapping[str, type] = {
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "QUESTION_ANS": transformers.AutoModelForQuestionAnswering,
    "FEATURE_EXTRACTION": transformers.AutoModel,
    "MASKED_LM": transformers.AutoModelForMaskedLM,
}
"""The class of `transformers` for a task of PEFT, and for a masked language model."""


class Tokens(NamedTuple):
    """A batch of texts, and which of its tokens are no padding."""

    inputs: Mapping[str, torch.Tensor]
    mask: np.ndarray


def config(family: str, **fields: Any) -> transformers.PreTrainedConfig:
    """A small config of a family."""
    given = {**SIZES, **MORE[family], "num_labels": LABELS, **fields}
    if "id2label" in given:
        given.pop("num_labels")
    given = {name: value for name, value in given.items() if value != "absent"}
    return transformers.AutoConfig.for_model(family, attn_implementation="eager", **given)


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Draw every parameter at random, also those that are constant at first."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(0, 0.3)
            if "norm" in name.lower() and name.endswith("weight"):
                value.add_(1.0)


def save(
    folder: pathlib.Path, family: str, task: str, *, seed: int = 0, pad: bool = True, **fields: Any
) -> pathlib.Path:
    """Save a random model and its tokenizer.

    Args:
      folder: the folder of the checkpoint.
      family: a name in `FAMILIES`.
      task: a key of `CLASSES`.
      seed: of the parameters.
      pad: whether config and tokenizer of a decoder have a padding token.
      **fields: of the config.
    """
    if not pad:
        fields["pad_token_id"] = None
    if task == "QUESTION_ANS":
        fields["num_labels"] = 2  # the ends of a span
    model = CLASSES[task].from_config(config(family, **fields))
    randomize(model, seed)
    model.save_pretrained(folder)
    tokenizer(family, pad=pad).save_pretrained(folder)
    return folder


def tokenizer(
    family: str, *, pad: bool = True, side: str = "right", ends: bool = False
) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer whose words are letters.

    Args:
      family: decides on the special tokens.
      pad: whether there is a padding token.
      side: of the padding.
      ends: whether a decoder's texts end with the end-of-text token.
    """
    import tokenizers
    from tokenizers import pre_tokenizers, processors

    special = {
        "roberta": ("<s>", "<pad>", "</s>", "<unk>"),
        **dict.fromkeys(DECODERS, ("<pad>", "<s>", "</s>", "<unk>")),
    }.get(family, ("[PAD]", "[UNK]", "[CLS]", "[SEP]"))
    vocabulary = {word: n for n, word in enumerate((*special, *WORDS, "Ġ"))}
    unknown = "[UNK]" if "[UNK]" in special else "<unk>"
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=unknown))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    names: dict[str, str] = {"unk_token": unknown}
    if family in ENCODERS:
        first, last = ("<s>", "</s>") if family == "roberta" else ("[CLS]", "[SEP]")
        names |= {"cls_token": first, "sep_token": last}
        words.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}",
            pair=f"{first} $A {last} $B:1 {last}:1",
            special_tokens=[(first, vocabulary[first]), (last, vocabulary[last])],
        )
    else:
        names |= {"bos_token": "<s>", "eos_token": "</s>"}
        if ends:
            words.post_processor = processors.TemplateProcessing(
                single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
            )
    if pad:
        names["pad_token"] = next(word for word in special if "pad" in word.lower())
    inputs = ["input_ids", "attention_mask"]
    if family in ("bert", "albert"):
        inputs.insert(1, "token_type_ids")
    if family == "qwen2":  # `transformers` replaces any other class for this family
        qwen = transformers.Qwen2Tokenizer(
            vocab=vocabulary, merges=[], padding_side=side, **{"pad_token": None, **names}
        )
        if ends:
            qwen.backend_tokenizer.post_processor = words.post_processor
        return qwen
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, padding_side=side, model_input_names=inputs, **names
    )


def batch(folder: pathlib.Path, texts: Sequence[str] = TEXTS) -> Tokens:
    """Tokenise texts with the tokenizer in a folder, as its users do."""
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    if loaded.pad_token is None:
        loaded.pad_token = loaded.eos_token
    inputs = loaded(list(texts), padding=True, return_tensors="pt")
    return Tokens(dict(inputs), inputs["attention_mask"].bool().numpy())


def torch_logits(model: Any, tokens: Tokens) -> np.ndarray:
    """The model's logits of every text, or of every token: each text alone, without padding.

    See `padding_matters` for batches with padding. Short texts come first, because a dynamic RoPE
    keeps the stretch of the longest text so far.
    """
    found = {}
    for row in np.argsort(tokens.mask.sum(axis=1), kind="stable"):
        kept = torch.tensor(tokens.mask[row])
        found[row] = _outputs(model, {k: x[row : row + 1, kept] for k, x in tokens.inputs.items()})
    rows = [found[row] for row in range(len(found))]
    return np.concatenate(rows if rows[0].ndim == 2 else [x[0] for x in rows])


def padding_matters(model: Any, tokens: Tokens, alone: np.ndarray) -> str:
    """In words, whether the model's logits of a padded batch differ from those of each text alone.

    Args:
      model: of `transformers` or PEFT.
      tokens: the batch.
      alone: from `torch_logits`.
    """
    try:
        batch = _outputs(model, tokens.inputs)
    except Exception as error:
        return f"a padded batch raises {type(error).__name__}"
    batch = batch if batch.ndim == 2 else batch[tokens.mask]
    return "" if np.allclose(batch, alone, atol=1e-3) else "a padded batch changes the numbers"


@torch.no_grad()
def _outputs(model: Any, inputs: Mapping[str, torch.Tensor]) -> np.ndarray:
    return _first_output(model.eval()(**inputs))


def _first_output(outputs: Any) -> np.ndarray:
    return (outputs["logits"] if "logits" in outputs else outputs[0]).float().numpy()


def our_logits(
    model: interop.TrainedModel, tokens: Tokens, texts: Sequence[str] = TEXTS
) -> np.ndarray:
    """Our logits of every text, or of every token that is no padding for a language model."""
    if not model.metadata.language:
        split = data.Split([*texts], None, np.zeros(len(texts), np.int32), None)
        return interop.make_logits_fn(model.pretrained, interop.tokenize(model, split))(model)
    params = model.adapted_params
    ids = tokens.inputs["input_ids"].numpy().astype(np.int32)

    @jax.jit
    def compute(base: Any, adapter: Any, gain: Any) -> Any:
        module = model.pretrained.module
        hidden = lora.apply(module, base, adapter, gain, ids, tokens.mask).hidden
        return models.logits(base, hidden)

    return np.asarray(compute(params.base, params.trained.adapter, params.gain))[tokens.mask]
