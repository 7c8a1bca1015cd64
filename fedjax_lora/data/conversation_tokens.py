"""Tokenisation of conversations, of which answers are learned, and of plain texts."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.tokenizer import Tokenizer
from fedjax_lora.data import prompts
from fedjax_lora.data.datasets.records import Split
from fedjax_lora.data.instruction_tokens import Encoded, check_tokenizer, fill_id, token_ids
from fedjax_lora.data.tokenization import Tokens, cached, padded
from fedjax_lora.data.turns import Turn

_MARKER = re.compile(r"{%-?\s*generation\s*-?%}")
"""Begins what a chat template itself marks as generated."""


class Segment(NamedTuple):
    """A part of a conversation as text.

    Attributes:
      text: the part; it is tokenised by itself.
      answer: whether it is an answer.
      learned: whether it is learned.
    """

    text: str
    answer: bool
    learned: bool


def encode(
    split: Split,
    tokenizer: Tokenizer,
    *,
    format: str,
    date: str = prompts.DATE,
    max_length: int,
    cache_dir: str | Path | None = None,
) -> Encoded:
    """Tokenise conversations.

    A row of `Tokens` is a conversation up to its last learned answer; `types` is 1 at the tokens of
    learned answers and of what ends them, and 0 elsewhere. In a chat template an answer is what the
    template adds to the prompt that stands before it (``add_generation_prompt``), as for single
    instructions; if all answers are learned and the template marks them itself, with
    ``{% generation %}``, it is what is marked. In the other formats the end-of-text token follows
    every answer. Rows are cut at `max_length`, and those without a learned token are left out.

    Args:
      split: examples of a language task with `turns`.
      tokenizer: a fast `transformers` tokenizer.
      format: a name in `prompts.FORMATS`, or `"auto"`.
      date: date that a chat template prints.
      max_length: largest number of tokens in a row.
      cache_dir: folder of cached results.

    Raises:
      InputError: as `instruction_tokens.encode`; or a chat template that writes earlier turns
        otherwise once there are later ones.
    """
    check_tokenizer(tokenizer)
    format = prompts.resolve(format, tokenizer)
    conversations = split.turns or []
    template = tokenizer.get_chat_template() if format == "chat" else None
    rows = cached(
        split._replace(texts=[json.dumps(turns) for turns in conversations], pairs=None),
        tokenizer,
        max_length,
        lambda: _rows(conversations, tokenizer, format, date, max_length),
        cache_dir=cache_dir,
        settings={
            "turns": format, "template": template, "date": date, "end": tokenizer.eos_token_id,
        },
    )  # fmt: skip
    index = np.flatnonzero(rows["types"].sum(axis=1) > 0)
    if not len(index):
        raise InputError(
            f"Not one of {len(conversations)} conversations has an answer in its first "
            f"{max_length} tokens (format {format!r}); raise max_length."
        )
    arrays = {name: array[index] for name, array in rows.items()}
    return Encoded(split.take(index), Tokens(**arrays, label=split.labels[index]), index)


def segments(
    format: str, tokenizer: Tokenizer, turns: Sequence[Turn], *, date: str
) -> list[Segment]:
    """Divide a conversation into prompts and answers, up to the last learned answer.

    Args:
      format: a format, as `prompts.resolve` returns it.
      tokenizer: a `transformers` tokenizer, used by the format ``"chat"``.
      turns: the conversation.
      date: date that a chat template prints.

    Raises:
      InputError: the chat template fails, or writes earlier turns otherwise once there are later
        ones.
    """
    last = max((n for n, turn in enumerate(turns) if turn.learned), default=-1)
    if format == "chat":
        return _of_template(tokenizer, turns[: last + 1], date)
    return _written(format, turns[: last + 1])


def _of_template(tokenizer: Tokenizer, turns: Sequence[Turn], date: str) -> list[Segment]:
    found: list[Segment] = []
    before = ""
    for n, turn in enumerate(turns):
        if not turn.learned:
            continue
        prompt = _render(tokenizer, turns[:n], date, add_generation_prompt=True)
        after = _render(tokenizer, turns[: n + 1], date)
        if not (prompt.startswith(before) and after.startswith(prompt)):
            raise InputError(
                "The tokenizer's chat template writes earlier turns otherwise once there are later "
                f"ones (in {_begin(turns)}); give learn='last', format='plain', or a template that "
                "marks answers with {% generation %}."
            )
        found.append(Segment(prompt.removeprefix(before), answer=False, learned=False))
        found.append(Segment(after.removeprefix(prompt), answer=True, learned=True))
        before = after
    return found


def _render(tokenizer: Tokenizer, turns: Sequence[Turn], date: str, **options: Any) -> str:
    messages = _messages(turns)
    try:
        return prompts.render(tokenizer, messages, date, **options)
    except InputError as error:
        raise InputError(f"{str(error).rstrip('.')} (in {_begin(turns)}).") from error


def _messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """The turns as chat templates read them."""
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def _begin(turns: Sequence[Turn]) -> str:
    return f"the conversation that begins {turns[0].text[:40]!r}"


def _written(format: str, turns: Sequence[Turn]) -> list[Segment]:
    """Write turns in a format that is no chat template."""
    found: list[Segment] = []
    waiting: list[Turn] = []
    for turn in turns:
        if turn.role != "assistant":
            waiting.append(turn)
            continue
        prompt = prompts.turns_prompt(format, waiting, first=not found)
        found.append(Segment(prompt, answer=False, learned=False))
        found.append(Segment(turn.text, answer=True, learned=turn.learned))
        waiting = []
    return found


def _rows(
    conversations: Sequence[Sequence[Turn]],
    tokenizer: Tokenizer,
    format: str,
    date: str,
    max_length: int,
) -> dict[str, np.ndarray]:
    marked = format == "chat" and _MARKER.search(tokenizer.get_chat_template()) is not None
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    for turns in conversations:
        if marked and all(turn.learned for turn in turns if turn.role == "assistant"):
            row, learned = _marked(tokenizer, turns, date)
        else:
            row, learned = _joined(tokenizer, segments(format, tokenizer, turns, date=date), format)
        ids.append(np.array(row[:max_length], np.int32))
        types.append(np.array(learned[:max_length], np.int32))
    return padded(ids, types, max_length, fill_id(tokenizer))


def _marked(tokenizer: Tokenizer, turns: Sequence[Turn], date: str) -> tuple[list[int], list[int]]:
    """Tokens of a conversation, and which its template marks as generated."""
    messages = _messages(turns)
    if not messages:
        return [], []
    made = prompts.render(
        tokenizer, messages, date, tokenize=True, return_dict=True,
        return_assistant_tokens_mask=True,
    )  # fmt: skip
    return made["input_ids"], made["assistant_masks"]


def _joined(
    tokenizer: Tokenizer, parts: Sequence[Segment], format: str
) -> tuple[list[int], list[int]]:
    """Tokens of segments one after another, and which are learned.

    Only the first one has the tokenizer's special tokens, and each answer its end, unless a chat
    template writes them.
    """
    row: list[int] = []
    learned: list[int] = []
    for n, part in enumerate(parts):
        (new,) = token_ids(tokenizer, [part.text], special=n == 0 and format != "chat")
        if part.answer and format != "chat":
            new = [*new, tokenizer.eos_token_id]
        row += new
        learned += [int(part.learned)] * len(new)
    return row, learned


def encode_texts(split: Split, tokenizer: Tokenizer, *, max_length: int) -> Encoded:
    """Tokenise plain texts: all tokens are learned, but the first, which nothing predicts.

    The end-of-text token ends a text. A text of more than `max_length` tokens goes on in further
    rows; each begins with the last token of the row before, which is learned there.

    Args:
      split: texts.
      tokenizer: a fast `transformers` tokenizer.
      max_length: largest number of tokens in a row.

    Returns:
      The rows; `index` has the text of each.

    Raises:
      InputError: the tokenizer is slow or has no end-of-text token, or no text has two tokens.
    """
    check_tokenizer(tokenizer)
    ids: list[np.ndarray] = []
    index: list[int] = []
    for text, tokens in enumerate(token_ids(tokenizer, split.texts, special=True)):
        whole = np.array([*tokens, tokenizer.eos_token_id], np.int32)
        starts = range(0, len(whole) - 1, max_length - 1)
        ids += [whole[start : start + max_length] for start in starts]
        index += [text] * len(starts)
    if not ids:
        raise InputError(f"Not one of {len(split.texts)} texts has a token to be learned.")
    types = [(np.arange(len(row)) > 0).astype(np.int32) for row in ids]
    arrays = padded(ids, types, max_length, fill_id(tokenizer))
    of = np.array(index)
    return Encoded(split.take(of), Tokens(**arrays, label=split.labels[of]), of)
