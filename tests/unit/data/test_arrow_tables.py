"""Tables that `datasets` and pyarrow have written: class labels, saved folders, sizes."""

import gzip

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from fedjax_lora.core.errors import InputError
from fedjax_lora.data import load
from fedjax_lora.data.datasets import arrow_tables
from fedjax_lora.data.datasets.table_readers import columns_of, read_named

NAMES = ["pos", "neg"]  # not in the order of the alphabet
FEATURES = datasets.Features(
    {"text": datasets.Value("large_string"), "label": datasets.ClassLabel(names=NAMES)}
)


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


def data_set(labels=(0, 1, 1, 0, 1)):
    rows = {"text": [f"text {n}" for n in range(len(labels))], "label": list(labels)}
    return datasets.Dataset.from_dict(rows, features=FEATURES)


def write(data, path):
    """Write a data set in the form that the ending of the path stands for."""
    table = data.data.table.combine_chunks()
    ending = path.name.partition(".")[2].lower()
    if ending == "":
        data.save_to_disk(path)
    elif ending == "parquet":
        data.to_parquet(path)
    elif ending.startswith("arrow"):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        content = sink.getvalue().to_pybytes()
        path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    else:
        pyarrow.feather.write_feather(table, str(path), compression="zstd")
    return path


FORMS = ["saved", "a.parquet", "A.PARQUET", "a.arrow", "a.arrow.gz", "a.feather"]


@pytest.mark.parametrize("name", FORMS)
def test_class_labels_keep_the_names_and_order_of_the_file(name, tmp_path):
    table = read_named(write(data_set(), tmp_path / name), text="text", label="label")
    assert table.labels == ["pos", "neg", "neg", "pos", "neg"]
    assert table.classes == ("pos", "neg")
    assert table.texts[0] == "text 0" and list(table.rows) == [1, 2, 3, 4, 5]
    write(data_set(), tmp_path / "test.parquet")
    found = load(f"file(train={name!r}, test='test.parquet')", data_dir=str(tmp_path))
    assert found.classes == ("pos", "neg") and found.test.labels.tolist() == [0, 1, 1, 0, 1]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_without_a_name_is_refused_with_its_row(name, label, tmp_path):
    broken = data_set()
    table = broken.data.table.set_column(1, "label", pa.array([0, label, 1, 0, 1], pa.int64()))
    broken = datasets.Dataset(table.replace_schema_metadata(FEATURES.arrow_schema.metadata))
    with pytest.raises(InputError, match=rf"row 2: the label {label}.*2 classes \(pos, neg\)"):
        read_named(write(broken, tmp_path / name), text="text", label="label")


def test_file_with_another_class_order_is_matched_by_name(tmp_path):
    write(data_set(), tmp_path / "a.parquet")
    other = data_set().cast_column("label", datasets.ClassLabel(names=["neg", "pos"]))
    write(other, tmp_path / "b.parquet")
    found = load("file(train='a.parquet', test='b.parquet')", data_dir=str(tmp_path))
    assert found.train.labels.tolist() == [0, 1, 1, 0, 1]
    assert found.test.labels.tolist() == [1, 0, 0, 1, 0]


def test_class_without_examples_keeps_its_number(tmp_path):
    write(data_set([1, 1, 1]), tmp_path / "a.parquet")
    found = load("file(train='a.parquet', test='a.parquet')", data_dir=str(tmp_path))
    assert found.classes == ("pos", "neg") and found.train.labels.tolist() == [1, 1, 1]
    assert "no example at all of the class 'pos'" in found.notes[1]


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.string_view()])
@pytest.mark.parametrize("name", ["a.parquet", "a.feather"])
def test_dictionary_and_string_columns_are_read_as_texts(type_, name, tmp_path):
    values = pa.DictionaryArray.from_arrays(pa.array([1, 0, 1], pa.int8()), pa.array(["x", "y"]))
    table = pa.table({"text": pa.array(["a", "b", "c"], type_), "label": values})
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(table, tmp_path / name)
    else:
        pyarrow.feather.write_feather(table, str(tmp_path / name))
    found = read_named(tmp_path / name, text="text", label="label")
    assert (found.texts, found.labels) == (["a", "b", "c"], ["y", "x", "y"])


def test_saved_dataset_splits_become_training_and_test_set(tmp_path):
    whole = data_set(np.arange(20) % 2)
    datasets.DatasetDict(train=whole, test=whole.select(range(3))).save_to_disk(tmp_path / "both")
    datasets.DatasetDict(train=whole).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=whole, dev=whole).save_to_disk(tmp_path / "other")
    sizes = {
        "train='both'": (20, 3),
        "train='both', test='both'": (20, 3),
        "train='both/test', test='both/train'": (3, 20),
        "train='one'": (16, 4),
        "train='other', test='other/dev'": (20, 20),
        "train='other/train'": (16, 4),
    }
    for options, wanted in sizes.items():
        found = load(f"file({options})", data_dir=str(tmp_path))
        assert (len(found.train.texts), len(found.test.texts)) == wanted, options
    with pytest.raises(InputError, match=r"has no split 'test' \(splits: train, dev\); give test="):
        load("file(train='other')", data_dir=str(tmp_path))
    with pytest.raises(InputError, match=r"holds several splits \(train, test\); name the folder"):
        columns_of(tmp_path / "both", ["text"])
    assert columns_of(tmp_path / "both" / "test", ["text"]) == {
        "text": ["text 0", "text 1", "text 2"]
    }


def test_shuffled_dataset_keeps_its_order(tmp_path):
    shuffled = data_set().shuffle(seed=1)
    found = read_named(write(shuffled, tmp_path / "saved"), text="text", label="label")
    assert found.texts == shuffled["text"][:] and found.texts != sorted(found.texts)


def test_foreign_and_damaged_folders_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="a folder, but none that datasets has saved"):
        load("file(train='folder')", data_dir=str(tmp_path))
    folder = write(data_set(), tmp_path / "saved")
    (file,) = folder.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InputError, match="is not a folder that datasets has saved"):
        load("file(train='saved')", data_dir=str(tmp_path))
    (tmp_path / "a.arrow").write_bytes(b"no arrow")
    with pytest.raises(InputError, match=r"a\.arrow is not an arrow file"):
        load("file(train='a.arrow')", data_dir=str(tmp_path))


def test_lengths_declared_by_an_arrow_file_are_checked(tmp_path):
    """Offsets beyond the texts would read foreign memory."""
    path = write(data_set(), tmp_path / "a.feather")
    table = pa.table({"text": pa.array(["abc", "def"]), "label": ["x", "y"]})
    pyarrow.feather.write_feather(table, str(path), compression="uncompressed")
    content = path.read_bytes()
    offsets = np.array([0, 3, 6], np.int32).tobytes()
    assert content.count(offsets) == 1
    path.write_bytes(content.replace(offsets, np.array([0, 3, 6000], np.int32).tobytes()))
    with pytest.raises(InputError, match="is not an arrow file"):
        read_named(path, text="text", label="label")


def test_size_limit_counts_repeated_parquet_texts_every_time(tmp_path, monkeypatch):
    """Few bytes on disk, each text once in memory, and gigabytes for the tokenizer."""
    index = pa.array(np.zeros(50_000, np.int32))
    column = pa.DictionaryArray.from_arrays(index, pa.array(["x" * 1000]))
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"text": column, "label": column}), path)
    assert path.stat().st_size < 20_000
    texts = arrow_tables.read_parquet(path, ["text"]).values["text"]
    assert len(texts) == 50_000 and len(set(map(id, texts))) < 10
    monkeypatch.setenv("FEDJAX_LORA_MAX_BYTES", str(10**7))
    with pytest.raises(InputError, match=r"more than 10000000 bytes unpacked.*MAX_BYTES"):
        read_named(path, text="text", label="label")
