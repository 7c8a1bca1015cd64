"""The tokenizer of a checkpoint folder."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fedjax_lora.core.errors import InputError, first_names
from fedjax_lora.core.optional_packages import is_installed
from fedjax_lora.core.tokenizer import Tokenizer
from fedjax_lora.core.untrusted_files import first_line, read_json
from fedjax_lora.models.huggingface import gguf, gguf_tokenizer
from fedjax_lora.models.module_types import Config

_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
_OF_FAMILY: Mapping[str, str] = MappingProxyType(
    {
        "albert": "AlbertTokenizer",
        "bert": "BertTokenizer",
        "distilbert": "BertTokenizer",
        "roberta": "RobertaTokenizer",
    }
)
"""The class of a family's tokenizers, unless their files name another."""

_MODULES: Mapping[str, str] = MappingProxyType(
    {
        "AlbertTokenizer": "models.albert.tokenization_albert",
        "BertTokenizer": "models.bert.tokenization_bert",
        "DistilBertTokenizer": "models.distilbert.tokenization_distilbert",
        "RobertaTokenizer": "models.roberta.tokenization_roberta",
        "TokenizersBackend": "tokenization_utils_tokenizers",
    }
)
"""Modules of `transformers` with classes of tokenizers; none of them imports PyTorch."""


def load_tokenizer(folder: Path, config: Config) -> Tokenizer | None:
    """Load the tokenizer of a checkpoint folder; None if there are no tokenizer files.

    That of a GGUF file is in the file, unless a ``tokenizer.json`` lies beside it.

    A tokenizer without a padding token pads with its end-of-text token, as is usual for decoders;
    attention masks distinguish the two.

    Raises:
      InputError: the tokenizer cannot be loaded, or has tokens that the model does not have; a
        padding token alone is replaced.
    """
    if gguf.is_gguf(folder) and not (folder.parent / "tokenizer.json").is_file():
        tokenizer = gguf_tokenizer.make(folder)
    else:
        tokenizer = _of_folder(folder.parent if gguf.is_gguf(folder) else folder)
    return None if tokenizer is None else _fitting(tokenizer, folder, config)


def _of_folder(folder: Path) -> Any:
    """Load the tokenizer in a folder; None if there are no tokenizer files."""
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        return None
    _check_sentencepiece(folder)
    try:
        # Explicitly False: by default `transformers` asks on the terminal whether to run such code.
        tokenizer = _class_of(folder).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        tokenizer.get_vocab()
        return tokenizer
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # panics of Rust code are no subclass of `Exception`
        reason = first_line(error)
        raise InputError(
            f"The tokenizer in {folder} cannot be loaded ({reason}); check its files."
        ) from error


def _fitting(tokenizer: Any, folder: Path, config: Config) -> Tokenizer:
    """Check that a model has all tokens of its tokenizer, and give it a padding token.

    Raises:
      InputError: the tokenizer has tokens that the model does not have.
    """
    beyond = {name for name, n in tokenizer.get_vocab().items() if n >= config.vocab_size}
    if beyond and beyond == {tokenizer.pad_token}:
        tokenizer = _without_own_padding(tokenizer)
    elif beyond:
        names = first_names([*map(repr, sorted(beyond))])
        raise InputError(
            f"The tokenizer in {folder} has ids up to {max(tokenizer.get_vocab().values())} but "
            f"the model only {config.vocab_size} embeddings, none for {names}; save the model "
            "after resize_token_embeddings, or use its own tokenizer."
        )
    return _padding_with_end(tokenizer)


def _class_of(folder: Path) -> Any:
    """Return the class that `AutoTokenizer` would choose, or that one itself if it is not plain.

    `AutoTokenizer` imports PyTorch where that is installed, which takes seconds.
    """
    config, options = (_json_object(folder / f"{x}config.json") for x in ("", "tokenizer_"))
    family = _OF_FAMILY.get(str(config.get("model_type")))
    named = (options.get("tokenizer_class"), config.get("tokenizer_class"), family)
    name = next((x for x in named if x is not None), None)
    name = str(name).replace("PreTrainedTokenizerFast", "TokenizersBackend").removesuffix("Fast")
    if family and name in _MODULES and "auto_map" not in options:
        try:
            return getattr(importlib.import_module(f"transformers.{_MODULES[name]}"), name)
        except (ImportError, AttributeError):  # of another version of transformers
            pass
    from transformers import AutoTokenizer

    return AutoTokenizer


def _json_object(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if there is none."""
    try:
        values = read_json(file)
    except InputError:
        return {}
    return values if isinstance(values, dict) else {}


def _padding_with_end(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer with its end-of-text token as padding token if it has no other."""
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _without_own_padding(tokenizer: Any) -> Any:
    """Return a tokenizer without its padding token, which was added beyond the embedding table.

    Padding is masked, so any token of the table pads as well. The added token itself is removed:
    a text that holds its name has no embedding for it.
    """
    from tokenizers import Tokenizer

    padding, tokenizer.pad_token = tokenizer.pad_token, None
    if tokenizer.eos_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.cls_token
    if getattr(tokenizer, "is_fast", False):
        stored = json.loads(tokenizer.backend_tokenizer.to_str())
        stored["added_tokens"] = [x for x in stored["added_tokens"] if x["content"] != padding]
        stored["padding"] = None
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(stored))
    return tokenizer


def _check_sentencepiece(folder: Path) -> None:
    """Name the package that converts a tokenizer of SentencePiece, if it is not installed.

    Raises:
      InputError: the folder has no other tokenizer, and the package is missing.
    """
    files = [name for name in ("spiece.model", "tokenizer.model") if (folder / name).is_file()]
    others = ("tokenizer.json", "vocab.txt", "vocab.json")
    if not files or any((folder / name).is_file() for name in others):
        return
    needed = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
    missing = [name for name, module in needed.items() if not is_installed(module)]
    if missing:
        raise InputError(
            f"The tokenizer in {folder} is {files[0]}, which needs {' and '.join(missing)} to be "
            "converted; install it (the extra [sentencepiece]), or save a tokenizer.json there."
        )
