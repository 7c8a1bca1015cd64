"""The built-in task `definitions`: which package of the standard library a definition is from.

A text is the name, the arguments and the docstring of a class, function or method:
``Future.add_done_callback(self, fn, *, context=None): Add a callback to be run when ...``. The
source files of the running Python's standard library are parsed (never imported), so texts differ
a little between Python versions, and results are comparable only within one.

The split is by definition, so both sets hold texts of the same modules: this is easier on purpose
than `docstrings`, whose test modules are not in the training set. Of texts that have nearly the
same words (`SIMILAR`), in one package or in two, only one is kept, so that no test text has a near
copy in the training set.
"""

import ast
import functools
import sysconfig
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fedjax_lora.core.errors import InputError
from fedjax_lora.data.datasets import python_sources
from fedjax_lora.data.datasets.python_sources import Text
from fedjax_lora.data.datasets.records import Table

PACKAGES = {
    "asyncio": "asyncio",
    "decimal": "_pydecimal",
    "email": "email",
    "http": "http",
    "importlib": "importlib",
    "logging": "logging",
    "mailbox": "mailbox",
    "multiprocessing": "multiprocessing",
    "unittest": "unittest",
    "xml": "xml",
}
"""Packages with many docstrings in all supported versions, by the names of the classes."""

SIMILAR = 0.8
TEST_SHARE = 5  # one of so many
MIN_WORDS = 4  # of a docstring
LEAST = 50  # texts of a package
_EXCLUDED = frozenset({"test", "tests"})


@functools.cache
def read(root: Path | None = None) -> tuple[Table, Table]:
    """Read the task as (train, test), split by a checksum of the text.

    Args:
      root: the folder of the standard library; by default that of the running Python.

    Raises:
      InputError: source files are missing (a zipped or stripped library).
    """
    train, test = split_texts("definitions", __file__, _read, least=LEAST, root=root)
    return _table(train), _table(test)


def split_texts(
    task: str,
    code: str,
    make: Callable[[Sequence[tuple[int, str, Path]]], list[Text]],
    *,
    least: int,
    root: Path | None,
) -> tuple[list[Text], list[Text]]:
    """Return the texts of a task made of the packages, as (train, test); they are cached.

    Args:
      task: name of the task.
      code: path of the module that makes the texts.
      make: makes them of source files, each with its label and dotted name.
      least: texts that each package must have.
      root: the folder of the standard library; None for that of the running Python.

    Raises:
      InputError: source files are missing (a zipped or stripped library).
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    files = list(source_files(root))
    texts = python_sources.cached(task, code, (path for _, _, path in files), lambda: make(files))
    counts = [sum(text.label == label for text in texts) for label in range(len(PACKAGES))]
    if min(counts) < least:
        raise InputError(
            f"The task {task!r} needs the standard library's .py files, and {root} lacks "
            "them (zipped or stripped); choose another task."
        )
    train, test = ([text for text in texts if is_test(text) is side] for side in (False, True))
    return train, test


def _read(files: Sequence[tuple[int, str, Path]]) -> list[Text]:
    texts = [text for label, module, path in files for text in _texts(label, module, path)]
    return python_sources.without_near_duplicates(texts, SIMILAR)


def is_test(text: Text) -> bool:
    """Whether a text is in the test set, by its checksum."""
    return zlib.crc32(text.text.encode()) % TEST_SHARE == 0


def source_files(root: Path) -> Iterator[tuple[int, str, Path]]:
    """Yield (label, dotted module name, path) in a fixed order."""
    for label, package in enumerate(PACKAGES.values()):
        for path in [root / f"{package}.py", *sorted((root / package).rglob("*.py"))]:
            parts = path.relative_to(root).with_suffix("").parts
            if _EXCLUDED.isdisjoint(parts) and path.is_file():
                yield label, ".".join(parts).removesuffix(".__init__"), path


def _texts(label: int, module: str, path: Path) -> Iterator[Text]:
    """Yield the texts of the classes, functions and methods of a file that have a docstring."""
    for name, node in python_sources.definitions(path):
        doc = python_sources.docstring(node)
        if isinstance(node, ast.Module) or len(doc.split()) < MIN_WORDS:
            continue
        arguments = "" if isinstance(node, ast.ClassDef) else f"({ast.unparse(node.args)})"
        yield Text(label, module, f"{name}{arguments}: {doc}")


def _table(texts: list[Text]) -> Table:
    labels, modules, strings = (list(column) for column in zip(*texts, strict=True))
    rows = range(1, len(strings) + 1)
    return Table("the standard library", strings, labels, rows, groups=modules)
