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
      learned: whether it is learned.
      turn: number of the answer in the conversation; None for what stands before an answer.
    """

    text: str
    learned: bool = False
    turn: int | None = None


class Row(NamedTuple):
    """Tokens of a conversation or a part of it.

    Attributes:
      ids: the tokens, at most `max_length`.
      types: 1 at those that are learned.
      turn: number of the last answer that is learned; -1 if none is.
    """

    ids: list[int]
    types: list[int]
    turn: int


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
    instructions. A template that writes earlier turns otherwise once there are later ones (as those
    that remove what was thought) begins a new row there, so that every answer is learned behind the
    prompt that a model is asked with. If all answers are learned and the template marks them, with
    ``{% generation %}``, it is what is marked. In the other formats the end-of-text token follows
    every answer. Rows are cut at `max_length`, and those without a learned token are left out.

    Args:
      split: examples of a language task with `turns`.
      tokenizer: a fast `transformers` tokenizer.
      format: a name in `prompts.FORMATS`, or `"auto"`.
      date: date that a chat template prints.
      max_length: largest number of tokens in a row.
      cache_dir: folder of cached results.

    Returns:
      The rows; `index` has the conversation of each, and `pairs` its last learned answer.

    Raises:
      InputError: as `instruction_tokens.encode`.
    """
    check_tokenizer(tokenizer)
    format = prompts.resolve(format, tokenizer)
    conversations = split.turns or []
    template = tokenizer.get_chat_template() if format == "chat" else None
    rows = cached(
        split._replace(texts=[json.dumps(turns) for turns in conversations], pairs=None),
        tokenizer,
        max_length,
        lambda: _arrays(conversations, tokenizer, format, date, max_length),
        cache_dir=cache_dir,
        settings={
            "turns": format, "template": template, "date": date, "end": tokenizer.eos_token_id,
        },
        names=("conversation", "turn"),
    )  # fmt: skip
    kept = np.flatnonzero(rows["types"].sum(axis=1) > 0)
    if not len(kept):
        raise InputError(
            f"Not one of {len(conversations)} conversations has an answer in its first "
            f"{max_length} tokens (format {format!r}); raise max_length."
        )
    rows = {name: array[kept] for name, array in rows.items()}
    index, turns = rows.pop("conversation"), rows.pop("turn")
    answers = [conversations[n][turn].text for n, turn in zip(index, turns, strict=True)]
    tokens = Tokens(**rows, label=split.labels[index])
    return Encoded(split.take(index)._replace(pairs=answers), tokens, index)


def segments(
    format: str, tokenizer: Tokenizer, turns: Sequence[Turn], *, date: str
) -> list[list[Segment]]:
    """Divide a conversation into prompts and answers, up to the last learned answer.

    Args:
      format: a format, as `prompts.resolve` returns it.
      tokenizer: a `transformers` tokenizer, used by the format ``"chat"``.
      turns: the conversation.
      date: date that a chat template prints.

    Returns:
      The segments of one row, or of several where a chat template rewrites earlier turns.

    Raises:
      InputError: the chat template fails, or writes no answer.
    """
    last = max((n for n, turn in enumerate(turns) if turn.learned), default=-1)
    if format == "chat":
        return _of_template(tokenizer, turns[: last + 1], date)
    return [_written(format, turns[: last + 1])]


def _of_template(tokenizer: Tokenizer, turns: Sequence[Turn], date: str) -> list[list[Segment]]:
    rows: list[list[Segment]] = []
    before = None
    for n, turn in enumerate(turns):
        if not turn.learned:
            continue
        prompt = _render(tokenizer, turns[:n], date, add_generation_prompt=True)
        answer = _answer(tokenizer, turns[: n + 1], prompt, date)
        if before is None or not prompt.startswith(before):
            rows.append([])
            before = ""
        rows[-1].append(Segment(prompt.removeprefix(before)))
        rows[-1].append(Segment(answer, learned=True, turn=n))
        before = prompt + answer
    return rows


def _answer(tokenizer: Tokenizer, turns: Sequence[Turn], prompt: str, date: str) -> str:
    """Return what a template writes for the last turn, behind what it asks for an answer with.

    Raises:
      InputError: the template fails, or writes no answer.
    """
    whole = _render(tokenizer, turns, date)
    if whole.startswith(prompt):
        return whole.removeprefix(prompt)
    probed = [*turns[:-1], turns[-1]._replace(text=prompts.PROBE)]
    before, found, _ = _render(tokenizer, probed, date).rpartition(prompts.PROBE)
    if not found or not whole.startswith(before):
        raise InputError(
            "The tokenizer's chat template does not put an answer after a prompt (in "
            f"{_begin(turns)}); choose format='plain'."
        )
    return whole.removeprefix(before)


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
    for n, turn in enumerate(turns):
        if turn.role != "assistant":
            waiting.append(turn)
            continue
        found.append(Segment(prompts.turns_prompt(format, waiting, first=not found)))
        found.append(Segment(turn.text, turn.learned, n))
        waiting = []
    return found


def _arrays(
    conversations: Sequence[Sequence[Turn]],
    tokenizer: Tokenizer,
    format: str,
    date: str,
    max_length: int,
) -> dict[str, np.ndarray]:
    """Return the fields of `Tokens`, and conversation and last learned answer of each row."""
    marked = format == "chat" and _MARKER.search(tokenizer.get_chat_template()) is not None
    rows: list[Row] = []
    numbers: list[int] = []
    for n, turns in enumerate(conversations):
        if marked and all(turn.learned for turn in turns if turn.role == "assistant"):
            new = [_marked(tokenizer, turns, date, max_length)]
        else:
            parts = segments(format, tokenizer, turns, date=date)
            new = [_joined(tokenizer, row, format, max_length) for row in parts]
        rows += new
        numbers += [n] * len(new)
    ids, types = ([np.array(row[k], np.int32) for row in rows] for k in (0, 1))
    return padded(ids, types, max_length, fill_id(tokenizer)) | {
        "conversation": np.array(numbers, np.int32),
        "turn": np.array([row.turn for row in rows], np.int32),
    }


def _marked(tokenizer: Tokenizer, turns: Sequence[Turn], date: str, max_length: int) -> Row:
    """Tokens of a conversation, of which those are learned that its template marks as generated."""
    messages = _messages(turns)
    if not messages:
        return Row([], [], -1)
    made = prompts.render(
        tokenizer, messages, date, tokenize=True, return_dict=True,
        return_assistant_tokens_mask=True,
    )  # fmt: skip
    ids, types = made["input_ids"][:max_length], made["assistant_masks"][:max_length]
    begun = sum(new > old for old, new in zip([0, *types], types, strict=False))
    answers = [n for n, turn in enumerate(turns) if turn.learned]
    return Row(ids, types, answers[min(begun, len(answers)) - 1] if begun and answers else -1)


def _joined(tokenizer: Tokenizer, parts: Sequence[Segment], format: str, max_length: int) -> Row:
    """Tokens of segments one after another.

    Only the first one has the tokenizer's special tokens, and each answer its end, unless a chat
    template writes them.
    """
    ids: list[int] = []
    types: list[int] = []
    last = -1
    for n, part in enumerate(parts):
        if len(ids) >= max_length:
            break
        (new,) = token_ids(tokenizer, [part.text], special=n == 0 and format != "chat")
        if part.turn is not None and format != "chat":
            new = [*new, tokenizer.eos_token_id]
        if part.turn is not None and part.learned:
            last = part.turn
        ids += new
        types += [int(part.learned)] * len(new)
    return Row(ids[:max_length], types[:max_length], last)


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
