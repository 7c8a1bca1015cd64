"""Generated blocks of Markdown files, each between two comments that name the block."""

import pathlib
import re
from collections.abc import Iterable, Sequence

README = pathlib.Path(__file__).parents[2] / "README.md"


def as_table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table."""
    rows = [columns, ("---",) * len(columns), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def put(name: str, text: str, path: pathlib.Path = README) -> None:
    """Replace the text between ``<!-- name:begin -->`` and ``<!-- name:end -->``.

    Raises:
      SystemExit: the file has no such block.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before = path.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(before):
        raise SystemExit(f"{path.name} has no block {name}; add the lines {begin} and {end}.")
    after = pattern.sub(lambda _: f"{begin}\n{text}{end}", before)
    path.write_text(after, encoding="utf-8")
