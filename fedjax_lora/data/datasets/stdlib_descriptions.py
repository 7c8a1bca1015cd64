"""The built-in language task `descriptions`: what a function of the standard library does.

An instruction asks what a function does, by its package, name and arguments; the completion is the
first sentence of its docstring. The packages are those of the task `definitions`, and the natural
clients. The source files of the running Python's standard library are parsed (never imported), so
texts differ a little between Python versions, and results are comparable only within one.

The split is by function. Of texts that have nearly the same words only one is kept.
"""

import ast
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedjax_lora.data.datasets import python_sources
from fedjax_lora.data.datasets.python_sources import Text
from fedjax_lora.data.datasets.records import Table
from fedjax_lora.data.datasets.stdlib_definitions import PACKAGES, SIMILAR, split_texts

WORDS = (4, 25)  # of a completion
LONGEST = 80  # characters of a name with its arguments
LEAST = 20  # examples of a package


@functools.cache
def read(root: Path | None = None) -> tuple[Table, Table]:
    """Read the task as (train, test), split by a checksum of the text.

    Args:
      root: the folder of the standard library; by default that of the running Python.

    Raises:
      InputError: source files are missing (a zipped or stripped library).
    """
    train, test = split_texts("descriptions", __file__, _read, least=LEAST, root=root)
    return _table(train), _table(test)


def _read(files: Sequence[tuple[int, str, Path]]) -> list[Text]:
    first: dict[tuple[int, str], Text] = {}  # of each question
    for label, module, path in files:
        for text in _texts(label, module, path):
            first.setdefault((label, text.text.partition("\n")[0]), text)
    return python_sources.without_near_duplicates([*first.values()], SIMILAR)


def _texts(label: int, module: str, path: Path) -> Iterator[Text]:
    """Yield the signature and the first sentence of each function of a file, as two lines."""
    for name, node in python_sources.definitions(path):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        signature = f"{name}({ast.unparse(node.args)})"
        sentence = first_sentence(python_sources.docstring(node))
        if len(signature) <= LONGEST and WORDS[0] <= len(sentence.split()) <= WORDS[1]:
            yield Text(label, module, f"{signature}\n{sentence}")


def first_sentence(docstring: str) -> str:
    """Return the first sentence of a text on one line; empty if it ends without a full stop.

    >>> first_sentence("Return x, e.g. 1.5 times y. It may be slow.")
    'Return x, e.g. 1.5 times y.'
    """
    found = re.match(r".*?(?<!e\.g)(?<!i\.e)\.(?=\s|$)", docstring)
    return found[0] if found else ""


def _table(texts: list[Text]) -> Table:
    packages = tuple(PACKAGES)
    names = [packages[text.label] for text in texts]
    signatures, sentences = zip(*(text.text.split("\n") for text in texts), strict=True)
    return Table(
        "the standard library",
        texts=[
            f"What does {signature} of Python's package {name} do? Answer in one sentence."
            for signature, name in zip(signatures, names, strict=True)
        ],
        labels=names,
        rows=range(1, len(texts) + 1),
        pairs=list(sentences),
        groups=names,
        contexts=[""] * len(texts),
    )
