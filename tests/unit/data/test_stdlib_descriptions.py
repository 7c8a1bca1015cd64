"""The built-in language task of descriptions."""

import pytest

from fedjax_lora.core.errors import InputError
from fedjax_lora.data.datasets import stdlib_descriptions
from fedjax_lora.data.datasets.stdlib_definitions import PACKAGES
from fedjax_lora.data.datasets.stdlib_descriptions import LEAST, WORDS, first_sentence, read


def test_packages_are_natural_clients_with_train_and_test_examples():
    train, test = stdlib_descriptions.read()
    assert len(train.texts) > 800 and 0.1 < len(test.texts) / len(train.texts) < 0.4
    for table in (train, test):
        assert set(table.groups) == set(table.labels) == set(PACKAGES)
        for text, answer, group in zip(table.texts, table.pairs, table.groups, strict=True):
            assert text.endswith(f"of Python's package {group} do? Answer in one sentence.")
            assert WORDS[0] <= len(answer.split()) <= WORDS[1] and answer.endswith(".")
    assert set(train.texts).isdisjoint(test.texts)


def test_signatures_and_first_sentences_are_read_from_source_files(tmp_path):
    for name in PACKAGES.values():
        (tmp_path / name).mkdir()
        lines = [
            f'def f{n}(a, *, b=1):\n    "Does {name} thing{n} part{n}. More."\n'
            for n in range(LEAST)
        ]
        (tmp_path / name / "part.py").write_text("".join(lines))
    with (tmp_path / "email" / "part.py").open("a") as file:
        file.write(
            'class A:\n    async def g(self, x: int = 3):\n        "Reads i.e. one word. Two."\n'
        )
        file.write('def no_stop(a): "Text without an end"\n')
    tables = read.__wrapped__(tmp_path)
    pairs = {
        text: pair for table in tables for text, pair in zip(table.texts, table.pairs, strict=True)
    }
    question = "What does {} of Python's package email do? Answer in one sentence."
    assert len(pairs) == len(PACKAGES) * LEAST + 1
    assert pairs[question.format("A.g(self, x: int=3)")] == "Reads i.e. one word."
    assert pairs[question.format("f0(a, *, b=1)")] == "Does email thing0 part0."


def test_first_sentences_end_at_a_full_stop():
    assert first_sentence("One two") == ""
    assert first_sentence("See a.b.c of it. Two.") == "See a.b.c of it."


def test_standard_library_without_sources_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"'descriptions' needs the standard library's \.py files"):
        read(tmp_path)
