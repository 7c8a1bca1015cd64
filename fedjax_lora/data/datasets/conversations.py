"""Readers of conversations and of plain texts.

Conversations have the forms that are usual: OpenAI's ``messages: [{role, content}]``, ShareGPT's
``conversations: [{from, value}]``, and TRL's ``prompt`` and ``completion``, each a list of
messages. Answers are learned, in TRL's form those of the completion.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fedjax_lora.core.errors import InputError
from fedjax_lora.data.datasets.instruction_formats import ALL
from fedjax_lora.data.datasets.records import Table
from fedjax_lora.data.datasets.table_readers import Source, check_values, read_columns
from fedjax_lora.data.datasets.text_files import check_size, lines, open_text, plain_name
from fedjax_lora.data.turns import Role, Turn

COLUMNS = ("messages", "conversations", "conversation")
"""Columns that hold conversations, if none is named."""

TRL = ("prompt", "completion")
"""Columns that hold a conversation together."""

UNREAD = ("tools", "documents", "chat_template_kwargs")
"""Columns of what a chat template could write, too, and that are not read."""

EXTRA = ("system", *UNREAD)
"""Columns that belong to a conversation where there are such."""

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Fields of messages in which some chat templates find what was thought before an answer."""

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
}
"""What the roles of messages mean."""

Unit = Literal["line", "paragraph", "file"]


class Extracted(NamedTuple):
    """The columns of conversations in a file.

    Attributes:
      messages: the columns of messages, one, or those of `TRL`.
      values: the values of all columns.
      rows: the number of each row.
      clients: the natural client of each row, if the file states them.
    """

    messages: tuple[str, ...]
    values: dict[str, list[Any]]
    rows: Sequence[int]
    clients: list[str] | None


def read_conversations(
    path: Source,
    *,
    messages: str | None = None,
    learn: Literal["all", "last"] = "all",
    category: str | None = None,
    group: str | None = None,
) -> Table:
    """Read conversations; the columns are found if ``messages`` is None.

    What follows the last answer is left out, and answers before the first question, which the
    table's notes count.

    Args:
      path: the file, or a split of a data set on the hub.
      messages: name of the column of messages.
      learn: whether all answers or the last one of each conversation are learned.
      category: name of the category column.
      group: name of the column with the natural client of each conversation.

    Raises:
      InputError: a file that cannot be read, no such column, or messages of another form.
    """
    found = _extract(path, messages, [name for name in (category, group) if name is not None])
    whole = [_turns(f"{path} row {row}", found, at) for at, row in enumerate(found.rows)]
    begun = [_without_first_answers(conversation) for conversation in whole]
    turns = [_learned(_until_last_answer(conversation), learn) for conversation in begun]
    cut = sum(len(short) < len(long) for short, long in zip(begun, whole, strict=True))
    note = (
        f"{cut} of {len(turns)} conversations begin with an answer, which is left out because "
        "there is no question before it"
    )
    return Table(
        str(path),
        texts=[_before_answer(conversation) for conversation in turns],
        labels=[ALL] * len(turns) if category is None else [*map(str, found.values[category])],
        rows=found.rows,
        pairs=[conversation[-1].text if conversation else "" for conversation in turns],
        groups=found.clients if group is None else [*map(str, found.values[group])],
        contexts=[""] * len(turns),
        turns=turns,
        notes=(note,) * (cut > 0),
    )


def _extract(path: Source, messages: str | None, others: Sequence[str]) -> Extracted:
    """Read the columns of conversations and others, whose values are checked."""
    chosen: list[tuple[str, ...]] = []

    def names(header: Sequence[str]) -> list[str]:
        chosen.append(_message_columns(messages, header))
        return [*chosen[-1], *others]

    found = read_columns(path, names, optional=EXTRA, checked=False)
    for name in others:
        check_values(str(path), name, found.values[name], found.rows)
    return Extracted(chosen[-1] if chosen else (), found.values, found.rows, found.clients)


def _message_columns(messages: str | None, header: Sequence[str]) -> tuple[str, ...]:
    if messages is not None:
        return (messages,)
    for name in COLUMNS:
        if name in header:
            return (name,)
    return TRL if set(TRL) <= set(header) else (COLUMNS[0],)


def _turns(where: str, found: Extracted, at: int) -> list[Turn]:
    """Return the turns of a row; of several columns those of the last one are learned."""
    turns = []
    for name in found.messages:
        value, learned = found.values[name][at], name == found.messages[-1]
        for number, message in enumerate(_messages(f"{where}: column {name!r}", value), start=1):
            turns.append(_turn(f"{where}: message {number} of {name!r}", message, learned=learned))
    extra = {name: found.values[name][at] for name in EXTRA if name in found.values}
    return _with_system(where, turns, extra)


def _messages(where: str, value: Any) -> list[Any]:
    """Return a list of messages, also of one that is stored as an object of lists."""
    if isinstance(value, dict) and all(isinstance(x, list) for x in value.values()):
        return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    if isinstance(value, str):
        raise InputError(
            f"{where} holds a text, not a list of messages; texts are the task instructions(...), "
            "with format='raw' to train on them as they are."
        )
    if not isinstance(value, list):
        raise InputError(f"{where} holds {value!r}, not a list of messages; correct the row.")
    return value


def _turn(where: str, message: Any, *, learned: bool) -> Turn:
    if not isinstance(message, dict):
        raise InputError(
            f"{where} is {message!r}, not an object with role and content; correct it."
        )
    role = _first_of(message, ("role", "from"))
    if not isinstance(role, str) or role.strip().lower() not in ROLES:
        raise InputError(
            f"{where} is by {role!r}; the roles that are read are {', '.join(ROLES)}, so remove "
            "the conversation or correct the role."
        )
    if message.get("tool_calls") or message.get("function_call"):
        raise InputError(f"{where} calls a tool, which is not read; remove the conversation.")
    if thought := [name for name in THOUGHTS if message.get(name)]:
        raise InputError(
            f"{where} has {thought[0]!r}, which is not read; write it into the content, as the "
            "model is to write it, or remove it."
        )
    text = _content(where, _first_of(message, ("content", "value")))
    return Turn(ROLES[role.strip().lower()], text, learned and _is_trained(where, message))


def _first_of(message: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((message[name] for name in names if message.get(name) is not None), None)


def _content(where: str, value: Any) -> str:
    """Return the text of a message: a string, or the text parts of a list."""
    if isinstance(value, list):
        kinds = [part.get("type") if isinstance(part, dict) else None for part in value]
        if other := [kind for kind in kinds if kind != "text"]:
            raise InputError(f"{where} has a part of type {other[0]!r}; only texts are read.")
        value = "".join(str(part.get("text") or "") for part in value)
    if not isinstance(value, str):
        raise InputError(
            f"{where} holds {value!r}, not a text; fill it or remove the conversation."
        )
    check_values(where, "content", [value], [1], blank=True)
    return value


def _is_trained(where: str, message: Mapping[str, Any]) -> bool:
    """Whether the message's own field lets it be learned.

    It is ``weight`` for OpenAI, ``train`` for Axolotl and ``loss`` for SWIFT.
    """
    for name in ("weight", "train", "loss"):
        value = message.get(name)
        if value is not None and value not in (0, 1):
            raise InputError(f"{where}: {name} is {value!r}; answers are learned (1) or not (0).")
        if value is not None:
            return bool(value)
    return True


def _with_system(where: str, turns: list[Turn], extra: Mapping[str, Any]) -> list[Turn]:
    """Put what a column says of the system in front."""
    for name in UNREAD:
        if extra.get(name) not in (None, "", [], "[]", {}, "{}"):
            raise InputError(
                f"{where} has a column {name!r} that is not empty, and it is not read; remove the "
                "conversation, or the column if it does not matter."
            )
    system = extra.get("system")
    if system in (None, ""):
        return turns
    if not isinstance(system, str) or any(turn.role == "system" for turn in turns):
        raise InputError(
            f"{where}: the column 'system' is no text, or there is a system turn too; keep one."
        )
    return [Turn("system", system, False), *turns]


def _without_first_answers(turns: Sequence[Turn]) -> list[Turn]:
    """Remove answers that no question precedes."""
    first = next((n for n, turn in enumerate(turns) if turn.role == "user"), len(turns))
    return [turn for n, turn in enumerate(turns) if n >= first or turn.role == "system"]


def _until_last_answer(turns: Sequence[Turn]) -> list[Turn]:
    answers = [n for n, turn in enumerate(turns) if turn.role == "assistant"]
    return list(turns[: answers[-1] + 1]) if answers else []


def _learned(turns: Sequence[Turn], learn: str) -> tuple[Turn, ...]:
    """Mark the turns that are learned: answers that are not blank."""
    last = len(turns) - 1
    return tuple(
        turn._replace(
            learned=turn.learned
            and turn.role == "assistant"
            and bool(turn.text.strip())
            and (learn == "all" or n == last)
        )
        for n, turn in enumerate(turns)
    )


def _before_answer(turns: Sequence[Turn]) -> str:
    """Write down what stands before the last answer, by which conversations are compared."""
    return "\n".join(f"{turn.role}: {turn.text}" for turn in turns[:-1])


def read_texts(
    path: Source, *, text: str = "text", group: str | None = None, unit: Unit = "line"
) -> Table:
    """Read plain texts: a column of a table, or a file whose name ends in ``.txt``.

    Args:
      path: the file, or a split of a data set on the hub.
      text: name of the text column.
      group: name of the column with the natural client of each text.
      unit: what is a text of a ``.txt`` file: a line, a paragraph (lines up to a blank one), or the
        file. Blank ones are left out.

    Raises:
      InputError: a file that cannot be read, no such column or an empty text.
    """
    if isinstance(path, Path) and plain_name(path).suffix.lower() == ".txt":
        if group is not None:
            raise InputError(f"{path} has no columns; leave out group, or give client_files=True.")
        texts = _units(path, unit)
        return Table(str(path), texts, [ALL] * len(texts), range(1, len(texts) + 1))
    names = [text, *([group] if group is not None else [])]
    values, rows, _, clients = read_columns(path, names)
    groups = clients if group is None else [str(value) for value in values[group]]
    texts = [str(value) for value in values[text]]
    return Table(str(path), texts, [ALL] * len(texts), rows, groups=groups)


def _units(path: Path, unit: Unit) -> list[str]:
    check_size(path)
    with open_text(path) as stream:
        if unit == "file":
            whole = stream.read()
            return [whole] if whole.strip() else []
        every = (line.rstrip("\r\n") for line in lines(path, stream))
        if unit == "line":
            return [line for line in every if line.strip()]
        return _paragraphs(every)


def _paragraphs(every: Iterable[str]) -> list[str]:
    found: list[list[str]] = [[]]
    for line in every:
        if line.strip():
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return ["\n".join(part) for part in found if part]
