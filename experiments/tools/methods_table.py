"""The tables of methods, from the registry: ``python -m experiments.tools.methods_table``."""

import inspect

from experiments.tools.markdown import as_table, put
from fedjax_lora import methods


def table() -> str:
    """Tabulate name, summary, options and paper of every method, for ``docs/methods``."""
    lines = [
        [
            f"[`{name}`](pages/{name}.md)",
            methods.summary(name),
            options(name),
            link(methods.paper(name)),
        ]
        for name in methods.METHODS
    ]
    return as_table(["method", "what it does", "options", "paper"], lines)


def short_table() -> str:
    """Tabulate name, summary and paper of every registered method, for the README."""
    lines = [
        [
            f"[`{name}`](docs/methods/notes/{name}.md)",
            methods.summary(name),
            link(methods.paper(name)),
        ]
        for name in methods.METHODS
    ]
    return as_table(["method", "what it does", "paper"], lines)


def options(name: str) -> str:
    """Format the options of a method with their defaults."""
    parameters = inspect.signature(methods.METHODS[name]).parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    return ", ".join(f"`{p.name}={p.default!r}`" for p in parameters if p.kind is keyword)


def link(paper: str) -> str:
    """Format the paper, as a link if it is on arXiv."""
    if not paper.startswith("arXiv "):
        return paper
    return f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv ')})"


if __name__ == "__main__":
    put("methods", table())
    put("methods_short", short_table())
