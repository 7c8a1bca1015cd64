"""The user's own csv, tsv, jsonl and Parquet files."""

import datetime
import decimal
import gzip
import lzma
from collections.abc import Iterator

import numpy as np
import pyarrow
import pyarrow.parquet

from experiments.robustness.malformed_input import good
from experiments.robustness.malformed_input.case import (
    DEEP,
    GARBAGE,
    IN_PLACE,
    LONG_NAME,
    LONG_NUMBER,
    Case,
)

FORMATS = ("csv", "tsv", "jsonl", "parquet")
HUGE_LINE = b"x" * (2**24 + 1)
BOMB = {
    "gz": gzip.compress(bytes(2**24), 1) * 16,
    "xz": lzma.compress(bytes(2**24), preset=0) * 16,
}
"""Some kilobytes that unpack to one line of 256 megabytes."""
ROWS = {
    "gz": gzip.compress(good.csv(), 1) + gzip.compress(b"a,yes\n" * 2**18, 1) * 16,
    "xz": lzma.compress(good.csv(), preset=0) + lzma.compress(b"a,yes\n" * 2**18, preset=0) * 16,
}
"""Kilobytes that unpack to four million rows."""

CSV: dict[str, bytes] = {
    "only a header": b"text,label\n",
    "no column of texts": b"words,label\na,b\n",
    "no column of labels": b"text,class\na,b\n",
    "neither column": b"one,two\na,b\n",
    "a header in capitals": b"TEXT,LABEL\na,b\n",
    "a column twice": b"text,text,label\na,b,c\n",
    "semicolons": b"text;label\na;b\n",
    "tabs": b"text\tlabel\na\tb\n",
    "a field too few": good.csv() + b"alone\n",
    "a field too many": good.csv() + b"one,two,three\n",
    "a comma that is not quoted": good.csv() + b"well, yes,no\n",
    "a quote that never ends": good.csv() + b'"a text,yes\n',
    "text after a quote": good.csv() + b'"a text"s,yes\n',
    "latin-1 in the last row": good.csv() + "caf\xe9,yes\n".encode("latin-1"),
    "half a character": good.csv() + b"\xe2\x82,yes\n",
    "utf-16": good.csv().decode().encode("utf-16"),
    "utf-32": good.csv().decode().encode("utf-32"),
    "an empty text": good.csv() + b",yes\n",
    "an empty label": good.csv() + b"a text,\n",
    "a blank label": good.csv() + b'a text," \t"\n',
    "a text of 17 million characters over many lines": good.csv()
    + b'"'
    + b"x\n" * 2**23
    + b'"x"\n',
    "a line of 17 million characters": good.csv() + HUGE_LINE + b",yes\n",
    "one row": b"text,label\na,b\n",
    "fewer rows than clients": b"text,label\na,b\nc,d\n",
    "json": good.jsonl(),
    "parquet": good.parquet({"text": good.TEXTS, "label": good.LABELS}),
}

JSONL: dict[str, bytes] = {
    "half an object": b'{"text": "a", "label"\n',
    "an object over two lines": b'{"text": "a",\n"label": 1}\n',
    "one array of objects": b'[{"text": "a", "label": 1}]\n',
    "a number": b"7\n",
    "a string": b'"text"\n',
    "null": b"null\n",
    "no text": b'{"label": 1}\n',
    "no label": b'{"text": "a"}\n',
    "a text that is null": b'{"text": null, "label": 1}\n',
    "a text that is a list": b'{"text": ["a"], "label": 1}\n',
    "a text that is an object": b'{"text": {"a": 1}, "label": 1}\n',
    "a label that is null": b'{"text": "a", "label": null}\n',
    "a label that is a list": b'{"text": "a", "label": [1]}\n',
    "a label that is NaN": b'{"text": "a", "label": NaN}\n',
    "a trailing comma": b'{"text": "a", "label": 1,}\n',
    "single quotes": b"{'text': 'a', 'label': 1}\n",
    "a comment": b'# texts\n{"text": "a", "label": 1}\n',
    "two objects in a line": b'{"text": "a", "label": 1}{"text": "b", "label": 2}\n',
    "an unknown escape": b'{"text": "\\x41", "label": 1}\n',
    "half an escape": b'{"text": "\\u12", "label": 1}\n',
    "a lone surrogate": good.jsonl() + b'{"text": "\\ud800", "label": "yes"}\n',
    "a lone surrogate as a label": good.jsonl() + b'{"text": "a", "label": "\\udfff"}\n',
    "a control character": b'{"text": "a\x01", "label": 1}\n',
    "a zero byte": b'{"text": "a", \x00"label": 1}\n',
    "nested 200,000 deep": DEEP + b"\n",
    "objects nested 100,000 deep": b'{"a":' * 100_000 + b"\n",
    "a number of 5,000 digits": b'{"text": "a", "label": ' + LONG_NUMBER + b"}\n",
    "a line of 17 million characters": good.jsonl() + HUGE_LINE,
    "csv": good.csv(),
    "no row": b"\n\n",
    "an empty text": good.jsonl() + b'{"text": "", "label": "yes"}\n',
    "a label of spaces": good.jsonl() + b'{"text": "a", "label": "  "}\n',
    "a conversation": b'{"messages": [{"role": "user", "content": "a"}]}\n',
    "True for true": b'{"text": "a", "label": True}\n',
}


def _columns(**changed: list) -> bytes:
    return good.parquet({"text": good.TEXTS, "label": good.LABELS} | changed)


def _class_labels(labels: list[int], names: tuple[str, ...] = ("no", "yes")) -> bytes:
    """A table whose labels `datasets` has stored as numbers of classes."""
    feature = {"names": names, "_type": "ClassLabel"}
    about = {b"huggingface": good.as_json({"info": {"features": {"label": feature}}})}
    table = pyarrow.table({"text": good.TEXTS, "label": labels}).replace_schema_metadata(about)
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def _repeated() -> bytes:
    """Kilobytes that hold gigabytes: one long text for all rows."""
    index = pyarrow.array(np.zeros(500_000, np.int32))
    column = pyarrow.DictionaryArray.from_arrays(index, pyarrow.array(["x" * 10_000]))
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": column, "label": column}), sink)
    return sink.getvalue().to_pybytes()


_COUNT = len(good.TEXTS)
_WHOLE = _columns()

PARQUET: dict[str, bytes] = {
    "no column of texts": good.parquet({"label": good.LABELS}),
    "no column of labels": good.parquet({"text": good.TEXTS}),
    "no column at all": good.parquet({}),
    "no rows": good.parquet({"text": [], "label": []}),
    "texts that are lists": _columns(text=[["a"]] * _COUNT),
    "texts that are records": _columns(text=[{"a": 1}] * _COUNT),
    "texts that are bytes": _columns(text=[b"\xff\xfe"] * _COUNT),
    "texts that are dates": _columns(text=[datetime.date(2020, 1, 1)] * _COUNT),
    "texts that are times": _columns(text=[datetime.datetime(2020, 1, 1)] * _COUNT),
    "a text that is missing": _columns(text=[None, *good.TEXTS[1:]]),
    "texts that are all missing": _columns(text=[None] * _COUNT),
    "labels that are decimals": _columns(label=[decimal.Decimal("1.5")] * _COUNT),
    "a label that is missing": _columns(label=[*good.LABELS[1:], None]),
    "a label that is not a number": _columns(label=[float("nan")] * _COUNT),
    "labels that are lists": _columns(label=[[1]] * _COUNT),
    "a text that is empty": _columns(text=["", *good.TEXTS[1:]]),
    "a class label without a name": _class_labels([0, 1, 2] * (_COUNT // 3)),
    "a class label that is -1": _class_labels([-1, *[0, 1] * (_COUNT // 2)][:_COUNT]),
    "a class name twice": _class_labels([0, 1] * (_COUNT // 2), names=("yes", "yes")),
    "a text of 10,000 characters half a million times": _repeated(),
    "only the magic word": b"PAR1",
    "the magic word twice": b"PAR1PAR1",
    "a footer of no bytes": b"PAR1" + bytes(4) + b"PAR1",
    "a footer of 4 gigabytes": b"PAR1" + b"\xff\xff\xff\xff" + b"PAR1",
    "a footer of 2 gigabytes": b"PAR1" + b"\xff\xff\xff\x7f" + b"PAR1",
    "an encrypted footer": _WHOLE[:-4] + b"PARE",
    "a footer of zeros": _WHOLE[:-200] + bytes(192) + _WHOLE[-8:],
    "pages of zeros": _WHOLE[:4] + bytes(len(_WHOLE) // 3) + _WHOLE[4 + len(_WHOLE) // 3 :],
    **{f"cut at {part} %": _WHOLE[: len(_WHOLE) * part // 100] for part in range(10, 100, 10)},
}

_SCORES = "text,label\n" + "\n".join(f"{text},{n}" for n, text in enumerate(good.TEXTS))


def cases() -> Iterator[Case]:
    """Broken tables, in every format and form of packing."""
    for ending in FORMATS:
        spec = (f"--task={good.task(f'train.{ending}')}",)
        own = {"csv": CSV, "jsonl": JSONL, "parquet": PARQUET, "tsv": {}}[ending]
        for name, spoil in (GARBAGE | IN_PLACE | own).items():
            yield Case("data files", f"{ending}: {name}", {f"data/train.{ending}": spoil}, spec)
    yield from _packed()
    yield from _labels()
    yield from _specs()


def _packed() -> Iterator[Case]:
    whole = {"gz": gzip.compress(good.csv()), "xz": lzma.compress(good.csv())}
    for ending, content in whole.items():
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
        broken = {
            "not packed at all": good.csv(),
            "cut": content[:-12],
            "its head only": content[:6],
            "a byte turned": flipped,
            "empty": b"",
            "a bomb": BOMB[ending],
            "a bomb of rows": ROWS[ending],
            "packed twice": (gzip.compress if ending == "gz" else lzma.compress)(content),
        }
        for name, spoil in broken.items():
            file = f"train.csv.{ending}"
            words = (f"--task={good.task(file)}",)
            yield Case("data files", f"csv.{ending}: {name}", {f"data/{file}": spoil}, words)
    for name, spoil in {
        "not packed at all": _WHOLE,
        "garbage": gzip.compress(b"garbage"),
        "cut": gzip.compress(_WHOLE)[:-12],
    }.items():
        words = (f"--task={good.task('train.parquet.gz')}",)
        files = {"data/train.parquet.gz": spoil}
        yield Case("data files", f"parquet.gz: {name}", files, words)


def _labels() -> Iterator[Case]:
    strange = good.csv().replace(b",yes", b",maybe")
    spec = good.task("train.csv", test="other.csv")
    files = {"data/other.csv": strange}
    yield Case("data files", "a class only in the test file", files, (f"--task={spec}",))
    spec = good.task("train.csv", metric="pearson")
    for name, score in {
        "words": "good",
        "nothing": "",
        "NaN": "nan",
        "infinity": "inf",
        "more than float32 holds": "1e39",
        "more than float64 holds": "1e999",
    }.items():
        files = {"data/train.csv": _SCORES.replace(",7", f",{score}").encode()}
        yield Case("data files", f"a score that is {name}", files, (f"--task={spec}",))


def _specs() -> Iterator[Case]:
    for name, spec in {
        "no file name": "file()",
        "a name of 5,000 characters": good.task(f"{LONG_NAME}.csv"),
        "a name with a zero byte": "file(train='a\\x00.csv')",
        "a folder above": "file(train='../nothing.csv')",
        "an unknown ending": good.task("train.xls"),
        "an unknown format": good.task("train.csv", format="excel"),
        "another format": good.task("train.csv", format="parquet"),
        "an unknown metric": good.task("train.csv", metric="bleu"),
        "a column that is not there": good.task("train.csv", text="words"),
        "a group that is not there": good.task("train.csv", group="who"),
        "a pair that is not there": good.task("train.csv", pair="other"),
        "a number for a file": "file(train=7)",
        "a list with a file that is not there": "file(train=['train.csv', 'none.csv'])",
        "a list with a number": "file(train=['train.csv', 7])",
        "an empty list of files": "file(train=[])",
        "a call for a file": "file(train=open('train.csv'))",
        "a number for a column": "file(train='train.csv', text=1)",
        "a delimiter of two characters": good.task("train.csv", delimiter=";;"),
        "another delimiter": good.task("train.csv", delimiter=";"),
        "a delimiter for json": good.task("train.jsonl", delimiter=";"),
        "an unknown encoding": good.task("train.csv", encoding="utf-9"),
        "an encoding of no text": good.task("train.csv", encoding="zlib"),
        "another encoding": good.task("train.csv", encoding="utf-16"),
        "a folder for a file": "file(train='.')",
        "a test file that is not there": good.task("train.csv", test="none.csv"),
        "a web address": "file(train='https://example.org/train.csv')",
    }.items():
        yield Case("data files", f"a task with {name}", {}, (f"--task={spec}",))
    yield Case("data files", "a data folder that is none", {}, ("--data-dir=/no/such",))
    yield Case("data files", "a data folder's long name", {}, (f"--data-dir=/{LONG_NAME}",))
