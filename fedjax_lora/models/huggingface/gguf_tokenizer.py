"""The tokenizer in a GGUF file, made with the library `tokenizers`."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fedjax_lora.core.errors import InputError
from fedjax_lora.models.huggingface import gguf

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLITS: Mapping[str, str] = MappingProxyType(
    {
        "": "",
        "gpt-2": "",
        "gpt2": "",
        "smollm": "digits",
        "starcoder": "digits",
        "command-r": "digits",
        "llama-bpe": _LLAMA3,
        "llama3": _LLAMA3,
        "llama-v3": _LLAMA3,
        "qwen2": _QWEN2,
        "deepseek-r1-qwen": _QWEN2,
    }
)
"""How a text is split before merges, by llama.cpp's name of it: as in GPT-2 (an empty pattern), so
with single digits, or by a pattern."""

_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's types of tokens


def make(file: Path) -> Any:
    """Make the tokenizer of a GGUF file; None if the file has none.

    Raises:
      InputError: it is of a kind that is not read, or is not complete.
    """
    facts = gguf.metadata(file)
    kind = facts.get("tokenizer.ggml.model")
    if kind is None:
        return None
    makers = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in list(makers):
        raise InputError(
            f"{file} has a tokenizer of the kind {kind!r}, and only {', '.join(makers)} are read; "
            f"put a tokenizer.json into {file.parent}."
        )
    try:
        return _with_special_tokens(makers[kind](file, facts), facts)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise InputError(f"The tokenizer in {file} is damaged ({error}).") from error


def _byte_level(file: Path, facts: Mapping[str, Any]) -> Any:
    """Make a byte-level BPE tokenizer, as those of GPT-2, Llama 3, Qwen and SmolLM."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    name = facts.get("tokenizer.ggml.pre", "")
    if name not in list(_SPLITS):
        raise InputError(
            f"{file} splits texts as {name!r}, and only {', '.join(filter(None, _SPLITS))} are "
            f"read; put a tokenizer.json into {file.parent}."
        )
    split = _SPLITS[name]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(_vocabulary(facts), merges, ignore_merges=split == _LLAMA3))
    plain = split in ("", "digits")
    parts: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=plain)]
    if split == "digits":
        parts.insert(0, pre_tokenizers.Digits(individual_digits=True))
    elif not plain:
        parts.insert(0, pre_tokenizers.Split(Regex(split), behavior="isolated"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts)  # pyright: ignore
    backend.decoder = decoders.ByteLevel()  # pyright: ignore
    if split == _QWEN2:
        backend.normalizer = normalizers.NFC()  # pyright: ignore
    return backend


def _sentencepiece(file: Path, facts: Mapping[str, Any]) -> Any:
    """Make a BPE tokenizer with byte fallback, as that of Llama 2, whose merges are scores."""
    from transformers.models.llama.tokenization_llama import LlamaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    vocabulary = _vocabulary(facts)
    scores = dict(zip(facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.scores"], strict=True))
    special: dict[str, Any] = {
        f"{x}_token": _token(facts, key) for x, key in _SPECIAL.items() if x != "pad"
    }
    made = LlamaTokenizer(
        vocab=vocabulary,
        merges=generate_merges(vocabulary, scores),  # pyright: ignore
        add_prefix_space=facts.get("tokenizer.ggml.add_space_prefix", True),
        **special,
    )
    return made.backend_tokenizer


_SPECIAL: Mapping[str, str] = MappingProxyType(
    {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
)


def _vocabulary(facts: Mapping[str, Any]) -> dict[str, int]:
    return {token: n for n, token in enumerate(facts["tokenizer.ggml.tokens"])}


def _token(facts: Mapping[str, Any], name: str) -> str | None:
    n = facts.get(f"tokenizer.ggml.{name}_token_id")
    return None if n is None else facts["tokenizer.ggml.tokens"][n]


def _with_special_tokens(backend: Any, facts: Mapping[str, Any]) -> Any:
    """Wrap a tokenizer of the library with the special tokens and chat template of the file."""
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    _add_tokens(backend, facts)
    names = {x: _token(facts, key) for x, key in _SPECIAL.items()}
    _add_ends(backend, facts, names)
    made = TokenizersBackend(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        **{f"{x}_token": token for x, token in names.items() if token is not None},
    )
    template = facts.get("tokenizer.chat_template")
    if isinstance(template, str):
        made.chat_template = template
    return made


def _add_tokens(backend: Any, facts: Mapping[str, Any]) -> None:
    """Keep control tokens, which are special, and those of users whole."""
    from tokenizers import AddedToken

    tokens, types = facts["tokenizer.ggml.tokens"], facts.get("tokenizer.ggml.token_type") or ()
    for kind, add in ((_CONTROL, backend.add_special_tokens), (_USER_DEFINED, backend.add_tokens)):
        chosen = (token for token, type in zip(tokens, types, strict=False) if type == kind)
        add([AddedToken(token, normalized=False, special=kind == _CONTROL) for token in chosen])


def _add_ends(backend: Any, facts: Mapping[str, Any], names: Mapping[str, str | None]) -> None:
    """Begin and end each text with the tokens that the file asks for."""
    from tokenizers import processors

    # Older files have no flag, and llama.cpp begins the texts of SentencePiece with that token.
    begins = facts.get("tokenizer.ggml.add_bos_token", facts["tokenizer.ggml.model"] == "llama")
    wanted = {"bos": begins, "eos": facts.get("tokenizer.ggml.add_eos_token", False)}
    ends = {x: names[x] for x in wanted if wanted[x] and names[x]}
    first, last = ([ends[x]] if x in ends else [] for x in ("bos", "eos"))
    if ends:
        second = [f"{token}:1" for token in (*first, "$B", *last)]
        backend.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last],
            pair=[*first, "$A", *last, *second],
            special_tokens=[
                (token, facts[f"tokenizer.ggml.{x}_token_id"]) for x, token in ends.items()
            ],
        )
