"""Own data of several files: patterns, one file per client, clients in a file, the hub."""

import gzip
import json
import os
import shutil

import datasets
import pandas as pd
import pytest

from fedjax_lora.core.errors import InputError
from fedjax_lora.data import load, partition

ROWS = {
    "alice": [("good film", "pos"), ("bad film", "neg"), ("fine", "pos")],
    "bob": [("awful", "neg"), ("great", "pos")],
}


def frame(client):
    return pd.DataFrame(ROWS[client], columns=["text", "label"])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(client, path):
    """Write a client's rows with the library that usually writes such a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = frame(client)
    if path.suffix == "":
        datasets.Dataset.from_pandas(table).save_to_disk(path)
    elif path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".arrow":
        datasets.Dataset.from_pandas(table).save_to_disk(path.with_suffix(""))
        shutil.move(next(path.with_suffix("").glob("*.arrow")), path)
        shutil.rmtree(path.with_suffix(""))
    else:
        table.to_json(path, orient="records", lines=True)


def by_client(data):
    """The texts of each natural client, training and test set together."""
    found = {name: [] for name in data.groups}
    for split in (data.train, data.test):
        for text, group in zip(split.texts, split.groups, strict=True):
            found[data.groups[group]].append(text)
    return {name: sorted(texts) for name, texts in found.items()}


WANTED = {name: sorted(text for text, _ in rows) for name, rows in ROWS.items()}


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".jsonl.gz", ".parquet", ".arrow", ""])
def test_each_file_becomes_one_client(folder, ending):
    for client in ROWS:
        write(client, folder / "data" / f"{client}{ending}")
    data = load("file(train='data/*', client_files=True)")
    assert by_client(data) == WANTED
    assert len(data.test.texts) == 1
    split = partition("natural", data.train.labels, clients=2, seed=0, groups=data.train.groups)
    assert [data.train.groups[own].tolist() for own in split.indices] == [
        [n] * len(own) for n, own in enumerate(split.indices)
    ]


def test_folder_per_client_names_the_client_and_has_its_own_test_rows(folder):
    for client in ROWS:
        write(client, folder / client / "train.jsonl")
        write(client, folder / client / "test.jsonl")
    data = load("file(train='*/train.jsonl', test='*/test.jsonl', client_files=True)")
    assert data.groups == ("alice", "bob")
    assert (len(data.train.texts), len(data.test.texts)) == (5, 5)
    assert data.train.groups.tolist() == data.test.groups.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("d/**/*.csv", ("x/alice", "y/z/bob")),
        ("d/[xy]/**/*.csv", ("x/alice", "y/z/bob")),
        ("d/x/a*.csv", ("alice",)),
    ],
)
def test_client_names_are_the_parts_matched_by_wildcards(folder, pattern, names):
    write("alice", folder / "d" / "x" / "alice.csv")
    write("bob", folder / "d" / "y" / "z" / "bob.csv")
    data = load(f"file(train='{pattern}', client_files=True)", data_dir=str(folder))
    assert data.groups == names


def test_brackets_in_the_data_folder_name_are_literal(folder):
    write("alice", folder / "runs[1]*" / "alice.csv")
    data = load("file(train='*.csv', client_files=True)", data_dir=str(folder / "runs[1]*"))
    assert data.groups == ("alice",)


def test_several_files_are_concatenated_in_order(folder):
    write("alice", folder / "a.csv")
    write("bob", folder / "b.jsonl")
    write("bob", folder / "c.csv")
    data = load("file(train=['b.jsonl', 'a.csv'], test='c.csv')", data_dir=str(folder))
    assert data.train.texts == [text for name in ("bob", "alice") for text, _ in ROWS[name]]
    assert data.train.groups is None


def test_invalid_value_is_reported_with_its_file(folder):
    write("alice", folder / "d" / "a.csv")
    for name in ("b", "c"):
        (folder / "d" / f"{name}.csv").write_text("text,label\nx,1.5\ny,2\n")
    with pytest.raises(InputError, match=r"d/a.csv row 2: the score is 'pos', not a number"):
        load("file(train=['d/b.csv', 'd/a.csv'], metric='pearson', test='d/c.csv')")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("file(train='none/*.csv')", "No file matches none/.*; check the pattern or --data-dir"),
        ("file(train='d')", r"d is a folder, but none .* a pattern such as 'd/\*.csv'"),
        ("file(train='.')", r"is a folder, but none .* a pattern such as '\./\*\.jsonl'"),
        (r"file(train='a\0*.csv')", "No file matches a"),
        ("file(train='d/*.csv', test='d/b.csv')", "d/b.csv is a file of train=.* and of test="),
        ("file(train=['d/a.csv', 'd/*.csv'])", "d/a.csv is named twice"),
        ("file(train='d/a.*', client_files=True)", "would both be the client 'a'"),
        ("file(train='d/p.json', client_files=True, text='t')", "states its clients itself"),
        ("file(train=['d/p.json', 'd/q.csv'], text='t')", "states clients and the other does not"),
        ("file(train='a.csv', config='x')", "config is that of a data set on the hub"),
        ("file(hub='o/n', client_files=True)", "there are no client_files"),
        ("file(hub='o/n', train=['a'])", "names of one split each"),
    ],
)
def test_invalid_file_sets_are_refused_in_one_sentence(folder, spec, message):
    write("alice", folder / "d" / "a.csv")
    write("bob", folder / "d" / "b.csv")
    write("bob", folder / "d" / "a.jsonl")
    (folder / "d" / "p.json").write_text('{"u": [{"t": "x", "label": "y"}]}')
    (folder / "d" / "q.csv").write_text("t,label\nx,y\n")
    with pytest.raises(InputError, match=message) as refused:
        load(spec)
    assert "\n" not in str(refused.value)


def test_files_with_other_class_labels_are_refused(folder):
    for n, names in enumerate((["neg", "pos"], ["pos", "neg"])):
        features = datasets.Features(
            text=datasets.Value("string"), label=datasets.ClassLabel(names=names)
        )
        made = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
        made.to_parquet(folder / f"{n}.parquet")
    with pytest.raises(InputError, match=r"0.parquet states the classes .*same class labels"):
        load("file(train='*.parquet')")


def test_size_limits_apply_to_all_files_together(folder, monkeypatch):
    for client in ROWS:
        write(client, folder / f"{client}.csv")
    monkeypatch.setenv("FEDJAX_LORA_MAX_ROWS", "4")
    with pytest.raises(InputError, match=r"\*.csv has more than 4 rows"):
        load("file(train='*.csv')")
    monkeypatch.delenv("FEDJAX_LORA_MAX_ROWS")
    monkeypatch.setenv("FEDJAX_LORA_MAX_BYTES", "60")
    with pytest.raises(InputError, match=r"\*.csv holds more than 60 bytes"):
        load("file(train='*.csv')")


# --------------------------------------------------------------------------- objects in JSON files


def rows_of(client):
    return frame(client).to_dict(orient="records")


CLIENT_FORMS = {
    "rows": {name: rows_of(name) for name in ROWS},
    "columns": {name: frame(name).to_dict(orient="list") for name in ROWS},
}


@pytest.mark.parametrize("form", CLIENT_FORMS)
@pytest.mark.parametrize("indent", [None, 2])
def test_json_object_of_lists_has_one_client_per_key(folder, form, indent):
    (folder / "a.json").write_text(json.dumps(CLIENT_FORMS[form], indent=indent))
    data = load("file(train='a.json')")
    assert by_client(data) == WANTED


LEAF = {
    "users": ["alice", "bob"],
    "num_samples": [3, 2],
    "user_data": {
        name: {"x": [text for text, _ in rows], "y": [label for _, label in rows]}
        for name, rows in ROWS.items()
    },
}


def test_leaf_files_are_read(folder):
    (folder / "all_data_niid_0_keep_0_train_9.json").write_text(json.dumps(LEAF))
    data = load("file(train='all_data_niid_0_keep_0_train_9.json', text='x', label='y')")
    assert by_client(data) == WANTED
    # Sent140: x is a list of fields, of which the fifth is the text.
    users = {
        name: {
            "x": [[n, "date", "query", name, text] for n, text in enumerate(x["x"])],
            "y": x["y"],
        }
        for name, x in LEAF["user_data"].items()
    }
    (folder / "a.json.gz").write_bytes(
        gzip.compress(json.dumps(LEAF | {"user_data": users}).encode())
    )
    data = load("file(train='a.json.gz', text='x.4', label='y')")
    assert by_client(data) == WANTED


def test_leaf_file_in_one_long_line_is_read(folder, monkeypatch):
    monkeypatch.setattr("fedjax_lora.data.datasets.text_files.LONGEST_LINE", 50)
    (folder / "a.json").write_text(json.dumps(LEAF))
    assert by_client(load("file(train='a.json', text='x', label='y')")) == WANTED


@pytest.mark.parametrize("orient", ["columns", "index", "records"])
def test_json_of_pandas_is_read_in_every_orientation(folder, orient):
    frame("alice").to_json(folder / "a.json", orient=orient)
    data = load("file(train='a.json', test='a.json')")
    assert data.train.texts == [text for text, _ in ROWS["alice"]]
    assert [data.classes[n] for n in data.train.labels] == [label for _, label in ROWS["alice"]]


def test_json_object_of_columns_is_read(folder):
    (folder / "a.json").write_text(json.dumps(datasets.Dataset.from_pandas(frame("bob")).to_dict()))
    assert load("file(train='a.json', test='a.json')").train.texts == ["awful", "great"]


def test_instructions_are_read_from_json_objects_of_clients(folder):
    (folder / "a.json").write_text(
        '{"client_0": [{"instruction": "a", "response": "x"}],'
        ' "client_1": [{"instruction": "b", "response": "y"}]}'
    )
    data = load("instructions(train='a.json', test='a.json', completion='response')")
    assert data.groups == ("client_0", "client_1")
    assert data.train.groups.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": rows_of("bob"), "test": rows_of("bob")}, "'train', 'test', which are no client"),
        ({"version": "1", "data": rows_of("bob")}, r"no form that is read .its fields: 'version'"),
        ({"version": ["1"], "data": {"text": ["a"]}}, r"client 'version' holds '1'"),
        ({"text": ["a"], "label": ["b", "c"]}, "columns of different lengths"),
        ({"u": {"text": ["a"], "label": ["b", "c"]}}, "not lists of one length"),
        (LEAF | {"num_samples": [3, 3]}, "user 'bob': num_samples does not say that there are 2"),
        (LEAF | {"users": ["alice"]}, "users and the keys of user_data differ"),
        (
            LEAF,
            r"no column 'text', no column 'label'|no column 'text'; no column 'label' .columns: x",
        ),
        ([1, 2], "row 1 is not a JSON object"),
        (3, "is not a JSON array"),
    ],
)
def test_json_objects_of_other_forms_are_refused(folder, content, message):
    (folder / "a.json").write_text(json.dumps(content, indent=1))
    with pytest.raises(InputError, match=message) as refused:
        load("file(train='a.json')")
    assert "\n" not in str(refused.value)


# ------------------------------------------------------------------------------------------ the hub


@pytest.fixture
def on_hub(folder):
    """A data set that `datasets.load_dataset` loads by the name org/name, from the disk."""
    path = folder / "org" / "name"
    write("alice", path / "train.jsonl")
    write("bob", path / "test.jsonl")
    return "org/name"


def test_own_hub_dataset_is_read_by_split_and_column(on_hub):
    data = load(f"file(hub='{on_hub}')")
    assert data.train.texts == [text for text, _ in ROWS["alice"]]
    assert data.test.texts == [text for text, _ in ROWS["bob"]]
    data = load(f"file(hub='{on_hub}', train='test', test='train')")
    assert data.train.texts == [text for text, _ in ROWS["bob"]]
    data = load(f"instructions(hub='{on_hub}', instruction='text', completion='label')")
    assert data.train.pairs == ["pos", "neg", "pos"]
    with pytest.raises(InputError, match=r"no split 'dev' \(splits: train, test\)"):
        load(f"file(hub='{on_hub}', test='dev')")
    with pytest.raises(InputError, match=r"org/name, split train: no column 'body'"):
        load(f"file(hub='{on_hub}', text='body')")


def test_unreachable_hub_dataset_is_refused_in_one_sentence(folder):
    with pytest.raises(InputError, match=r"could not be loaded from the hub's org/name .*network"):
        load("file(hub='org/name')")


def test_what_is_no_regular_file_is_named(folder):
    os.mkfifo(folder / "pipe.csv")
    (folder / "link.csv").symlink_to("nowhere.csv")
    for name in ("pipe.csv", "link.csv"):
        with pytest.raises(InputError, match=f"{name} is no regular file, but a broken link, a"):
            load(f"file(train='{name}')", data_dir=str(folder))
