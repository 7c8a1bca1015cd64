"""Tables written by pandas and `datasets`, read by them and by us."""

import csv
import functools
import gzip
import json
import lzma
import pathlib
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pandas

from experiments.robustness.fuzz import grammar
from experiments.robustness.fuzz.case import Answer, Answers, Case, Refused, Subject, Unwritten
from fedjax_lora import data

PART = "tables"

TEXTS = {
    "plain": ["one two", "three", "four five six", "seven"],
    "commas and quotes": ['well, "yes"', 'a "quote', "it's, so", '""'],
    "line breaks": ["one\ntwo", "three\r\nfour", "\nfive", "six\n"],
    "tabs and separators": ["one\ttwo", "a;b|c", "x\u2028y", "v\x0bw\x85z"],
    "missing-like": ["NA", "null", "nan", "None"],
    "numbers": ["1", "007", "1e5", "-0.0"],
    "languages": ["Grüße", "日本語", "🙂🙃", "e\u0301\u200d"],
    "spaces": [" leading", "trailing ", "  ", "a  b"],
    "markup": ["=SUM(A1)", "<b>x</b>", "\\n\\t", "{'a': [1]}"],
    "long": ["x" * 200_000, "y", "z", "w"],
    "empty": ["", "two", "three", "four"],
    "missing": [None, "two", "three", "four"],
    "byte order mark": ["\ufeffone", "two", "three", "four"],
}
LABELS: dict[str, list[Any]] = {
    "names": ["pos", "neg", "pos", "neg"],
    "numbers": [1, 0, 1, 2],
    "floats": [1.0, 0.0, 1.0, 0.0],
    "bools": [True, False, True, False],
    "digits": ["10", "9", "10", "2"],
    "spaces": ["a ", "b", "a ", "b"],
    "missing-like": ["None", "NA", "None", "NA"],
    "languages": ["喜", "怒", "喜", "怒"],
    "commas": ["a,b", 'c"d', "a,b", "e\tf"],
    "class labels": [1, 0, 1, 0],
    "unlabelled": [1, -1, 1, 0],
    "categories": ["b", "a", "b", "a"],
    "missing": ["a", None, "b", "a"],
    "empty": ["a", "", "b", "a"],
    "large": [2**40, 5, 2**40, 7],
}
CHOICES: dict[str, list[Any]] = {
    "texts": [*TEXTS],
    "labels": [*LABELS],
    "format": ["csv", "jsonl", "parquet", "tsv", "json"],
    "library": ["pandas", "datasets"],
    "quoting": ["minimal", "all", "not numbers"],
    "line_end": ["\n", "\r\n"],
    "index": [False, True],
    "packed": ["", ".gz", ".xz"],
    "encoding": ["utf-8", "utf-8-sig"],
    "columns": [["text", "label"], ["label", "text"], ["text", "more", "label"]],
    "escaped": [False, True],
    "compression": ["snappy", "zstd", "gzip", None],
    "row_group": [None, 2],
    "capitals": [False, True],
}
_QUOTING = {
    "minimal": csv.QUOTE_MINIMAL, "all": csv.QUOTE_ALL, "not numbers": csv.QUOTE_NONNUMERIC,
}  # fmt: skip


_CLASS_LABELS = ("class labels", "unlabelled")
"""Labels that `datasets` stores as numbers with names in the schema."""


def cases() -> Iterator[Case]:
    """Endlessly many cases: each value of each option in turn, in changing formats."""
    focuses = grammar.focuses(CHOICES)
    others = {name: CHOICES[name] for name in CHOICES if name not in ("texts", "labels")}
    number = 0
    while True:
        rng = np.random.default_rng([number, 3])
        about, value = focuses[number % len(focuses)]
        format = CHOICES["format"][(number + number // len(focuses)) % len(CHOICES["format"])]
        drawn = {"about": about, "format": format, **grammar.draw(others, rng), about: value}
        if drawn.get("labels") in _CLASS_LABELS:
            drawn["library"] = "datasets"
        yield Case(PART, number, drawn)
        number += 1


def write(case: Case, folder: pathlib.Path) -> Subject:
    """Write a table as the training set and as the test set.

    Raises:
      Unwritten: the library refuses to write it.
    """
    options = {name: values[0] for name, values in CHOICES.items()} | dict(case.options)
    ending = options["format"].upper() if options["capitals"] else options["format"]
    plain, packed = folder / f"train.{ending}", folder / f"train.{ending}{options['packed']}"
    try:
        _write(options, plain)
    except Exception as error:
        raise Unwritten(f"{type(error).__name__}: {error}") from error
    if options["packed"]:
        opener = {".gz": gzip.open, ".xz": lzma.open}[options["packed"]]
        with opener(packed, "wb") as file:
            file.write(plain.read_bytes())
    return Subject(
        theirs=functools.partial(_theirs, options, plain),
        ours=functools.partial(_ours, packed, folder),
    )


def _frame(options: Any) -> pandas.DataFrame:
    values = {"text": TEXTS[options["texts"]], "label": LABELS[options["labels"]], "more": [5] * 4}
    frame = pandas.DataFrame({name: values[name] for name in options["columns"]})
    if options["labels"] == "categories":
        frame["label"] = frame["label"].astype("category")
    return frame


def _dataset(options: Any) -> datasets.Dataset:
    table = datasets.Dataset.from_pandas(_frame(options), preserve_index=False)
    if options["labels"] in _CLASS_LABELS:
        table = table.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    return table


def _write(options: Any, file: pathlib.Path) -> None:
    write = {"csv": _write_delimited, "tsv": _write_delimited, "parquet": _write_parquet}
    write.get(options["format"], _write_json)(options, file)


def _write_delimited(options: Any, file: pathlib.Path) -> None:
    given = {
        "sep": "\t" if options["format"] == "tsv" else ",",
        "index": options["index"],
        "quoting": _QUOTING[options["quoting"]],
        "lineterminator": options["line_end"],
        "encoding": options["encoding"],
    }
    if options["library"] == "pandas":
        _frame(options).to_csv(file, **given)
    else:
        _dataset(options).to_csv(file, **given)


def _write_json(options: Any, file: pathlib.Path) -> None:
    given = {
        "orient": "records",
        "lines": options["format"] == "jsonl",
        "force_ascii": options["escaped"],
    }
    if options["library"] == "pandas":
        _frame(options).to_json(file, **given)
    else:
        _dataset(options).to_json(file, **given)


def _write_parquet(options: Any, file: pathlib.Path) -> None:
    if options["library"] == "pandas":
        _frame(options).to_parquet(
            file, compression=options["compression"], row_group_size=options["row_group"],
            index=options["index"] or None,
        )  # fmt: skip
    else:
        _dataset(options).to_parquet(file, batch_size=options["row_group"])


def _theirs(options: Any, file: pathlib.Path) -> Answer:
    """Texts and label names as the library reads them, with nothing taken for a missing value.

    Raises:
      Refused: a text or a label is missing.
    """
    read = {"csv": _read_delimited, "tsv": _read_delimited, "parquet": _read_parquet}
    texts, labels = read.get(options["format"], _read_json)(options, file)
    missing = [x for x in (*texts, *labels) if x is None or x != x or x == ""]
    if missing:
        raise Refused(f"reads missing or empty values: {missing}")
    return Answer({"texts": tuple(texts), "labels": tuple(map(str, labels))})


def _read_delimited(options: Any, file: pathlib.Path) -> tuple[list[Any], list[Any]]:
    tabs = options["format"] == "tsv"  # quotes in it are text, as in the files of GLUE
    frame = pandas.read_csv(
        file, sep="\t" if tabs else ",", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        dtype=str, keep_default_na=False, encoding="utf-8-sig", on_bad_lines="error",
    )  # fmt: skip
    return frame["text"].tolist(), frame["label"].tolist()


def _read_json(options: Any, file: pathlib.Path) -> tuple[list[Any], list[Any]]:
    text = file.read_text(encoding="utf-8")
    # `datasets` writes one object per line, whatever the name of the file.
    if options["format"] == "jsonl" or (options["library"] == "datasets" and text[:1] == "{"):
        rows = [json.loads(line) for line in text.split("\n") if line]
    else:
        rows = json.loads(text)
    return [row["text"] for row in rows], [row["label"] for row in rows]


def _read_parquet(options: Any, file: pathlib.Path) -> tuple[list[Any], list[Any]]:
    table = datasets.Dataset.from_parquet(str(file), cache_dir=str(file.parent / "cache"))
    labels = table["label"][:]
    kind = table.features["label"]
    if isinstance(kind, datasets.ClassLabel):
        if min(labels) < 0:
            raise Refused("-1 is no label")
        labels = list(kind.int2str(labels))
    return table["text"][:], labels


def _ours(file: pathlib.Path, folder: pathlib.Path) -> Answers:
    spec = f"file(train={file.name!r}, test={file.name!r})"
    found = data.load(spec, data_dir=str(folder))
    for part, split in (("train", found.train), ("test", found.test)):
        labels = tuple(found.classes[label] for label in split.labels)
        yield part, {"texts": tuple(split.texts), "labels": labels}
