"""Tokenisation of language tasks: prompts followed by the completions that are learned."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.core.tokenizer import Tokenizer
from fedjax_lora.data import prompts
from fedjax_lora.data.datasets.records import Split
from fedjax_lora.data.tokenization import CHUNK, Tokens, cached, padded


class Encoded(NamedTuple):
    """Examples of a split that can be learned from, as texts and as tokens."""

    split: Split
    tokens: Tokens
    index: np.ndarray  # int64[E'], their rows in the whole split


def encode(
    split: Split,
    tokenizer: Tokenizer,
    *,
    format: str,
    date: str = prompts.DATE,
    max_length: int,
    cache_dir: str | Path | None = None,
) -> Encoded:
    """Tokenise the examples of a language task.

    A row of `Tokens` consists of a prompt, its completion and the end-of-text token; `types` is 1
    at the tokens that are learned (completion and end) and 0 at the prompt and the padding. Prompt
    and completion are tokenised separately, so that generation can start from the same prompt
    tokens. Completions are cut at `max_length`, without an end-of-text token. An example whose
    completion is blank, or whose prompt leaves no room for one token of it, is left out.

    The padding token is the tokenizer's, or its end-of-text token if it has none; no model reads
    the padding.

    Args:
      split: examples of a language task.
      tokenizer: a fast `transformers` tokenizer.
      format: a name in `prompts.FORMATS`, or `"auto"`.
      date: date that a chat template prints.
      max_length: largest number of tokens in a row.
      cache_dir: folder of cached results.

    Raises:
      InputError: the tokenizer is slow or has no end-of-text token; a chat template is requested
        and the tokenizer has none; or no example can be learned from.
    """
    check_tokenizer(tokenizer)
    format = prompts.resolve(format, tokenizer)
    contexts = split.contexts or [""] * len(split.texts)
    examples = [
        prompts.format_example(format, tokenizer, *example, date=date)
        for example in zip(split.texts, contexts, split.pairs or [], strict=True)
    ]
    prompted = split._replace(
        texts=[x.prompt for x in examples], pairs=[x.answer for x in examples], labels=split.labels
    )
    special = format != "chat"
    rows = cached(
        prompted,
        tokenizer,
        max_length,
        lambda: _rows(prompted, tokenizer, max_length=max_length, special=special),
        cache_dir=cache_dir,
        settings={"special": special, "end": tokenizer.eos_token_id},
    )
    learned = rows["types"].sum(axis=1) > 0
    index = np.flatnonzero(learned & [bool(text.strip()) for text in split.pairs or []])
    if not len(index):
        raise InputError(
            f"Not one of {len(examples)} examples has a completion and a prompt that fits into "
            f"{max_length} tokens (format {format!r}); raise max_length."
        )
    arrays = {name: array[index] for name, array in rows.items()}
    return Encoded(split.take(index), Tokens(**arrays, label=split.labels[index]), index)


def prompt_length(tokens: Tokens) -> np.ndarray:
    """Number of tokens before the last answer of each example, `int32[E]`."""
    at = np.arange(tokens.types.shape[1], dtype=np.int32)
    end = np.where(tokens.types > 0, at, -1).max(axis=1, keepdims=True)  # of the answer
    before = (tokens.types == 0) & (at < end)
    start = np.where(before, at, -1).max(axis=1) + 1
    return np.where(end[:, 0] < 0, tokens.length, start).astype(np.int32)


def prompt_ids(
    instructions: Sequence[str],
    contexts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    format: str,
    date: str = prompts.DATE,
) -> list[list[int]]:
    """Tokenise prompts as `encode` does, for generation to start from.

    Args:
      instructions: one per prompt.
      contexts: one per prompt, may be empty strings.
      tokenizer: a fast `transformers` tokenizer.
      format: a name in `prompts.FORMATS`, or `"auto"`.
      date: date that a chat template prints.

    Returns:
      Token ids of each prompt.

    Raises:
      InputError: a tokenizer or format that `encode` refuses.
    """
    check_tokenizer(tokenizer)
    format = prompts.resolve(format, tokenizer)
    texts = [
        prompts.format_example(format, tokenizer, instruction, context, "", date=date).prompt
        for instruction, context in zip(instructions, contexts, strict=True)
    ]
    return token_ids(tokenizer, texts, special=format != "chat")


def expand_choices(split: Split) -> tuple[Split, np.ndarray]:
    """Make one example per choice of each question.

    Returns:
      The split of `E'` choices, with `labels` 1 for the right choice, else 0; and `int64[E']`, the
      question of each choice.

    Raises:
      InputError: the examples have no choices.
    """
    if split.choices is None or split.pairs is None:
        raise InputError("These examples have no choices; take another metric.")
    question = np.repeat(np.arange(len(split.texts)), [len(options) for options in split.choices])
    choices = [text for options in split.choices for text in options]
    right = [text == split.pairs[q] for text, q in zip(choices, question, strict=True)]
    expanded = split.take(question)
    return expanded._replace(pairs=choices, labels=np.array(right, np.int32)), question


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer that a language task cannot use.

    Raises:
      InputError: it is slow or has no end-of-text token.
    """
    problems = []
    if not getattr(tokenizer, "is_fast", False):
        problems.append("it is not a fast tokenizer (save it with a tokenizer.json)")
    if tokenizer.eos_token_id is None:
        problems.append("it has no end-of-text token (set eos_token in tokenizer_config.json)")
    raise_all(f"Tokenizer {type(tokenizer).__name__}", problems)


def _rows(
    prompted: Split, tokenizer: Tokenizer, *, max_length: int, special: bool
) -> dict[str, np.ndarray]:
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    end = [tokenizer.eos_token_id] if special else []
    for start in range(0, len(prompted.texts), CHUNK):
        chunk = slice(start, start + CHUNK)
        prompt_rows = token_ids(tokenizer, prompted.texts[chunk], special=special)
        answer_rows = token_ids(tokenizer, (prompted.pairs or [])[chunk], special=False)
        for prompt, answer in zip(prompt_rows, answer_rows, strict=True):
            row = [*prompt, *answer, *end][:max_length]
            ids.append(np.array(row, np.int32))
            types.append((np.arange(len(row)) >= len(prompt)).astype(np.int32))
    return padded(ids, types, max_length, fill_id(tokenizer))


def fill_id(tokenizer: Tokenizer) -> int:
    """Return the token that rows are filled with; `check_tokenizer` refuses those without any."""
    fill = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return cast(int, fill)


def token_ids(tokenizer: Tokenizer, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    """Tokenise texts, with the tokenizer's special tokens but no end of text if ``special``."""
    if not texts:
        return []
    batch = tokenizer(
        list(texts), add_special_tokens=special, truncation=False, padding=False,
        return_attention_mask=False, verbose=False,
    )  # fmt: skip
    return _without_end(batch["input_ids"], tokenizer) if special else batch["input_ids"]


def _without_end(rows: list[list[int]], tokenizer: Tokenizer) -> list[list[int]]:
    """Remove the end-of-text token that a tokenizer adds to every text, since prompts continue."""
    end = tokenizer.eos_token_id
    return [row[:-1] if row and row[-1] == end else row for row in rows]
