"""Language tasks of the user's own conversations and plain texts."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from fedjax_lora.data.datasets.conversations import Unit, read_conversations, read_texts
from fedjax_lora.data.datasets.instruction_registry import with_options
from fedjax_lora.data.datasets.own_data import own_source
from fedjax_lora.data.datasets.records import Prompting, Task


def conversations(
    *,
    train: str | Sequence[str] | None = None,
    test: str | Sequence[str] | None = None,
    messages: str | None = None,
    learn: Literal["all", "last"] = "all",
    category: str | None = None,
    group: str | None = None,
    metric: str = "perplexity",
    format: str = "auto",
    answer_tokens: int = Prompting().answer_tokens,
    client_files: bool = False,
    hub: str | None = None,
    config: str | None = None,
) -> Task:
    """Language task of the user's own conversations, whose answers are learned.

    They are read as `messages` (OpenAI's role and content), `conversations` (ShareGPT's from and
    value) or `prompt` and `completion` (TRL's lists of messages), from jsonl, json, parquet, arrow
    and folders of `datasets`. A conversation is cut at `max_length` tokens from its beginning; one
    without an answer before that is left out and counted.

    Args:
      train: files, as in `file(...)`.
      test: files, as in `file(...)`.
      messages: name of the column of messages; by default the first of the usual ones.
      learn: whether `'all'` answers of a conversation are learned or the `'last'` one. A message's
        own `weight`, `train` or `loss` of 0 takes it out.
      category: name of the category column, which partitioners by label use.
      group: name of the column with the natural client of each conversation.
      metric: `"perplexity"` of the answers; `"rouge_l"` or `"exact_match"` of the last one.
      format: the prompt format, see `Prompting`.
      answer_tokens: largest number of tokens generated for an answer.
      client_files: as in `file(...)`.
      hub: as in `file(...)`.
      config: as in `file(...)`.

    Raises:
      InputError: an unknown metric or format, or one that these tasks cannot have.
    """
    read = partial(
        read_conversations, messages=messages, learn=learn, category=category, group=group
    )
    own = own_source(
        "conversations",
        read,
        train=train,
        test=test,
        client_files=client_files,
        hub=hub,
        config=config,
    )
    task = Task("conversations", own.summary, "", metric="perplexity", local=own.local, hub=own.hub)
    return with_options(task, metric, Prompting(format, answer_tokens))


def text(
    *,
    train: str | Sequence[str] | None = None,
    test: str | Sequence[str] | None = None,
    text: str = "text",
    unit: Unit = "line",
    group: str | None = None,
    client_files: bool = False,
    hub: str | None = None,
    config: str | None = None,
) -> Task:
    """Language modelling of the user's own texts: every token is learned.

    The texts are a column of a table, or those of `.txt` files. A text that is longer than
    `max_length` tokens goes on in further rows, so that each of its tokens is predicted once. The
    metric is the perplexity.

    Args:
      train: files, as in `file(...)`.
      test: files, as in `file(...)`.
      text: name of the text column.
      unit: what is a text of a `.txt` file: a `'line'`, a `'paragraph'` or the `'file'`.
      group: name of the column with the natural client of each text.
      client_files: as in `file(...)`.
      hub: as in `file(...)`.
      config: as in `file(...)`.

    Raises:
      InputError: options that do not go together.
    """
    own = own_source(
        "text",
        partial(read_texts, text=text, group=group, unit=unit),
        train=train,
        test=test,
        client_files=client_files,
        hub=hub,
        config=config,
    )
    prompting = Prompting(format="raw")
    return Task(
        "text", own.summary, "", metric="perplexity", local=own.local, hub=own.hub,
        prompting=prompting,
    )  # fmt: skip
