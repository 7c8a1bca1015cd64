"""Generated blocks of pages: between two comments, written by a command, never typed.

A block named ``noise`` stands between ``<!-- noise:begin -->`` and ``<!-- noise:end -->``, in the
README, on pages of ``docs/``, or in the README of an experiment.
"""

import pathlib
import re
from collections.abc import Iterable, Sequence

ROOT = pathlib.Path(__file__).parents[2]
BUILT = ("_build", "pages")  # folders that the documentation's build writes


def as_table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table with these columns; bars inside of a cell are escaped."""
    rows = [columns, ("---",) * len(columns), *lines]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in escaped)


def pages() -> list[pathlib.Path]:
    """The README and the pages of the documentation that are not written by its build."""
    docs = ROOT / "docs"
    committed = [
        path for path in docs.rglob("*.md") if not {*path.relative_to(docs).parts} & {*BUILT}
    ]
    return [ROOT / "README.md", *sorted(committed)]


def put(name: str, text: str, path: pathlib.Path | None = None) -> None:
    """Replace a block.

    Args:
      name: of the block.
      text: the new text, ending with a newline.
      path: the page; by default every page of `pages` that has the block.
    """
    found = [page for page in ([path] if path else pages()) if read(name, page) is not None]
    if not found:
        begin, end = _marks(name)
        where = path.name if path else "README.md and docs/"
        raise SystemExit(f"{where}: no place for {name}. Add the lines {begin} and {end}.")
    for page in found:
        before = page.read_text(encoding="utf-8")
        begin, end = _marks(name)
        after = _pattern(name).sub(lambda _, b=begin, e=end: f"{b}\n{text}{e}", before)
        page.write_text(after, encoding="utf-8")


def read(name: str, path: pathlib.Path) -> str | None:
    """The text of a block on a page, or None where the page does not have it."""
    match = _pattern(name).search(path.read_text(encoding="utf-8"))
    return match and match[1]


def text_of(name: str) -> list[str]:
    """The text of a block on every page that has it."""
    return [text for page in pages() if (text := read(name, page)) is not None]


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def _pattern(name: str) -> re.Pattern[str]:
    begin, end = map(re.escape, _marks(name))
    return re.compile(f"{begin}\n(.*?){end}", re.DOTALL)
