"""Texts in, probabilities out."""

from collections.abc import Sequence

import numpy as np

from fedjax_lora import data
from fedjax_lora.core.errors import InputError
from fedjax_lora.interop.trained_model import make_outputs
from fedjax_lora.interop.load import Opened


def encode(opened: Opened, split: data.Split, *, cache_dir: str | None = None) -> data.Tokens:
    """Tokenise texts as the model was trained to read them.

    Raises:
      InputError: a model without a tokenizer.
    """
    tokenizer = opened.fitted.model.tokenizer
    if tokenizer is None:
        raise InputError(f"The base model {opened.about.base!r} has no tokenizer.")
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
