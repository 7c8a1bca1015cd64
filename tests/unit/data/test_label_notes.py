"""Notes on labels that are probably mistaken."""

import numpy as np
import pytest

from fedjax_lora.core.errors import InputError
from fedjax_lora.data import load
from fedjax_lora.data.datasets.label_notes import alike, are_scores, label_notes
from fedjax_lora.runs.loading import log_notes


def notes_of(train, test=()):
    classes = sorted({*train, *test})
    code = lambda names: np.array([classes.index(name) for name in names], np.int32)  # noqa: E731
    return label_notes(classes, code(train), code(test))


def test_common_labels_have_no_notes():
    assert notes_of("abcabcab", "abc") == []
    assert notes_of(["1", "2", "10"] * 2) == []


def test_single_class_is_noted():
    (note,) = notes_of(["same"] * 9)
    assert "all 9 training examples have the label 'same'" in note


@pytest.mark.parametrize(
    "names",
    [
        ("pos", "pos "), ("pos", " pos"), ("pos", "Pos"), ("a b", "a  b"), ("pos", "pos\u200b"),
        ("pos", "pos\xa0"), ("1", "1.0"), ("1", "01"), ("ﬁne", "fine"), ("é", "e\u0301"),
        ("non toxic", "non-toxic", "non_toxic"), ("x-ray", "X\u2013ray"),
    ],
)  # fmt: skip
def test_similar_class_names_are_noted(names):
    assert alike([*names, "other"]) == [list(names)]
    assert any("differ only in" in note for note in notes_of([*names, "other"] * 2))


@pytest.mark.parametrize(
    "names", [("pos", "neg"), ("1", "2"), ("1", "-1"), ("a b", "ab"), ("C", "C#"), ("-", "_")]
)
def test_distinct_class_names_are_not_noted(names):
    assert alike(names) == []


def test_rare_and_unseen_classes_are_noted():
    notes = notes_of("aaab", "aabc")
    assert any("the test set has the class 'c'" in note for note in notes)
    assert any("only one training example of the class 'b'" in note for note in notes)
    (note,) = notes_of("abcde" + "f" * 3)
    assert note.endswith("of the classes 'a', 'b', 'c' and 2 more")


def test_names_with_line_breaks_are_made_visible():
    (note,) = notes_of(["a\nb", "c"] * 2)
    assert r"'a\nb'" in note and "\n" not in note


def test_half_star_ratings_are_classes_and_continuous_scores_are_refused(tmp_path):
    assert are_scores(["0.5", "1", "1.5"]) and not are_scores(["1", "2.0"])

    def write(values):
        rows = "".join(f"text {n},{value}\n" for n, value in enumerate(values))
        (tmp_path / "a.csv").write_text(f"text,label\n{rows}")
        return load("file(train='a.csv')", data_dir=str(tmp_path))

    assert "scores need metric='pearson'" in write(np.arange(100) % 10 / 2).notes[0]
    for values in (np.arange(100) / 7, [*([0.5] * 20), 2.6]):
        with pytest.raises(InputError, match=r"numbers such as .*scores need metric='pearson'"):
            write(values)


def test_scores_only_in_the_test_file_need_a_regression_metric(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "a,0.5\nb,1.5\n" * 3)
    (tmp_path / "b.csv").write_text("text,label\na,2.6\n")
    with pytest.raises(InputError, match=r"'2.6' is not one of .*need metric='pearson'"):
        load("file(train='a.csv', test='b.csv')", data_dir=str(tmp_path))


def test_notes_are_logged_once_per_run(tmp_path, caplog):
    (tmp_path / "a.csv").write_text("text,label\na,pos\nb,pos \nc,pos\nd,pos \n")
    data = load("file(train='a.csv', test='a.csv')", data_dir=str(tmp_path))
    assert len(data.notes) == 1 and "'pos', 'pos '" in data.notes[0]
    for _ in range(2):
        log_notes(data.task.name, data.notes)
    assert [record.getMessage() for record in caplog.records] == [f"task file: {data.notes[0]}"]


def test_class_only_in_the_held_out_fifth_is_known(tmp_path):
    rows = "".join(f"text {n},{'ab'[n % 2]}\n" for n in range(40))
    for rare in range(40):  # one of them is drawn
        lines = rows.splitlines(keepends=True)
        lines[rare] = f"text {rare},rare\n"
        (tmp_path / "a.csv").write_text("text,label\n" + "".join(lines))
        data = load("file(train='a.csv')", data_dir=str(tmp_path))
        assert data.classes == ("a", "b", "rare")
        if any("the test set has the class 'rare'" in note for note in data.notes):
            return
    raise AssertionError("a fifth of all rows was drawn, and none of these")
