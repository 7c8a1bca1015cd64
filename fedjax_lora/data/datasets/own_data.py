"""Where a user's own task is read from: files, or a data set of the Hugging Face hub."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fedjax_lora.core.errors import InputError
from fedjax_lora.data.datasets.records import Files, Hub, Table
from fedjax_lora.data.datasets.table_readers import HubSplit, Source

Names = str | Sequence[str] | None


class Own(NamedTuple):
    """A user's own source; the fields `local` and `hub` of its task.

    Attributes:
      local: the files, or None.
      hub: the data set on the hub, or None.
      summary: what it is, for the list of tasks.
    """

    local: Files | None
    hub: Hub | None
    summary: str


def own_source(
    name: str,
    read: Callable[[Source], Table],
    *,
    train: Names,
    test: Names,
    client_files: bool,
    hub: str | None,
    config: str | None,
) -> Own:
    """Make the source of a task from its options.

    Args:
      name: of the task, for messages.
      read: reads a file, or a split of a data set on the hub.
      train: file names or patterns; of a data set on the hub its split.
      test: likewise.
      client_files: whether each file is a natural client.
      hub: id of a data set on the hub.
      config: its configuration.

    Raises:
      InputError: neither files nor a data set, or options that do not go together.
    """
    if hub is None:
        if config is not None:
            raise InputError(f"{name}(...): config is that of a data set on the hub; give hub too.")
        files = _names(name, "train", train)
        if not files:
            raise InputError(
                f"{name}(...) needs files, train='a.jsonl', or a data set, hub='org/name'."
            )
        local = Files(files, _names(name, "test", test), read, client_files)
        return Own(local, None, f"own files: {train}")
    if client_files or not isinstance(train, str | None) or not isinstance(test, str | None):
        raise InputError(
            f"{name}(hub={hub!r}, ...): train and test are the names of one split each, and there "
            "are no client_files."
        )

    def read_split(where: str, part: Any) -> Table:
        return read(HubSplit(where, part))

    own = Hub(hub, config, train or "train", test, read=read_split, own=True)
    return Own(None, own, f"own data set: {hub}")


def _names(task: str, option: str, given: Names) -> tuple[str, ...]:
    names = () if given is None else (given,) if isinstance(given, str) else tuple(given)
    if not all(isinstance(name, str) and name for name in names):
        raise InputError(f"{task}(...): {option} is a file name or a list of them, in quotes.")
    return names
