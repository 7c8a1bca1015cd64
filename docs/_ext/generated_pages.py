"""Sphinx extension: pages that are generated before the build reads its sources.

* one page per registered method, from the factory's docstring and ``methods/notes/NAME.md``;
* one page per reproduced paper, from ``experiments/papers/NAME/README.md``;
* the example notebook, copied with the outputs of its last execution.

The pages are not committed: their sources are.
"""

import inspect
import pathlib
import re
import shutil
from typing import Any

DOCS = pathlib.Path(__file__).parents[1]
ROOT = DOCS.parent
PAPERS = ROOT / "experiments" / "papers"
NOTEBOOK = ROOT / "experiments" / "examples" / "federated_lora.ipynb"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def setup(app: Any) -> dict[str, Any]:
    """Register the generator."""
    app.connect("builder-inited", lambda app: write())
    app.connect("autodoc-skip-member", skip_member)
    return {"parallel_read_safe": True}


def skip_member(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples, which their class's docstring lists."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def write() -> None:
    """Write all generated pages."""
    from fedjax_lora.methods import METHODS

    for name, entry in METHODS.items():
        save(DOCS / "methods" / "pages" / f"{name}.md", method_page(name, entry))
    for readme in sorted(PAPERS.glob("*/README.md")):
        save(DOCS / "papers" / "pages" / f"{readme.parent.name}.md", paper_page(readme))
    copy(NOTEBOOK, DOCS / "howto" / "notebook.ipynb")


def save(path: pathlib.Path, text: str) -> None:
    """Write a page if it has changed, so that Sphinx rebuilds only what it must."""
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copy a file if it has changed."""
    if not target.exists() or target.read_bytes() != source.read_bytes():
        shutil.copyfile(source, target)


def method_page(name: str, factory: Any) -> str:
    """The page of one method, in MyST."""
    from fedjax_lora import methods

    ranks = "clients may have different ranks"
    if not methods.takes_mixed_ranks(name):
        ranks = "all clients have the same rank"
    return "\n".join(
        [
            f"# `{name}`",
            "",
            methods.summary(name),
            "",
            f"* Paper: {paper_link(methods.paper(name))}",
            f"* Ranks: {ranks}",
            f"* On the command line: `--method {example(name, factory)}`",
            f"* In Python: `fl.methods.{name}(spec)`",
            "",
            (DOCS / "methods" / "notes" / f"{name}.md").read_text(encoding="utf-8").strip(),
            "",
            "## Reference",
            "",
            "```{eval-rst}",
            f".. autofunction:: {factory.__module__}.{factory.__qualname__}",
            "   :no-index:",
            "```",
            "",
        ]
    )


def example(name: str, factory: Any) -> str:
    """The method's spec with its first option at the default."""
    for parameter in inspect.signature(factory).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            return f'"{name}({parameter.name}={parameter.default!r})"'
    return name


def paper_link(paper: str) -> str:
    """The paper as a link where it is on arXiv."""
    if paper.startswith("arXiv "):
        return f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv ')})"
    return paper


def paper_page(readme: pathlib.Path) -> str:
    """A README as a page of docs/papers/pages: files are linked from there, folders are named."""
    up = "../" * 3

    def relink(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        if "://" in target or target.startswith("#"):
            return match[0]
        path = (readme.parent / target).resolve()
        if (path / "README.md").exists():
            return f"[{text}]({path.name}.md)"
        if path.is_dir():
            return f"{text} in `{path.relative_to(ROOT)}`" if " " in text else text
        return f"{image}[{text}]({up}{path.relative_to(ROOT)})"

    return LINK.sub(relink, readme.read_text(encoding="utf-8"))
