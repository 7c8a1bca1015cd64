"""Texts from Python source files: parsed, never imported, and kept in the cache folder."""

import ast
import contextlib
import functools
import hashlib
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fedjax_lora.core import atomic_io
from fedjax_lora.core.cache import cache_dir
from fedjax_lora.core.registry import parse_python

Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Text(NamedTuple):
    """A text of a source file.

    Attributes:
      label: index of its class.
      module: dotted name of the module that it is from.
      text: the text, on one line.
    """

    label: int
    module: str
    text: str


def definitions(path: Path) -> Iterator[tuple[str, Definition]]:
    """Yield a module, its classes, functions and methods, with their qualified names.

    The name of the module is empty. Nothing is yielded for a file that cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in strings
            tree = parse_python(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    pending: list[tuple[str, ast.AST]] = [("", tree)]
    while pending:
        name, node = pending.pop()
        if isinstance(node, Definition):
            if not isinstance(node, ast.Module):
                name = f"{name}.{node.name}" if name else node.name
            yield name, node
        # Only statements contain definitions; visiting expressions would take most of the time.
        nested = [item for item in ast.iter_child_nodes(node) if isinstance(item, ast.stmt)]
        pending.extend((name, item) for item in reversed(nested))


def docstring(node: Definition) -> str:
    """Return the docstring of a definition on one line; empty if it has none."""
    return " ".join((ast.get_docstring(node) or "").split())


def without_near_duplicates(texts: Sequence[Text], similarity: float) -> list[Text]:
    """Leave out each text whose words are nearly those of another, which is not longer.

    Args:
      texts: the texts.
      similarity: the least Jaccard similarity of two sets of words (letters and digits, in lower
        case) that are nearly the same.

    Returns:
      The others, in their order. No two of them are nearly the same.
    """
    bit: dict[str, int] = {}
    words = [
        functools.reduce(
            lambda mask, word: mask | 1 << bit.setdefault(word, len(bit)),
            re.findall(r"[a-z0-9]+", text.text.lower()),
            0,
        )
        for text in texts
    ]
    kept: list[int] = []
    for n in sorted(range(len(texts)), key=lambda n: words[n].bit_count()):
        if not _is_near(words[n], (words[k] for k in reversed(kept)), similarity):
            kept.append(n)
    return [texts[n] for n in sorted(kept)]


def _is_near(words: int, others: Iterable[int], similarity: float) -> bool:
    """Whether one of other sets, of descending sizes, is similar to a set that is as large."""
    least = similarity * words.bit_count()
    for other in others:
        if other.bit_count() < least:
            return False
        if (words & other).bit_count() >= similarity * (words | other).bit_count():
            return True
    return False


def cached(
    task: str, code: str, files: Iterable[Path], make: Callable[[], list[Text]]
) -> list[Text]:
    """Return the cached texts of a task, or make and cache them.

    The cache is keyed by the version of Python, by the name, size and time of each file, and by the
    code that reads them. A damaged file is replaced; a folder that cannot be written is left alone.

    Args:
      task: name of the task.
      code: path of the module that reads the files.
      files: all files that are read.
      make: reads them.
    """
    about = [sys.version, *(Path(x).read_text("utf-8") for x in (code, __file__))]
    about += [_stamp(file) for file in files]
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    path = cache_dir() / "sources" / f"{task}-{key[:32]}.json"
    texts = _read(path)
    if texts is None:
        texts = make()
        body = json.dumps(texts)
        with contextlib.suppress(OSError):
            atomic_io.write(path, f"{_digest(body)}\n{body}")
    return texts


def _stamp(file: Path) -> str:
    try:
        about = file.stat()
    except OSError:
        return f"{file}"
    return f"{file} {about.st_size} {about.st_mtime_ns}"


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def _read(path: Path) -> list[Text] | None:
    """Return the texts in a file of the cache; None if it is absent or damaged."""
    try:
        digest, _, body = path.read_text("utf-8").partition("\n")
    except (OSError, ValueError):
        return None
    return [Text(*row) for row in json.loads(body)] if digest == _digest(body) else None
