"""What predict reads and writes, without a model."""

import csv
import io
import json

import numpy as np

from fedjax_lora.cli import predict

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
