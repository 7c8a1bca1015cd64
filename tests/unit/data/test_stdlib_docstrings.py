"""The built-in task on docstrings of the standard library."""

import sys

import pytest

from fedjax_lora.core.errors import InputError
from fedjax_lora.data.datasets import stdlib_docstrings
from fedjax_lora.data.datasets.stdlib_docstrings import FAMILIES, MIN_CHARACTERS, MIN_WORDS, read


@pytest.fixture(scope="module")
def tables():
    before = set(sys.modules)
    tables = stdlib_docstrings.read()
    # Reading the library's sources must not import them.
    assert not {name for name in set(sys.modules) - before if name.split(".")[0] in everything()}
    return tables


def everything():
    return {name for packages in FAMILIES.values() for name in packages.split()}


def test_no_package_is_in_two_families():
    assert len(everything()) == sum(len(packages.split()) for packages in FAMILIES.values())


def test_classes_and_test_share_are_balanced(tables):
    train, test = tables
    assert len(train.texts) > 4000
    total = len(train.texts) + len(test.texts)
    assert 0.15 < len(test.texts) / total <= 0.2
    for table in tables:
        counts = [table.labels.count(family) for family in range(len(FAMILIES))]
        assert min(counts) > 50
        assert max(counts) < 3.5 * min(counts)


def test_modules_and_texts_appear_in_one_split_only(tables):
    train, test = tables
    assert not set(train.groups) & set(test.groups)
    texts = [text.casefold() for text in train.texts + test.texts]
    assert len(set(texts)) == len(texts)


def test_texts_are_clean(tables):
    for text in tables[0].texts + tables[1].texts:
        assert text == " ".join(text.split())
        assert len(text) >= MIN_CHARACTERS
        assert len(text.split()) >= MIN_WORDS


def test_modules_and_removed_packages_are_left_out(tables):
    names = {part for table in tables for module in table.groups for part in module.split(".")}
    assert not names & {"test", "tests", "idle_test", "lib2to3", "distutils", "site-packages"}


def library(root, *, families=tuple(FAMILIES)):
    """A tiny library: for each family five modules of one docstring each."""
    for family in families:
        for n, name in enumerate(FAMILIES[family].split()[:1] * 5):
            package = root / name
            package.mkdir(exist_ok=True)
            doc = f"Number {n} of the package {name} is here."
            (package / f"m{n}.py").write_text(f'"""{doc}"""\n')
    return root


def test_docstrings_are_read_from_a_module(tmp_path):
    root = library(tmp_path)
    (root / "string.py").write_text(
        'if True:\n    class A:\n        "A class inside a condition."\n'
        '        async def f(self):\n            "A   method,\\n   of two lines."\n'
        '            def g(): "A function in a function."\n'
        "def h(): 'Too short a text'\ndef i(): 'f(x) -> y'\nx = '\\d'\n"
    )
    (root / "string").joinpath("m9.py").write_text('def f(): "A METHOD, of two lines."\n')
    (root / "tkinter" / "again.py").write_text('"""The same text twice, in one family."""\n')
    (root / "tkinter" / "twice.py").write_text('"""The same text twice, in one family."""\n')
    (root / "re.py").write_text('"""A text that two families have."""\n')
    (root / "email" / "x.py").write_text('"""A text that two families have."""\n')
    texts = [text for table in read(root) for text in table.texts]
    assert texts.count("A class inside a condition.") == 1
    assert texts.count("A method, of two lines.") == 1
    assert "A METHOD, of two lines." not in texts
    assert texts.count("A function in a function.") == 1
    assert texts.count("The same text twice, in one family.") == 1
    assert "A text that two families have." not in texts
    assert not {"Too short a text", "f(x) -> y"} & set(texts)


def test_unreadable_files_are_skipped(tmp_path):
    root = library(tmp_path)
    (root / "re.py").write_text("def f(:\n")
    (root / "copy.py").write_bytes(b"\0\0")
    (root / "enum.py").write_bytes(b'"""A text with \xff in it, not UTF-8."""')
    (root / "types.py").mkdir()
    train, test = read(root)
    assert len(train.texts) + len(test.texts) == 5 * len(FAMILIES)


def test_split_is_deterministic(tmp_path):
    root = library(tmp_path)
    assert read.__wrapped__(root) == read.__wrapped__(root)


@pytest.mark.parametrize("families", [(), tuple(FAMILIES)[1:]])
def test_standard_library_without_sources_is_refused(tmp_path, families):
    library(tmp_path, families=families)
    with pytest.raises(InputError, match=r"needs the standard library's \.py files"):
        read(tmp_path)
