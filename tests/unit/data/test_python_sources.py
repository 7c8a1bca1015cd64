"""Texts from source files, and their cache."""

import os
import threading

import pytest

from fedjax_lora.data.datasets import python_sources
from fedjax_lora.data.datasets.python_sources import Text, cached, without_near_duplicates

TEXTS = [Text(0, "a.b", "One text"), Text(1, "c", "Ánother \ud800 text")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDJAX_LORA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x.py").write_text("x = 1\n")
    return tmp_path


@pytest.fixture
def get(folder):
    """Read the texts; ``get.made`` counts how often they are made."""

    def call(*, task="t"):
        return cached(task, __file__, [folder / "x.py", folder / "absent.py"], make)

    def make():
        call.made += 1
        return TEXTS

    call.made = 0
    return call


def test_texts_are_extracted_once_and_cached(get):
    assert get() == TEXTS and get() == TEXTS
    assert get.made == 1
    assert all(isinstance(text, Text) for text in get())


def test_changed_files_and_other_tasks_invalidate_the_cache(get, folder):
    get()
    os.utime(folder / "x.py", (1, 1))
    get()
    (folder / "x.py").write_text("x = 22\n")
    get()
    (folder / "absent.py").write_text("")
    get()
    get(task="other")
    assert get.made == 5


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"[]", None, "cut", "changed"])
def test_damaged_cache_file_is_replaced(get, folder, damage):
    get()
    (file,) = (folder / "cache" / "sources").iterdir()
    good = file.read_bytes()
    if damage is None:
        file.unlink()
        file.mkdir()
    else:
        bad = {"cut": good[:-2], "changed": good.replace(b"One", b"Two")}
        file.write_bytes(bad.get(damage, damage))
    assert get() == TEXTS
    assert get.made == 2
    if damage is not None:
        assert file.read_bytes() == good


def test_unwritable_cache_folder_is_ignored(get, folder):
    (folder / "cache").write_text("a file")
    assert get() == TEXTS and get() == TEXTS
    assert get.made == 2


def test_concurrent_threads_write_one_cache_file(get, folder):
    threads = [threading.Thread(target=get) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = get.made
    assert get() == TEXTS and get.made == made
    assert len([*(folder / "cache" / "sources").iterdir()]) == 1


def test_near_duplicates_are_removed():
    words = [
        "a b c d",
        "A, b; c: d e",  # 4 of 5 words
        "a b c d e f",  # 4 of 6
        "g h",
        "h g h",
        "g h i",  # 2 of 3
        "",
    ]
    texts = [Text(n, "m", text) for n, text in enumerate(words)]
    kept = without_near_duplicates(texts, 0.8)
    assert [text.label for text in kept] == [0, 2, 3, 5, 6]
    assert without_near_duplicates(texts[::-1], 1.0)[-1].text == "a b c d"
    assert without_near_duplicates([], 0.8) == []


def test_python_sources_are_not_imported(tmp_path):
    file = tmp_path / "trap.py"
    file.write_text("1 / 0\ndef f(): 'A text'\n")
    names = [name for name, _ in python_sources.definitions(file)]
    assert names == ["", "f"]
