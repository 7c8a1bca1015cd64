"""A tokenizer with one token per character, for tests that read tokens back as text."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

START, END = 1, 2
SIZE = 101


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A start token in front of every text, no padding token, no chat template."""
    letters = ["<s>", "</s>", "<?>", *map(chr, range(32, 127)), "\n"]
    made = Tokenizer(models.WordLevel({c: n + 1 for n, c in enumerate(letters)}, unk_token="<?>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", START)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<?>"
    )
