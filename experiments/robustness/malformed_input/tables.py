"""The user's own csv, tsv, jsonl and Parquet files."""

import datetime
import decimal
import gzip
import lzma
from collections.abc import Iterator

import numpy as np
import pyarrow
import pyarrow.parquet

from experiments.robustness.malformed_input import valid
from experiments.robustness.malformed_input.case import (
    LONG_NAME,
    LONG_NUMBER,
    NESTED,
    NOT_A_FILE,
    UNSUPPORTED,
    Case,
)

FORMATS = ("csv", "tsv", "jsonl", "parquet")
LONG_LINE = b"x" * (2**24 + 1)
BOMBS = {
    "gz": gzip.compress(bytes(2**24), 1) * 16,
    "xz": lzma.compress(bytes(2**24), preset=0) * 16,
}
"""Kilobytes that decompress to one line of 256 megabytes."""
ROW_BOMBS = {
    "gz": gzip.compress(valid.csv(), 1) + gzip.compress(b"a,yes\n" * 2**18, 1) * 16,
    "xz": lzma.compress(valid.csv(), preset=0) + lzma.compress(b"a,yes\n" * 2**18, preset=0) * 16,
}
"""Kilobytes that decompress to four million rows."""

CSV: dict[str, bytes] = {
    "only a header": b"text,label\n",
    "no column of texts": b"words,label\na,b\n",
    "no column of labels": b"text,class\na,b\n",
    "neither column": b"one,two\na,b\n",
    "a header in capitals": b"TEXT,LABEL\na,b\n",
    "a column twice": b"text,text,label\na,b,c\n",
    "semicolons": b"text;label\na;b\n",
    "tabs": b"text\tlabel\na\tb\n",
    "a field too few": valid.csv() + b"alone\n",
    "a field too many": valid.csv() + b"one,two,three\n",
    "a comma that is not quoted": valid.csv() + b"well, yes,no\n",
    "a quote that never ends": valid.csv() + b'"a text,yes\n',
    "text after a quote": valid.csv() + b'"a text"s,yes\n',
    "latin-1 in the last row": valid.csv() + "caf\xe9,yes\n".encode("latin-1"),
    "an incomplete UTF-8 sequence": valid.csv() + b"\xe2\x82,yes\n",
    "utf-16": valid.csv().decode().encode("utf-16"),
    "utf-32": valid.csv().decode().encode("utf-32"),
    "an empty text": valid.csv() + b",yes\n",
    "an empty label": valid.csv() + b"a text,\n",
    "a blank label": valid.csv() + b'a text," \t"\n',
    "an invisible label": valid.csv() + "a text,\u200b\ufeff\n".encode(),
    "a text of 17 million characters over lines": valid.csv()
    + b'"'
    + (b"x" * 2**20 + b"\n") * 17
    + b'",yes\n',
    "a line of 17 million characters": valid.csv() + LONG_LINE + b",yes\n",
    "one row": b"text,label\na,b\n",
    "fewer rows than clients": b"text,label\na,b\nc,d\n",
    "json": valid.jsonl(),
    "parquet": valid.parquet({"text": valid.TEXTS, "label": valid.LABELS}),
}

JSONL: dict[str, bytes] = {
    "an incomplete object": b'{"text": "a", "label"\n',
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
    "an incomplete escape": b'{"text": "\\u12", "label": 1}\n',
    "a lone surrogate": valid.jsonl() + b'{"text": "\\ud800", "label": "yes"}\n',
    "a lone surrogate as a label": valid.jsonl() + b'{"text": "a", "label": "\\udfff"}\n',
    "a control character": b'{"text": "a\x01", "label": 1}\n',
    "a zero byte": b'{"text": "a", \x00"label": 1}\n',
    "nested 200,000 deep": NESTED + b"\n",
    "objects nested 100,000 deep": b'{"a":' * 100_000 + b"\n",
    "a number of 5,000 digits": b'{"text": "a", "label": ' + LONG_NUMBER + b"}\n",
    "a line of 17 million characters": valid.jsonl() + LONG_LINE,
    "csv": valid.csv(),
    "no row": b"\n\n",
    "an empty text": valid.jsonl() + b'{"text": "", "label": "yes"}\n',
    "a label of spaces": valid.jsonl() + b'{"text": "a", "label": "  "}\n',
    "a conversation": b'{"messages": [{"role": "user", "content": "a"}]}\n',
    "Python's True": b'{"text": "a", "label": True}\n',
}


_ASKED = {"role": "user", "content": "a"}
_ANSWERED = [_ASKED, {"role": "assistant", "content": "b"}]
_CONVERSATIONS = "--task=conversations(train='train.jsonl', test='train.jsonl')"


def _messages(*last: object, **columns: object) -> dict[str, object]:
    return {"messages": [_ASKED, *last], **columns}


CONVERSATIONS: dict[str, object] = {
    "another column": {"dialogue": _ANSWERED},
    "a text": {"messages": "hi"},
    "a JSON text": {"messages": '[{"role": "user", "content": "a"}]'},
    "null": {"messages": None},
    "a message that is a text": _messages("hi"),
    "a message without a role": _messages({"content": "b"}),
    "a message of a tool": _messages({"role": "tool", "content": "b"}),
    "an answer that is null": _messages({"role": "assistant", "content": None}),
    "an answer that is a number": _messages({"role": "assistant", "content": 7}),
    "an image": _messages({"role": "user", "content": [{"type": "image_url"}]}),
    "a call of a tool": _messages({"role": "assistant", "content": "", "tool_calls": [{}]}),
    "a thought": _messages({"role": "assistant", "content": "b", "reasoning_content": "c"}),
    "half a weight": _messages({"role": "assistant", "content": "b", "weight": 0.5}),
    "tools": _messages(_ANSWERED[1], tools=[{"name": "f"}]),
    "documents": _messages(_ANSWERED[1], documents=[{"text": "c"}]),
    "options of a template": _messages(_ANSWERED[1], chat_template_kwargs={"thinking": True}),
    "two system turns": _messages({"role": "system", "content": "c"}, system="d"),
    "a prompt that is a text": {"prompt": "a", "completion": [_ANSWERED[1]]},
    "a preference": {"prompt": [_ASKED], "chosen": [_ANSWERED[1]], "rejected": []},
    "a lone surrogate": _messages({"role": "assistant", "content": "\ud800"}),
}
"""Rows that are no conversations, or with what is not read of one."""


def _columns(**changed: list) -> bytes:
    return valid.parquet({"text": valid.TEXTS, "label": valid.LABELS} | changed)


def _class_labels(labels: list[int], names: tuple[str, ...] = ("no", "yes")) -> bytes:
    """A table whose labels `datasets` has stored as numbers of classes."""
    feature = {"names": names, "_type": "ClassLabel"}
    about = {b"huggingface": valid.as_json({"info": {"features": {"label": feature}}})}
    table = pyarrow.table({"text": valid.TEXTS, "label": labels}).replace_schema_metadata(about)
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def _dictionary_bomb() -> bytes:
    """Kilobytes of a dictionary-encoded column that decodes to gigabytes."""
    index = pyarrow.array(np.zeros(500_000, np.int32))
    column = pyarrow.DictionaryArray.from_arrays(index, pyarrow.array(["x" * 10_000]))
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": column, "label": column}), sink)
    return sink.getvalue().to_pybytes()


_COUNT = len(valid.TEXTS)
_WHOLE = _columns()

PARQUET: dict[str, bytes] = {
    "no column of texts": valid.parquet({"label": valid.LABELS}),
    "no column of labels": valid.parquet({"text": valid.TEXTS}),
    "no column at all": valid.parquet({}),
    "no rows": valid.parquet({"text": [], "label": []}),
    "texts that are lists": _columns(text=[["a"]] * _COUNT),
    "texts that are records": _columns(text=[{"a": 1}] * _COUNT),
    "texts that are bytes": _columns(text=[b"\xff\xfe"] * _COUNT),
    "texts that are dates": _columns(text=[datetime.date(2020, 1, 1)] * _COUNT),
    "texts that are times": _columns(text=[datetime.datetime(2020, 1, 1)] * _COUNT),
    "a text that is missing": _columns(text=[None, *valid.TEXTS[1:]]),
    "texts that are all missing": _columns(text=[None] * _COUNT),
    "labels that are decimals": _columns(label=[decimal.Decimal("1.5")] * _COUNT),
    "a label that is missing": _columns(label=[*valid.LABELS[1:], None]),
    "a label that is not a number": _columns(label=[float("nan")] * _COUNT),
    "labels that are lists": _columns(label=[[1]] * _COUNT),
    "a text that is empty": _columns(text=["", *valid.TEXTS[1:]]),
    "a class label without a name": _class_labels([0, 1, 2] * (_COUNT // 3)),
    "a class label that is -1": _class_labels([-1, *[0, 1] * (_COUNT // 2)][:_COUNT]),
    "a class name twice": _class_labels([0, 1] * (_COUNT // 2), names=("yes", "yes")),
    "a text of 10,000 characters half a million times": _dictionary_bomb(),
    "magic bytes only": b"PAR1",
    "magic bytes twice": b"PAR1PAR1",
    "a footer of no bytes": b"PAR1" + bytes(4) + b"PAR1",
    "a footer of 4 gigabytes": b"PAR1" + b"\xff\xff\xff\xff" + b"PAR1",
    "a footer of 2 gigabytes": b"PAR1" + b"\xff\xff\xff\x7f" + b"PAR1",
    "an encrypted footer": _WHOLE[:-4] + b"PARE",
    "a footer of zeros": _WHOLE[:-200] + bytes(192) + _WHOLE[-8:],
    "pages of zeros": _WHOLE[:4] + bytes(len(_WHOLE) // 3) + _WHOLE[4 + len(_WHOLE) // 3 :],
    **{
        f"truncated to {part} %": _WHOLE[: len(_WHOLE) * part // 100] for part in range(10, 100, 10)
    },
}

_SCORES = "text,label\n" + "\n".join(f"{text},{n}" for n, text in enumerate(valid.TEXTS))


def cases() -> Iterator[Case]:
    """Malformed tables in every format and compression."""
    for ending in FORMATS:
        spec = (f"--task={valid.task(f'train.{ending}')}",)
        own = {"csv": CSV, "jsonl": JSONL, "parquet": PARQUET, "tsv": {}}[ending]
        for name, change in (UNSUPPORTED | NOT_A_FILE | own).items():
            yield Case("data files", f"{ending}: {name}", {f"data/train.{ending}": change}, spec)
    for name, row in CONVERSATIONS.items():
        files = {"data/train.jsonl": valid.as_json(row) + b"\n"}
        # The model is a classifier, which is refused too, but only where the row can be read.
        yield Case("data files", f"conversations: {name}", files, (_CONVERSATIONS,))
    yield from _compressed()
    yield from _labels()
    yield from _specs()


def _compressed() -> Iterator[Case]:
    compressed = {"gz": gzip.compress(valid.csv()), "xz": lzma.compress(valid.csv())}
    for ending, content in compressed.items():
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
        broken = {
            "not compressed": valid.csv(),
            "truncated": content[:-12],
            "header only": content[:6],
            "all bits of a byte flipped": flipped,
            "empty": b"",
            "a decompression bomb": BOMBS[ending],
            "a decompression bomb of rows": ROW_BOMBS[ending],
            "compressed twice": (gzip.compress if ending == "gz" else lzma.compress)(content),
        }
        for name, change in broken.items():
            file = f"train.csv.{ending}"
            words = (f"--task={valid.task(file)}",)
            yield Case("data files", f"csv.{ending}: {name}", {f"data/{file}": change}, words)
    for name, change in {
        "not compressed": _WHOLE,
        "garbage": gzip.compress(b"garbage"),
        "truncated": gzip.compress(_WHOLE)[:-12],
    }.items():
        words = (f"--task={valid.task('train.parquet.gz')}",)
        files = {"data/train.parquet.gz": change}
        yield Case("data files", f"parquet.gz: {name}", files, words)


def _labels() -> Iterator[Case]:
    strange = valid.csv().replace(b",yes", b",maybe")
    spec = valid.task("train.csv", test="other.csv")
    files = {"data/other.csv": strange}
    yield Case("data files", "a class only in the test file", files, (f"--task={spec}",))
    spec = valid.task("train.csv", metric="pearson")
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
        "a name of 5,000 characters": valid.task(f"{LONG_NAME}.csv"),
        "a name with a zero byte": "file(train='a\\x00.csv')",
        "a path out of the data folder": "file(train='../nothing.csv')",
        "an unknown ending": valid.task("train.xls"),
        "an unknown format": valid.task("train.csv", format="excel"),
        "another format": valid.task("train.csv", format="parquet"),
        "an unknown metric": valid.task("train.csv", metric="bleu"),
        "a missing column": valid.task("train.csv", text="words"),
        "a missing group column": valid.task("train.csv", group="who"),
        "a missing pair column": valid.task("train.csv", pair="other"),
        "a number as a file": "file(train=7)",
        "a list with a missing file": "file(train=['train.csv', 'none.csv'])",
        "a list with a number": "file(train=['train.csv', 7])",
        "an empty list of files": "file(train=[])",
        "a function call as a file": "file(train=open('train.csv'))",
        "a number as a column": "file(train='train.csv', text=1)",
        "a delimiter of two characters": valid.task("train.csv", delimiter=";;"),
        "another delimiter": valid.task("train.csv", delimiter=";"),
        "a delimiter for json": valid.task("train.jsonl", delimiter=";"),
        "an unknown encoding": valid.task("train.csv", encoding="utf-9"),
        "a codec that is no text encoding": valid.task("train.csv", encoding="zlib"),
        "another encoding": valid.task("train.csv", encoding="utf-16"),
        "a folder as a file": "file(train='.')",
        "a missing test file": valid.task("train.csv", test="none.csv"),
        "a web address": "file(train='https://example.org/train.csv')",
    }.items():
        files = {"data/train.xls": valid.csv()} if "unknown ending" in name else {}
        yield Case("data files", f"a task with {name}", files, (f"--task={spec}",))
    yield Case("data files", "a missing data folder", {}, ("--data-dir=/no/such",))
    yield Case(
        "data files",
        "a data folder of 5,000 characters",
        {},
        (f"--data-dir=/{LONG_NAME}",),
    )
