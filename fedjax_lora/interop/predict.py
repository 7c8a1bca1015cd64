"""Texts in, probabilities out."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_lora import data
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import ClientParams
from fedjax_lora.data import instruction_tokens
from fedjax_lora.evaluation.generation.answers import make_writer
from fedjax_lora.evaluation.predict import Global
from fedjax_lora.interop.load import Opened
from fedjax_lora.interop.trained_model import make_outputs


def encode(opened: Opened, split: data.Split, *, cache_dir: str | None = None) -> data.Tokens:
    """Tokenise texts as the model was trained to read them.

    Raises:
      InputError: a model without a tokenizer.
    """
    tokenizer = tokenizer_of(opened)
    longest = min(opened.about.max_length, opened.fitted.model.config.max_tokens)
    return data.encode(split, tokenizer, max_length=longest, cache_dir=cache_dir)


def probabilities(
    opened: Opened, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch: int = 64
) -> np.ndarray:
    """The probability of each class, ``float64[E, C]``; of a regression task the score, ``[E, 1]``.

    Args:
      opened: the model, see `open_model`.
      texts: one or more.
      pairs: as many second texts, for a model that reads two.
      batch: how many are computed at once.

    Raises:
      InputError: no texts; second texts missing or too many.
    """
    if not texts:
        raise InputError("There are no texts to predict.")
    if (pairs is not None and len(pairs) != len(texts)) or opened.about.pair != (pairs is not None):
        need = "two texts for each example" if opened.about.pair else "one text for each example"
        raise InputError(f"This model reads {need}.")
    labels = np.zeros(len(texts), np.int32)
    split = data.Split(list(texts), None if pairs is None else list(pairs), labels, None)
    outputs = make_outputs(opened.fitted.model, encode(opened, split), batch=batch)
    logits = outputs(opened.fitted).astype(np.float64)
    if opened.about.regression:
        return logits
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def answers(
    opened: Opened,
    instructions: Sequence[str],
    contexts: Sequence[str],
    *,
    prompt_format: str | None = None,
    answer_tokens: int | None = None,
    batch: int = 64,
) -> list[str]:
    """What a language model answers, greedily.

    Args:
      opened: the model, see `fedjax_lora.interop.open_model`.
      instructions: one or more.
      contexts: what they are about; may be empty.
      prompt_format: a name of `fedjax_lora.data.prompts.FORMATS` or ``"auto"``; that of the
        training by default.
      answer_tokens: how many tokens to write at most; the number of its task by default.
      batch: how many are answered at once.

    Raises:
      InputError: no prompts, or prompts that are longer than the window; a chat template is asked
        for, and there is none.
    """
    if not instructions:
        raise InputError("There are no prompts to answer.")
    fitted, about = opened.fitted, opened.about
    ids = instruction_tokens.prompt_ids(
        instructions, contexts, tokenizer_of(opened), format=prompt_format or about.prompt_format
    )
    write = make_writer(
        fitted.model, ids, new_tokens=answer_tokens or about.answer_tokens, batch=batch
    )
    return write(Global(fitted.base, ClientParams(fitted.adapter, fitted.head), fitted.gain))


def tokenizer_of(opened: Opened) -> Any:
    """The tokenizer of a loaded model.

    Raises:
      InputError: the base model has none.
    """
    tokenizer = opened.fitted.model.tokenizer
    if tokenizer is None:
        raise InputError(f"The base model {opened.about.base!r} has no tokenizer.")
    return tokenizer
