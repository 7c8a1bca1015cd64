"""The built-in task `docstrings`: which part of the standard library a docstring comes from.

The source files of the running Python's standard library are parsed (never imported) when the task
is loaded. The texts differ a little between Python versions, so results are comparable only within
one version. The classes follow the chapters of the Library Reference; packages that later versions
dropped are used where they exist. A docstring may name its module and is not changed; the task is
not trivial because the split puts whole modules into either the training or the test set.

Left out: tests, `lib2to3` and `distutils` (removed in later versions) and `encodings` (generated
modules with identical docstrings).
"""

import functools
import sysconfig
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedjax_lora.core.errors import InputError
from fedjax_lora.data.datasets import python_sources
from fedjax_lora.data.datasets.python_sources import Text
from fedjax_lora.data.datasets.records import Table

TEST_SHARE = 0.2
MIN_CHARACTERS, MIN_WORDS = 20, 4

FAMILIES: dict[str, str] = {
    "text, types and numbers": """
        string re difflib textwrap stringprep codecs sre_compile sre_parse sre_constants
        datetime _pydatetime _strptime zoneinfo calendar collections _collections_abc heapq bisect
        weakref _weakrefset types copy pprint reprlib enum graphlib
        numbers _pydecimal decimal fractions random statistics _pylong
        functools operator""",
    "files and operating system": """
        pathlib posixpath ntpath genericpath fileinput stat filecmp tempfile glob fnmatch linecache
        shutil nturl2path pickle pickletools copyreg shelve dbm sqlite3 gzip bz2 lzma _compression
        zipfile tarfile csv configparser tomllib netrc plistlib xdrlib hashlib hmac secrets
        aifc wave chunk colorsys imghdr sndhdr sunau
        os io _pyio argparse getopt optparse logging getpass curses platform ctypes locale gettext
        cmd shlex pty tty pipes crypt _osx_support _aix_support""",
    "concurrency": """
        threading _threading_local multiprocessing concurrent subprocess sched queue contextvars
        asyncio asyncore asynchat selectors signal""",
    "internet protocols": """
        socket ssl webbrowser wsgiref urllib http ftplib poplib imaplib smtplib smtpd nntplib
        telnetlib uuid socketserver xmlrpc ipaddress cgi cgitb""",
    "internet data": """
        email json mailbox mailcap mimetypes base64 binascii quopri uu html xml _markupbase""",
    "graphical interfaces": "tkinter turtle turtledemo idlelib",
    "development tools": """
        typing pydoc doctest unittest pdb bdb trace tracemalloc timeit profile cProfile pstats
        ensurepip venv zipapp""",
    "runtime and language": """
        sysconfig warnings dataclasses contextlib abc _py_abc traceback inspect site code codeop
        zipimport pkgutil modulefinder runpy importlib imp ast symtable token tokenize keyword
        tabnanny pyclbr py_compile compileall dis rlcompleter""",
}
_EXCLUDED = frozenset({"test", "tests", "idle_test"})


@functools.cache
def read(root: Path | None = None) -> tuple[Table, Table]:
    """Read the task as (train, test), split by module.

    Args:
      root: the folder of the standard library; by default that of the running Python.

    Raises:
      InputError: there are no source files (a zipped or stripped library).
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    names = tuple(FAMILIES)
    files = list(_modules(root))
    examples = python_sources.cached(
        "docstrings", __file__, (path for _, _, path in files), lambda: _read(files)
    )
    if len({family for family, *_ in examples}) < len(names):
        raise InputError(
            f"The task 'docstrings' needs the standard library's .py files, and {root} lacks them "
            "(zipped or stripped); choose another task."
        )
    test_modules = _test_modules(examples)
    train = [example for example in examples if example[1] not in test_modules]
    test = [example for example in examples if example[1] in test_modules]
    return _table(train), _table(test)


def _read(files: Sequence[tuple[str, str, Path]]) -> list[Text]:
    label = {name: n for n, name in enumerate(FAMILIES)}
    return _without_duplicates(
        [
            Text(label[family], module, text)
            for family, module, path in files
            for text in _docstrings(path)
        ]
    )


def _modules(root: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield (family, dotted module name, path) in a fixed order."""
    for family, packages in FAMILIES.items():
        for package in packages.split():
            for path in [root / f"{package}.py", *sorted((root / package).rglob("*.py"))]:
                parts = path.relative_to(root).with_suffix("").parts
                if _EXCLUDED.isdisjoint(parts) and path.is_file():
                    yield family, ".".join(parts).removesuffix(".__init__"), path


def _docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of a module, its classes, functions and methods; none if unreadable."""
    for _, node in python_sources.definitions(path):
        text = python_sources.docstring(node)
        if len(text) >= MIN_CHARACTERS and len(text.split()) >= MIN_WORDS:
            yield text


def _without_duplicates(examples: list[Text]) -> list[Text]:
    """Keep each text once, and drop texts that occur in two families, whose class is ambiguous."""
    families = defaultdict(set)
    first = {}
    for example in examples:
        key = example[2].casefold()
        families[key].add(example[0])
        first.setdefault(key, example)
    return [example for key, example in first.items() if len(families[key]) == 1]


def _test_modules(examples: list[Text]) -> set[str]:
    """Choose whole modules for the test set until each family's share is near `TEST_SHARE`.

    Modules are ordered by a checksum of their names, which is as good as random; a module stays in
    its set across Python versions as far as the sizes allow.
    """
    sizes = Counter((family, module) for family, module, _ in examples)
    totals = Counter(family for family, *_ in examples)
    taken: Counter[int] = Counter()
    test = set()
    for family, module in sorted(sizes, key=lambda key: (zlib.crc32(key[1].encode()), key)):
        size = sizes[family, module]
        if taken[family] + size <= TEST_SHARE * totals[family]:
            taken[family] += size
            test.add(module)
    return test


def _table(examples: list[Text]) -> Table:
    families, modules, texts = (list(column) for column in zip(*examples, strict=True))
    rows = range(1, len(texts) + 1)
    return Table("the standard library", texts, families, rows, groups=modules)
