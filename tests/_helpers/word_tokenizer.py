"""A tokenizer of the words w0, w1, ... for the small random models."""

from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = 46
DECODER_SPECIALS = ("<unk>", "<s>", "</s>", "<other>")


def encoder_tokenizer(*, pad_id: int = 0) -> Any:
    """A start and an end, and token types of pairs."""
    specials = ["<s>", "</s>", "<unk>"]
    specials.insert(pad_id, "<pad>")
    end, start = (specials.index(name) for name in ("</s>", "<s>"))
    made = _words(specials)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[("<s>", start), ("</s>", end)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, cls_token="<s>", sep_token="</s>", pad_token="<pad>",
        unk_token="<unk>",
    )  # fmt: skip


def decoder_tokenizer(*, ends: bool = False) -> Any:
    """A start, an end if `ends`, and no padding token, as is usual for decoders."""
    made = _words(DECODER_SPECIALS)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if ends else "<s> $A",
        special_tokens=[("<s>", 1), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _words(specials: Any) -> Tokenizer:
    vocabulary = [*specials, *(f"w{n}" for n in range(WORDS))]
    made = Tokenizer(
        models.WordLevel({word: n for n, word in enumerate(vocabulary)}, unk_token="<unk>")
    )
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def byte_tokenizer() -> Any:
    """A token for each character of the words, as Qwen2's class in `transformers` needs it."""
    characters = dict.fromkeys([*DECODER_SPECIALS, "Ġ", *"0123456789w", *"unkow"])
    made = Tokenizer(models.BPE({word: n for n, word in enumerate(characters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
