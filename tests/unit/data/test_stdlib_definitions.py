"""The built-in task of definitions."""

import re

import pytest

from fedjax_lora.core.errors import InputError
from fedjax_lora.data.datasets import stdlib_definitions
from fedjax_lora.data.datasets.stdlib_definitions import LEAST, PACKAGES, SIMILAR, read


@pytest.fixture(scope="module")
def tables():
    return stdlib_definitions.read()


def test_classes_and_test_share_are_balanced(tables):
    train, test = tables
    total = len(train.texts) + len(test.texts)
    assert total > 1800
    assert 0.15 < len(test.texts) / total < 0.25
    for table in tables:
        counts = [table.labels.count(label) for label in range(len(PACKAGES))]
        assert min(counts) > 15
        assert max(counts) < 0.2 * sum(counts)


def test_no_test_text_has_a_near_copy_in_the_training_set(tables):
    train, test = ([set(re.findall("[a-z0-9]+", t.lower())) for t in x.texts] for x in tables)
    closest = max(len(a & b) / len(a | b) for a in test[::6] for b in train)
    assert 0.5 < closest < SIMILAR


def _words(n, name):
    return " ".join(f"{letter}{n}{name}" for letter in "uvwxy")


def library(root):
    """A tiny library: for each package one module of functions with different words."""
    for name in PACKAGES.values():
        (root / name).mkdir()
        lines = [
            f'def f{n}(a, *, b=1):\n    "Package {name}: {_words(n, name)}."\n'
            for n in range(LEAST)
        ]
        (root / name / "part.py").write_text("".join(lines))
    return root


def texts_of(root):
    return [text for table in read.__wrapped__(root) for text in table.texts]


def test_classes_and_functions_are_read_from_a_source_file(tmp_path):
    root = library(tmp_path)
    (root / "email" / "more.py").write_text(
        '"""The docstring of a module is left out."""\n'
        'class A(B):\n    "A class with\\n  some words."\n'
        '    async def f(self, x: int = 3): "A method that does nothing."\n'
        "    def g(self): 'Too short text'\n"
        'def h(a, *, b=1): "Package email: U3email v3email w3email x3email y3email."\n'
    )
    (root / "email" / "test").mkdir()
    (root / "email" / "test" / "own.py").write_text('class T: "Tests are not read at all."\n')
    (root / "email" / "broken.py").write_text("def f(:\n")
    texts = texts_of(root)
    assert len(texts) == len(PACKAGES) * LEAST + 2
    assert "A: A class with some words." in texts
    assert "A.f(self, x: int=3): A method that does nothing." in texts


def test_standard_library_without_sources_is_refused(tmp_path):
    root = library(tmp_path)
    (root / "xml" / "part.py").unlink()
    with pytest.raises(InputError, match=r"'definitions' needs the standard library's \.py files"):
        read(root)


def test_texts_do_not_depend_on_the_folder(tmp_path):
    roots = tmp_path / "one", tmp_path / "two"
    for root in roots:
        root.mkdir()
        library(root)
    assert read(roots[0]) == read(roots[1])
