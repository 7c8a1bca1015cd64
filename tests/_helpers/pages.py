"""The README and the pages of the documentation, and their code blocks."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
GENERATED = ("_build", "pages")  # written by the documentation's build


def pages() -> list[pathlib.Path]:
    """The README and all committed pages."""
    found = sorted(DOCS.rglob("*.md"))
    kept = [p for p in found if not set(GENERATED) & set(p.relative_to(DOCS).parts)]
    return [README, ROOT / "CONTRIBUTING.md", *kept]


def name(page: pathlib.Path) -> str:
    """The page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: pathlib.Path, language: str) -> list[str]:
    """The code blocks of a language; ``python`` includes cells that the build executes."""
    opening = rf"```{language}"
    if language == "python":
        opening = r"```(?:python|\{code-cell\} ipython3)"
    return re.findall(rf"^{opening}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
