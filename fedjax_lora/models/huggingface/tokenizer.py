"""The tokenizer of a checkpoint folder."""

from pathlib import Path
from typing import Any

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.untrusted_files import first_line
from fedjax_lora.models.module_types import Config

_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")


def load_tokenizer(folder: Path, config: Config) -> Any:
    """Load the tokenizer of a checkpoint folder; None if there are no tokenizer files.

    A tokenizer without a padding token pads with its end-of-text token, as is usual for decoders;
    attention masks distinguish the two.

    Raises:
      InputError: the tokenizer cannot be loaded, or has more tokens than the model.
    """
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        # Explicitly False: by default `transformers` asks on the terminal whether to run such code.
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        ids = tokenizer.get_vocab().values()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # panics of Rust code are no subclass of `Exception`
        reason = first_line(error)
        raise InputError(
            f"The tokenizer in {folder} cannot be loaded ({reason}); check its files."
        ) from error
    needed = max(len(tokenizer), max(ids, default=-1) + 1)
    if needed > config.vocab_size:
        raise InputError(
            f"The tokenizer in {folder} has {needed} tokens but the model only "
            f"{config.vocab_size}; they do not belong together."
        )
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
