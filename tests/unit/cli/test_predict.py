"""What predict reads and writes, without a model."""

import csv
import io
import json

import numpy as np
import pytest

from fedjax_lora.cli import predict
from fedjax_lora.core.errors import InputError

CLASSES = ("=1+1", "\x1b[31mred\nline", "plain")


def test_names_in_tsv_are_safe_to_show_and_to_open():
    text = "".join(predict._tsv(["a"], np.eye(3)[:2], CLASSES))
    rows = list(csv.reader(io.StringIO(text), delimiter="\t"))
    assert rows[0] == ["label", "probability", "'=1+1", "\\x1b[31mred\nline", "plain"]
    assert [row[0] for row in rows[1:]] == ["'=1+1", "\\x1b[31mred\nline"]


def test_names_and_texts_in_jsonl_are_kept_and_safe_to_show():
    lines = list(predict._jsonl(["\x9b2J =1\x7f"], np.eye(3)[:1], CLASSES))
    assert len(lines) == 1 and lines[0][:-1].isprintable()
    row = json.loads(lines[0])
    assert (row["text"], row["label"]) == ("\x9b2J =1\x7f", "=1+1")
    assert tuple(row["probabilities"]) == CLASSES


INSIDE = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r"


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        *((f"a{c}b\nc\n", [f"a{c}b", "c"]) for c in INSIDE),
        ("a\r\nb\r\n", ["a", "b"]),
        ("a\nb", ["a", "b"]),
        ("a\n\nb\n", ["a", "", "b"]),
        ("a\n\n", ["a", ""]),
        ("\ufeffa\nb\n", ["a", "b"]),
        (" a\t \n", [" a\t "]),
    ],
)
@pytest.mark.parametrize("source", ["file", "standard input"])
def test_text_lines_end_only_at_newlines(content, texts, source, tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    file.write_bytes(content.encode())
    if source == "standard input":
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
        file = None
    assert predict.read_texts(file, ["text"]) == [texts]


def test_empty_input_and_pair_without_tab_are_refused(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("")
    with pytest.raises(InputError, match="holds no texts"):
        predict.read_texts(file, ["text"])
    file.write_text("a\tb\u2028\n\nc\td\n")
    with pytest.raises(InputError, match="line 2 has 1 texts where this model reads 2"):
        predict.read_texts(file, ["text", "pair"])
