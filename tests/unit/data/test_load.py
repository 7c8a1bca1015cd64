"""Tasks by name, from files and from a stand-in for the hub."""

import sys
import types

import numpy as np
import pytest

from fedjax_lora.core.errors import InputError
from fedjax_lora.data import TASKS, find_task, load
from fedjax_lora.data.datasets import tables
from fedjax_lora.data.datasets.registry import METRICS


@pytest.fixture
def files(tmp_path):
    """Ten training rows, four test rows; one test text differs from a training text in case."""
    train = "".join(f"text {n},{'abc'[n % 3]},g{n % 4}\n" for n in range(10))
    (tmp_path / "train.csv").write_text("text,label,who\n" + train)
    test = "".join(f"Text  {n},{'abc'[n % 3]},g{n}\n" for n in range(8, 12))
    (tmp_path / "test.csv").write_text("text,label,who\n" + test)
    return str(tmp_path)


SPEC = "file(train='train.csv', test='test.csv', group='who')"


def same(a, b):
    return a.texts == b.texts and a.pairs == b.pairs and np.array_equal(a.labels, b.labels)


def test_every_task_has_a_description():
    for name, task in TASKS.items():
        assert task.name == name
        assert task.summary and "\n" not in task.summary
        assert task.url.startswith("http")
        assert task.metric in METRICS
        assert (task.type == "regression") == (name == "stsb")
        assert task.builtin or task.local
        assert find_task(name) == task


def test_own_files_give_classes_groups_and_overlap(files):
    data = load(SPEC, data_dir=files)
    assert data.classes == ("a", "b", "c")
    assert data.train.texts == [f"text {n}" for n in range(10)]
    assert data.train.labels.dtype == np.int32
    assert data.train.labels.tolist() == [n % 3 for n in range(10)]
    assert data.train.groups.tolist() == [n % 4 for n in range(10)]
    # Codes are shared: first g0 ... g3 of train, then g10, g11, g8, g9 of test.
    assert data.test.groups.tolist() == [6, 7, 4, 5]
    assert data.overlap == 2
    assert data.validation is None
    assert data.skipped == 0


def test_own_files_are_read_from_the_working_directory_by_default(files, monkeypatch):
    monkeypatch.chdir(files)
    assert len(load(SPEC).train.texts) == 10


def test_subset_depends_only_on_the_seed(files):
    sizes = {"train_examples": 5, "validation_examples": 3, "test_examples": 2}
    first, again, other = (load(SPEC, data_dir=files, seed=s, **sizes) for s in (1, 1, 2))
    assert [len(x.texts) for x in (first.train, first.validation, first.test)] == [5, 3, 2]
    assert not set(first.train.texts) & set(first.validation.texts)
    for kind in ("train", "validation", "test"):
        assert same(getattr(first, kind), getattr(again, kind))
    assert not same(first.train, other.train)
    # The validation set does not depend on how much is then used for training.
    whole = load(SPEC, data_dir=files, seed=1, validation_examples=3)
    assert same(whole.validation, first.validation)
    assert len(whole.train.texts) == 7


def test_without_a_test_file_a_deterministic_fifth_is_held_out(files):
    spec = "file(train='train.csv')"
    first, other = (load(spec, data_dir=files, seed=seed) for seed in (0, 1))
    assert (len(first.train.texts), len(first.test.texts)) == (8, 2)
    assert same(first.test, other.test)
    assert first.overlap == 0


def test_pairs_overlap_only_if_both_texts_do(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tpair\tlabel\na\tb\t10\na\tc\t9\n")
    (tmp_path / "b.tsv").write_text("text\tpair\tlabel\na\tb\t9\nc\ta\t10\n")
    data = load("file(train='a.tsv', test='b.tsv', pair='pair')", data_dir=str(tmp_path))
    assert data.overlap == 1
    assert data.classes == ("9", "10")  # numbers in the order of numbers
    assert data.train.labels.tolist() == [1, 0]
    assert data.train.pairs == ["b", "c"]


def test_scores_are_read_as_a_regression_task(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,0.5\nb,4\n")
    spec = "file(train='a.csv', test='a.csv', metric='pearson')"
    data = load(spec, data_dir=str(tmp_path))
    assert data.task.type == "regression"
    assert data.classes == ()
    assert data.train.labels.dtype == np.float32
    assert data.train.labels.tolist() == [0.5, 4.0]
    for score, problem in {
        "good": "not a number", "nan": "not a number", "1e39": "more than float32 holds",
    }.items():  # fmt: skip
        (tmp_path / "a.csv").write_text(f"text,label\na,0.5\nb,{score}\n")
        with pytest.raises(InputError, match=f"a.csv row 3: the score is '{score}', {problem}"):
            load(spec, data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("agnews", {}, "Unknown task 'agnews'; did you mean 'ag_news'"),
        ("ag_news(default=1)", {}, "Unknown option of task 'ag_news'"),
        ("file", {}, "file\\(...\\) needs files, train="),
        ("file(train='train.csv', labels='y')", {}, "Unknown option of task 'file'"),
        ("file(train=3)", {}, r"train is str \| .*, got 3"),
        ("file(train=[''])", {}, "train is a file name or a list of them"),
        ("file(train='train.csv', metric='bleu')", {}, "Unknown metric 'bleu'"),
        ("file(train='none.csv')", {}, "has none of none.csv"),
        ("file(train='https://a.org/b.csv')", {}, "is an address, and files are read; download"),
        ("file(train='train.csv', test='none.csv')", {}, "has none of none.csv"),
        ("file(train='train.csv', text='body')", {}, "no column 'body'"),
        (SPEC, {"train_examples": 11}, "has 10 training examples, but 11 are asked for"),
        (SPEC, {"train_examples": 8, "validation_examples": 3}, "but 8 and 3 validation are"),
        (SPEC, {"validation_examples": 10}, "has 10 training examples"),
        (SPEC, {"test_examples": 5}, "has 4 test examples, but 5 are asked for"),
        (
            SPEC,
            {"train_examples": 0, "test_examples": -1},
            "train_examples is 0, must be at least 1; test_examples is -1",
        ),
        (SPEC, {"validation_examples": -1}, "must not be negative"),
        ("ag_news", {}, "There is no folder"),
    ],
)
def test_invalid_tasks_and_files_are_refused(files, spec, options, message):
    with pytest.raises(InputError, match=message):
        load(spec, data_dir=files, **options)


def test_test_label_absent_from_training_is_refused(files, tmp_path):
    (tmp_path / "test.csv").write_text("text,label,who\nx,a,g\ny,d,g\n")
    with pytest.raises(InputError, match=r"test.csv row 3: the label 'd' is not one of the 3 cla"):
        load(SPEC, data_dir=files)


def test_numeric_label_is_a_class_index_only_if_class_names_are_given(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,1\nb,2\n")
    (tmp_path / "test.csv").write_text("text,label\na,2\nb,0\n")
    spec = "file(train='train.csv', test='test.csv')"
    with pytest.raises(InputError, match=r"row 3: the label '0' is not one of the 2 .*\(1, 2\)"):
        load(spec, data_dir=str(tmp_path))


def test_the_training_file_may_be_the_test_file(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,x\nb,y\n")
    data = load("file(train='a.csv', test='a.csv')", data_dir=str(tmp_path))
    assert same(data.train, data.test)
    assert data.overlap == 2


def test_official_test_file_is_not_replaced_by_a_held_out_part(tmp_path):
    (tmp_path / "rte").mkdir()
    (tmp_path / "rte" / "train.jsonl").write_text(
        '{"premise": "a", "hypothesis": "b", "label": "entailment"}\n'
    )
    with pytest.raises(InputError, match=r"rte has none of val.jsonl \(also as .gz\)"):
        load("rte", data_dir=str(tmp_path))


def test_docstrings_task_needs_no_folder():
    data = load("docstrings", train_examples=50, validation_examples=20, test_examples=30)
    assert len(data.classes) == 8
    assert data.train.groups is not None
    assert not set(data.train.groups) & set(data.test.groups)


class Part(dict):
    """As much of a `datasets.Dataset` as the loader uses."""

    column_names = property(list)

    def __init__(self, columns, names=None):
        super().__init__(columns)
        label = types.SimpleNamespace(names=names) if names else types.SimpleNamespace()
        self.features = {name: label for name in columns}

    def __len__(self):
        return len(next(iter(self.values())))


@pytest.fixture
def hub(monkeypatch):
    """Replace `datasets.load_dataset`; records calls and returns (or raises) what a test sets."""
    stand_in = types.SimpleNamespace(parts=None, calls=[])

    def load_dataset(*args, **options):
        stand_in.calls.append((args, options))
        if isinstance(stand_in.parts, Exception):
            raise stand_in.parts
        return stand_in.parts

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return stand_in


def test_hub_columns_are_read_as_texts_pairs_and_groups(hub):
    columns = {"premise": ["a"] * 3, "hypothesis": ["b"] * 3, "genre": ["x", "y", "x"]}
    hub.parts = [Part({**columns, "label": [0, 2, 1]}), Part({**columns, "label": [1, 1, 1]})]
    data = load("mnli")
    assert hub.calls == [
        (("nyu-mll/multi_nli", None), {"split": ["train", "validation_matched"]}),
    ]
    assert data.classes == ("entailment", "neutral", "contradiction")
    assert data.train.labels.tolist() == [0, 2, 1]
    assert data.train.pairs == ["b"] * 3
    assert data.train.groups.tolist() == [0, 1, 0]
    assert data.overlap == 3


def test_class_names_are_taken_from_the_hub_if_the_task_has_none(hub):
    hub.parts = [Part({"text": ["a", "b"], "label": [1, 0]}, ["no", "yes"])] * 2
    data = load("banking77")
    assert data.classes == ("no", "yes")
    assert data.train.labels.tolist() == [1, 0]


def test_unreachable_and_malformed_hub_datasets_are_refused(hub):
    hub.parts = ConnectionError("Couldn't reach the Hub.\nmore")
    with pytest.raises(InputError, match=r"mrpc.*\(Couldn't reach the Hub\); connect .*--data-dir"):
        load("mrpc")
    hub.parts = [Part({"text": ["a"], "label": [-1]})] * 2
    with pytest.raises(
        InputError, match=r"row 1: the label -1 is not one of the 4 classes \(World, "
    ):
        load("ag_news")
    with pytest.raises(InputError, match=r"glue.*: no column 'sentence1'; no column 'sentence2'"):
        load("rte")


ROWS = {  # train, test: as ../shared/data/README.md and each SOURCE.txt count them
    "ag_news": (10_429, 7_600),
    "mrpc": (4_076, 1_725),
    "rte": (2_490, 277),
    "sst2": (67_349, 872),
    "cola": (8_551, 516),
    "dbpedia_14": 14_000,
    "qqp": 23_496,
    "qnli": 5_463,
}


@pytest.mark.shared
@pytest.mark.parametrize("name", ROWS)
def test_real_files_have_their_published_sizes_and_classes(shared, name):
    data = load(name, data_dir=str(shared / "data"))
    sizes = (len(data.train.texts), len(data.test.texts))
    if isinstance(ROWS[name], int):  # cut by us
        assert sum(sizes) == ROWS[name]
        assert sizes[1] == round(tables.TEST_SHARE * ROWS[name])
    else:
        assert sizes == ROWS[name]
    for split in (data.train, data.test):
        assert set(split.labels.tolist()) == set(range(len(data.classes)))
        assert all(split.texts)
    assert data.skipped == (name == "qqp")


@pytest.mark.shared
def test_real_files_are_read_by_named_columns(shared):
    spec = "file(train='sst2/dev.tsv', test='sst2/test-labeled.tsv.gz', text='sentence')"
    data = load(spec, data_dir=str(shared / "data"))  # the second has CR LF line ends
    assert (len(data.train.texts), len(data.test.texts)) == (872, 1_821)
    assert data.classes == ("0", "1")


@pytest.mark.shared
def test_real_files_have_their_published_label_counts(shared):
    counts = {
        "ag_news": ([2630, 2452, 2594, 2753], [1900] * 4),
        "mrpc": ([1323, 2753], [578, 1147]),
    }
    for name, (train, test) in counts.items():
        data = load(name, data_dir=str(shared / "data"))
        assert np.bincount(data.train.labels).tolist() == train
        assert np.bincount(data.test.labels).tolist() == test
    assert data.train.texts[0].startswith(
        'Amrozi accused his brother, whom he called "the witness"'
    )
    qqp = load("qqp", data_dir=str(shared / "data"))
    counts = np.bincount(np.concatenate([qqp.train.labels, qqp.test.labels]))
    assert counts.tolist() == [14_749, 8_747]
    # Two of the test items are in the official first rows but for their capitals.
    assert load("ag_news", data_dir=str(shared / "data")).overlap == 2
