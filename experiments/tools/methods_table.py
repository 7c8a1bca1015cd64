"""The README's table of methods, from the registry.

Run it with ``python -m experiments.tools.methods_table``.
"""

import inspect

from experiments.tools.markdown import as_table, put
from fedjax_lora import methods


def table() -> str:
    """Tabulate name, summary, options and paper of every registered method."""
    lines = []
    for name, entry in methods.METHODS.items():
        parameters = inspect.signature(entry.factory).parameters.values()
        keyword = inspect.Parameter.KEYWORD_ONLY
        options = ", ".join(f"`{p.name}={p.default!r}`" for p in parameters if p.kind is keyword)
        paper = entry.paper
        if paper.startswith("arXiv "):
            paper = f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv ')})"
        lines.append([f"`{name}`", methods.summary(name), options, paper])
    return as_table(["method", "what it does", "options", "paper"], lines)


if __name__ == "__main__":
    put("methods", table())
