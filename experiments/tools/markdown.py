"""Generated parts of the README: between two comments, replaced by a command, never typed."""

import pathlib
import re
from collections.abc import Iterable, Sequence

README = pathlib.Path(__file__).parents[2] / "README.md"


def as_table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table with these columns."""
    every = [columns, ("---",) * len(columns), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in every)


def put(name: str, text: str, path: pathlib.Path = README) -> None:
    """Replace what stands between ``<!-- name:begin -->`` and ``<!-- name:end -->``."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before = path.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(before):
        raise SystemExit(f"{path.name} has no place for {name}: add the lines {begin} and {end}.")
    after = pattern.sub(lambda _: f"{begin}\n{text}{end}", before)
    path.write_text(after, encoding="utf-8")
