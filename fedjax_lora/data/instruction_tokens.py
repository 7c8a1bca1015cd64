"""Instructions and completions -> token ids: a prompt and, behind it, what is learned."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.data import prompts
from fedjax_lora.data.datasets.records import Split
from fedjax_lora.data.tokenization import CHUNK, Tokens, cached, padded


class Encoded(NamedTuple):
    """Those examples of a split that can be learned from, as texts and as tokens."""

    split: Split
    tokens: Tokens
    index: np.ndarray  # int64[E'], their rows in the whole split


def encode(
    split: Split,
    tokenizer: Any,
    *,
    format: str,
    max_length: int,
    cache_dir: str | Path | None = None,
) -> Encoded:
    """Tokenise the examples of a language task.

    A row of `Tokens` holds a prompt, its completion and the end of the text; `types` is 1 at what
    is learned (completion and end) and 0 at the prompt and the padding. Prompt and completion are
    tokenised apart, so that a prompt's tokens are those that generation starts from. Completions
    are cut at `max_length` (and then have no end). An example whose completion is blank, or whose
    prompt leaves no room for one token of it, is left out.

    Padding is the tokenizer's, or its end-of-text token where it has none: nothing reads it.

    Args:
      split: of a language task.
      tokenizer: a fast `transformers` tokenizer.
      format: a name of `prompts.FORMATS`, or `"auto"`.
      max_length: tokens of a row, at most.
      cache_dir: folder of earlier results.

    Raises:
      InputError: a slow tokenizer, one without end-of-text token, no chat template where one is
        asked for, or not one example that can be learned from.
    """
    _check(tokenizer)
    format = prompts.resolve(format, tokenizer)
    contexts = split.contexts or [""] * len(split.texts)
    examples = [
        prompts.format_example(format, tokenizer, *example)
        for example in zip(split.texts, contexts, split.pairs or [], strict=True)
    ]
    told = split._replace(
        texts=[x.prompt for x in examples], pairs=[x.answer for x in examples], labels=split.labels
    )
    special = format != "chat"
    what = {"special": special, "end": tokenizer.eos_token_id}
    rows = cached(
        told,
        tokenizer,
        max_length,
        lambda: _rows(told, tokenizer, max_length=max_length, special=special),
        cache_dir=cache_dir,
        what=what,
    )
    learned = rows["types"].sum(axis=1) > 0
    kept = np.flatnonzero(learned & [bool(text.strip()) for text in split.pairs or []])
    if not len(kept):
        raise InputError(
            f"Not one of {len(examples)} examples has a completion and a prompt that fits into "
            f"{max_length} tokens (format {format!r}); raise max_length."
        )
    arrays = {name: array[kept] for name, array in rows.items()}
    return Encoded(split.take(kept), Tokens(**arrays, label=split.labels[kept]), kept)


def prompt_length(tokens: Tokens) -> np.ndarray:
    """Tokens of each example's prompt, `int32[E]`."""
    return tokens.length - tokens.types.sum(axis=1, dtype=np.int32)


def prompt_ids(
    instructions: Sequence[str], contexts: Sequence[str], tokenizer: Any, *, format: str
) -> list[list[int]]:
    """The tokens that generation starts from: prompts as `encode` makes them, without an answer.

    Args:
      instructions: one for each prompt.
      contexts: what they are about; may be empty.
      tokenizer: a fast `transformers` tokenizer.
      format: a name of `prompts.FORMATS`, or `"auto"`.

    Raises:
      InputError: as `encode`, where there are no answers yet.
    """
    _check(tokenizer)
    format = prompts.resolve(format, tokenizer)
    asked = [
        prompts.format_example(format, tokenizer, *both, "").prompt
        for both in zip(instructions, contexts, strict=True)
    ]
    return _ids(tokenizer, asked, special=format != "chat")


def expand_choices(split: Split) -> tuple[Split, np.ndarray]:
    """One example for each choice of each question: the split, and `int64[E']`, whose choice it is.

    The `labels` of the result are 1 for the right choice, else 0.

    Raises:
      InputError: the examples have no choices.
    """
    if split.choices is None or split.pairs is None:
        raise InputError("These examples have no choices; take another metric.")
    question = np.repeat(np.arange(len(split.texts)), [len(own) for own in split.choices])
    choices = [text for own in split.choices for text in own]
    right = [text == split.pairs[q] for text, q in zip(choices, question, strict=True)]
    expanded = split.take(question)
    return expanded._replace(pairs=choices, labels=np.array(right, np.int32)), question


def _check(tokenizer: Any) -> None:
    problems = []
    if not getattr(tokenizer, "is_fast", False):
        problems.append("it is not a fast tokenizer (save it with a tokenizer.json)")
    if tokenizer.eos_token_id is None:
        problems.append("it has no end-of-text token (set eos_token in tokenizer_config.json)")
    raise_all(f"Tokenizer {type(tokenizer).__name__}", problems)


def _rows(told: Split, tokenizer: Any, *, max_length: int, special: bool) -> dict[str, np.ndarray]:
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    end = [tokenizer.eos_token_id] if special else []
    for start in range(0, len(told.texts), CHUNK):
        chunk = slice(start, start + CHUNK)
        asked = _ids(tokenizer, told.texts[chunk], special=special)
        answered = _ids(tokenizer, (told.pairs or [])[chunk], special=False)
        for prompt, answer in zip(asked, answered, strict=True):
            row = [*prompt, *answer, *end][:max_length]
            ids.append(np.array(row, np.int32))
            types.append((np.arange(len(row)) >= len(prompt)).astype(np.int32))
    fill = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return padded(ids, types, max_length, fill)


def _ids(tokenizer: Any, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    if not texts:
        return []
    batch = tokenizer(
        list(texts), add_special_tokens=special, truncation=False, padding=False,
        return_attention_mask=False, verbose=False,
    )  # fmt: skip
    return _without_end(batch["input_ids"], tokenizer) if special else batch["input_ids"]


def _without_end(rows: list[list[int]], tokenizer: Any) -> list[list[int]]:
    """Prompts go on: an end-of-text token that the tokenizer adds to every text is taken off."""
    end = tokenizer.eos_token_id
    return [row[:-1] if row and row[-1] == end else row for row in rows]
