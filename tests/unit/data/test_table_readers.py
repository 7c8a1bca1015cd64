"""Readers of users' files and of the official forms, on small messy samples."""

import bz2
import gzip
import json
import lzma
import re

import pyarrow
import pyarrow.parquet
import pytest

from fedjax_lora.core.errors import InputError
from fedjax_lora.data.datasets import official_formats
from fedjax_lora.data.datasets.delimited import Layout
from fedjax_lora.data.datasets.table_readers import columns_of, read_named


def write(path, text, *, bom=False):
    """Write text (or bytes) to a path, compressed if its name says so; return the path."""
    data = text if isinstance(text, bytes) else text.encode("utf-8-sig" if bom else "utf-8")
    packers = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}
    data = packers.get(path.suffix.lower(), bytes)(data)
    path.write_bytes(data)
    return path


def refusal(function, *args, **options):
    with pytest.raises(InputError) as caught:
        function(*args, **options)
    return str(caught.value)


def named(path, **options):
    return read_named(path, **{"text": "text", "label": "label", **options})


def test_csv_keeps_quoted_line_ends_and_the_word_na(tmp_path):
    text = 'label,text,who\r\na,"one, ""two""\r\nthree",x\r\n\r\nnull,NA,y\r\n'
    table = named(write(tmp_path / "a.csv", text, bom=True), group="who")
    assert table.texts == ['one, "two"\r\nthree', "NA"]
    assert table.labels == ["a", "null"]
    assert table.groups == ["x", "y"]
    assert list(table.rows) == [2, 4]  # the blank row counts, as in a spreadsheet


@pytest.mark.parametrize("ending", ["", ".gz", ".xz"])
def test_tsv_keeps_quotes_as_text(tmp_path, ending):
    path = write(tmp_path / f"a.tsv{ending}", 'text\tpair\tlabel\n"a" b\tc"\t1\n')
    table = named(path, pair="pair")
    assert (table.texts, table.pairs, table.labels) == (['"a" b'], ['c"'], ["1"])


def test_jsonl_and_parquet_are_read_compressed_or_not(tmp_path):
    lines = '{"text": "a", "label": 1}\n\n{"text": "b", "label": 0, "more": []}\n'
    table = named(write(tmp_path / "a.jsonl.gz", lines))
    assert (table.texts, table.labels, list(table.rows)) == (["a", "b"], [1, 0], [1, 3])

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": ["x", "y"]}), path)
    zipped = write(tmp_path / "b.parquet.gz", path.read_bytes())
    for file in (path, zipped):
        table = named(file)
        assert (table.texts, table.labels, list(table.rows)) == (["a", "b"], ["x", "y"], [1, 2])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "text,label\na,b\na,b,c\n", "a.csv row 3 has 3 fields where 2 are expected"),
        ("a.csv", "text,label\na,b\na\n", "a.csv row 3 has 1 fields where 2 are expected"),
        ("a.csv", 'text,label\na,b\n"a,b\n', "a.csv row 3 is not well-formed"),
        ("a.csv", f'text,label\n"{("x" * 2**20 + chr(10)) * 17}",b\n', "row 2 has a field of more"),
        ("a.csv", "text,label\na,\u200b\n", "row 2: column 'label' is blank"),
        ("a.csv", "text,label\n\u3164,a\n", "row 2: column 'text' is blank"),
        ("a.jsonl", '{"text": "a", "label": "\\ufeff"}\n', "row 1: column 'label' is blank"),
        ("a.csv", "text,x\na,b\n", r"a.csv: no column 'label' \(columns: text, x\)"),
        ("a.csv", "x,y\na,b\n", "no column 'text'; no column 'label' .columns: x, y."),
        ("a.csv", "text,text,label\na,b,c\n", "column 'text' occurs twice"),
        ("a.csv", "", "no column 'text'"),
        ("a.csv", b"text,label\n\xff\xfe,1\n", "a.csv is not UTF-8 text"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text"\n', "a.jsonl row 2 is not JSON"),
        ("a.jsonl", "[1]\n", "row 1 is not a JSON object"),
        ("a.jsonl", '{"text": "a"}\n', "row 1: no column 'label'"),
        ("a.jsonl", '{"text": null, "label": 1}\n', "row 1: column 'text' holds None"),
        ("a.jsonl", '{"text": "a", "label": [1]}\n', r"column 'label' holds \[1\]"),
        ("a.jsonl", '{"text": "a", "label": NaN}\n', "column 'label' holds nan"),
        ("a.parquet", "no parquet", "is not a parquet file"),
        ("a.xls", "", "Unknown file format .*'xls'; did you mean|Unknown file format"),
    ],
)
def test_invalid_values_are_refused_with_file_and_row(tmp_path, name, text, message):
    assert re.search(message, refusal(named, write(tmp_path / name, text)))


def test_missing_and_damaged_files_are_refused(tmp_path):
    for name in ("none.csv", "none.parquet"):
        assert "cannot be read" in refusal(named, tmp_path / name)
    damaged = tmp_path / "a.csv.gz"
    damaged.write_bytes(gzip.compress(b"text,label\n" + b"a,b\n" * 999)[:-20])
    assert "a.csv.gz cannot be read" in refusal(named, damaged)
    damaged.write_bytes(b"text,label\na,b\n")
    assert "a.csv.gz cannot be read" in refusal(named, damaged)


def test_ag_news_reader_joins_title_and_text(tmp_path):
    path = write(tmp_path / "a.csv", '"3","T ""N"" p","line\\two, more"\n"1","a","b"\n')
    table = official_formats.read_ag_news(path)
    assert table.texts == ['T "N" p line\\two, more', "a b"]
    assert table.labels == [2, 0]
    assert "row 1 has 2 fields" in refusal(official_formats.read_ag_news, write(path, '"1","a"\n'))
    assert "the class is 'x'" in refusal(official_formats.read_ag_news, write(path, "x,a,b\n"))


def test_dbpedia_counts_classes_from_one_only_in_the_official_form(tmp_path):
    full = official_formats.read_dbpedia(
        write(tmp_path / "a.csv", '14,"E. D.",abstract\n1,"x"," y"\n')
    )
    assert (full.texts, full.labels) == (["abstract", "y"], [13, 0])
    sample = official_formats.read_dbpedia(write(tmp_path / "b.csv", "0,an abstract\n13,other\n"))
    assert (sample.texts, sample.labels) == (["an abstract", "other"], [0, 13])
    mixed = write(tmp_path / "c.csv", "0,a\n1,t,b\n")
    assert "row 2 has 3 fields where 2" in refusal(official_formats.read_dbpedia, mixed)


def test_cola_reader_accepts_both_published_layouts(tmp_path):
    table = official_formats.read_cola(
        write(tmp_path / "a.tsv", 'gj04\t1\t\tHe "ran.\ngj04\t0\t*\tRan he.\n')
    )
    assert (table.texts, table.labels) == (['He "ran.', "Ran he."], ["1", "0"])
    sample = write(tmp_path / "b.tsv", 'he "ran\t1\nran he\t0\n')
    table = official_formats.read_cola(sample)
    assert (table.texts, table.labels) == (['he "ran', "ran he"], ["1", "0"])
    mixed = write(tmp_path / "c.tsv", "he ran\t1\ngj04\t0\t*\tRan he.\n")
    assert "row 2 has 4 fields where 2 are expected" in refusal(official_formats.read_cola, mixed)


@pytest.mark.parametrize("header", ["", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"])
def test_qqp_skips_and_counts_only_the_known_defect(tmp_path, header):
    good = '5\t1\t2\tWhy "so?\tHow?\t1\n'
    defect = "7\t1\t2\tWhy?\twhich is enough for the exam? 0\n"
    table = official_formats.read_qqp(write(tmp_path / "a.tsv", header + defect + good))
    assert (table.texts, table.pairs, table.labels) == (['Why "so?'], ["How?"], ["1"])
    assert table.skipped == 1
    assert list(table.rows) == [2 + bool(header)]
    other = write(tmp_path / "b.tsv", header + "7\t1\t2\tWhy?\twhich\n")
    assert "has 5 fields where 6 are expected" in refusal(official_formats.read_qqp, other)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet"])
@pytest.mark.parametrize("column", ["text", "label", "pair", "group"])
@pytest.mark.parametrize("empty", ["", "  ", "\u3000"])
def test_empty_field_is_refused_with_its_row(ending, column, empty, tmp_path):
    rows = [{"text": "a", "label": "x", "pair": "b", "group": "c"} for _ in range(3)]
    rows[1][column] = empty
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif ending in ("json", "jsonl"):
        lines = [json.dumps(row) for row in rows]
        path.write_text(f"[{','.join(lines)}]" if ending == "json" else "\n".join(lines))
    else:
        separator = {"csv": ",", "tsv": "\t"}[ending]
        path.write_text(
            "\n".join(separator.join(r) for r in [[*rows[0]], *(r.values() for r in rows)])
        )
    message = refusal(named, path, pair="pair", group="group")
    row = 3 if ending in ("csv", "tsv") else 2
    assert f"row {row}: column {column!r} is {'blank' if empty else 'empty'}; fill" in message


def test_prediction_input_keeps_empty_texts(tmp_path):
    path = write(tmp_path / "A.CSV", 'text\na\n""\nb\n')
    assert columns_of(path, ["text"]) == {"text": ["a", "", "b"]}
    assert columns_of(tmp_path / "a.txt", ["text"]) is None
    assert columns_of(tmp_path / "a", ["text"]) is None


@pytest.mark.parametrize(
    "name", ["a.json", "a.ndjson", "a.JSONL", "a.jsonl.gz", "A.NDJSON.GZ", "a.json.bz2"]
)
def test_json_lines_are_recognised_whatever_the_file_name(name, tmp_path):
    """`datasets.Dataset.to_json` writes lines into a file that one calls .json."""
    lines = '\n{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n'
    table = named(write(tmp_path / name, lines))
    assert (table.texts, table.labels, list(table.rows)) == (["a", "b"], [1, 0], [2, 3])
    one = named(write(tmp_path / name, '{"text": "a", "label": 1}'))
    assert one.texts == ["a"]


def test_json_array_in_one_long_line_is_read(tmp_path):
    rows = [{"text": "x" * 2**16, "label": n % 2} for n in range(2**8 + 1)]
    assert len(named(write(tmp_path / "a.json", json.dumps(rows))).texts) == len(rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"data": [{"text": "a"}]}', "holds the lists 'data', which are no clients"),
        ('{\n"a": [1]\n}', "client 'a' holds 1; write one object per example"),
    ],
)
def test_json_object_that_is_not_lines_is_refused(text, message, tmp_path):
    assert message in refusal(named, write(tmp_path / "a.json", text))


def test_conversations_in_a_table_are_refused_by_name(tmp_path):
    for name in ("conversations", "messages"):
        lines = f'{{"{name}": [{{"role": "user", "content": "a"}}]}}\n' * 2
        for ending in ("json", "jsonl"):
            message = refusal(named, write(tmp_path / f"a.{ending}", lines))
            assert f"the conversations in '{name}' are the task conversations(" in message


def test_very_long_field_is_read(tmp_path):
    path = write(tmp_path / "a.csv", f'text,label\n{"x" * 500_000},a\n"{"y" * 200_000}",b\n')
    assert [len(text) for text in named(path).texts] == [500_000, 200_000]


def test_delimiter_header_and_encoding_options_are_used_and_suggested(tmp_path):
    path = write(tmp_path / "a.csv", 'text;label\n"a;b";x\n')
    assert "(columns: text;label); delimiter=';' may be meant" in refusal(named, path)
    assert named(path, layout=Layout(delimiter=";")).texts == ["a;b"]
    path = write(tmp_path / "b.csv", "café,x\nb,y\n".encode("cp1252"))
    assert "give encoding='...'" in refusal(named, path)
    layout = Layout(header=False, encoding="cp1252")
    table = read_named(path, text="1", label="2", layout=layout)
    assert (table.texts, list(table.rows)) == (["café", "b"], [1, 2])
    path = write(tmp_path / "c.tsv", "text|label\na|x\n".encode("utf-16"))
    assert named(path, layout=Layout(delimiter="|", encoding="utf-16")).labels == ["x"]
    assert "is not utf-16 text" in refusal(
        named, write(tmp_path / "d.csv", b"text"), layout=Layout(encoding="utf-16")
    )
    path = write(tmp_path / "a.jsonl", '{"text": "a", "label": 1}')
    assert "only for csv and tsv" in refusal(named, path, layout=Layout(delimiter=";"))
    for wrong in (Layout(delimiter=";;"), Layout(delimiter=""), Layout(delimiter="\n")):
        assert "give one character" in refusal(wrong.check)
    for name in ("utf-9", "zlib", "hex", "\0"):
        assert "Unknown encoding" in refusal(Layout(encoding=name).check)


BOMBS = {
    "csv": b"text,label\n" + b"a,b\n" * 2**21,
    "tsv": b"text\tlabel\n" + b"a\tb\n" * 2**21,
    "jsonl": b'{"text": "a", "label": 1}\n' * 2**18,
    "json": b"[" + b'{"text": "a", "label": 1},\n' * 2**18 + b"1]",
}


@pytest.mark.parametrize(
    ("ending", "packing"),
    [
        pytest.param(x, y, marks=[pytest.mark.slow] * (y != "gz" and x != "jsonl"))
        for x in BOMBS
        for y in ("gz", "xz", "bz2")
    ],
)
def test_decompression_bomb_is_refused(ending, packing, tmp_path):
    packed = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}[packing](BOMBS[ending])
    path = tmp_path / f"a.{ending}.{packing}"
    path.write_bytes(packed)
    message = refusal(named, path)
    assert "bytes unpacked" in message and "FEDJAX_LORA_MAX_BYTES" in message


@pytest.mark.parametrize("ending", BOMBS)
def test_size_limits_can_be_changed_by_environment_variables(ending, tmp_path, monkeypatch):
    content = {"json": b"[" + b'{"text": "a", "label": 1},\n' * 2 + b'{"text": "a", "label": 1}]'}
    path = tmp_path / f"a.{ending}"
    path.write_bytes(content.get(ending, BOMBS[ending][:91].rpartition(b"\n")[0]))
    assert len(named(path).texts) > 2
    monkeypatch.setenv("FEDJAX_LORA_MAX_ROWS", "2")
    assert "has more than 2 rows; if that is right, set FEDJAX_LORA_MAX_ROWS" in refusal(
        named, path
    )
    monkeypatch.setenv("FEDJAX_LORA_MAX_ROWS", "many")
    assert "FEDJAX_LORA_MAX_ROWS is 'many'; set it to a whole number" in refusal(named, path)
    monkeypatch.delenv("FEDJAX_LORA_MAX_ROWS")
    monkeypatch.setenv("FEDJAX_LORA_MAX_BYTES", "20")
    assert "holds more than 20 bytes unpacked" in refusal(named, path)
