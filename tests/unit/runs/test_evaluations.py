"""Rounds are evaluated on a part of the test data, the last one on all of it."""

import numpy as np
import pytest

import fedjax_lora as fl
from fedjax_lora.data import Split, Task, Tokens
from fedjax_lora.evaluation.evaluator import LabelledSplit
from fedjax_lora.runs.compilation import programs
from fedjax_lora.runs.evaluations import PART, part_of
from fedjax_lora.runs.recorder import score
from tests._helpers import tiny_runs
from tests._helpers.tiny_runs import CONFIG, change

EVERY_ROUND = {"execution.eval_every": 1, "federation.rounds": 3}
TEST, FEW = 12, 5


@pytest.fixture(scope="module")
def play():
    """Runs that share one program."""
    assets, shared = tiny_runs.assets(), programs()
    return lambda **changes: (
        fl.run(change(CONFIG, EVERY_ROUND | changes), assets=assets, programs=shared).records
    )


@pytest.fixture(scope="module")
def on_all(play):
    return play()


@pytest.fixture(scope="module")
def on_part(play):
    return play(**{"execution.eval_examples": FEW})


def test_part_is_the_same_for_a_seed_and_keeps_the_order():
    count = np.arange(40)
    tokens = Tokens(count[:, None], count[:, None], count + 1, count)
    whole = LabelledSplit("", Split([str(k) for k in count], None, count, None), tokens)
    part = part_of(whole, 10, 3)
    rows = part.tokens.label
    assert len(set(rows.tolist())) == 10 and (np.diff(rows) > 0).all()
    assert part.split.texts == [str(k) for k in rows] and (part.split.labels == rows).all()
    assert (part.tokens.ids[:, 0] == rows).all() and (part.tokens.length == rows + 1).all()
    assert (part_of(whole, 10, 3).tokens.label == rows).all()
    assert (part_of(whole, 10, 4).tokens.label != rows).any()


def test_rounds_before_the_last_are_scored_on_the_part(on_part):
    for record in on_part[:-1]:
        assert record["eval_examples"] == FEW and PART not in record
        assert record["accuracy"] * FEW == pytest.approx(round(record["accuracy"] * FEW))


def test_last_round_is_scored_on_all_and_on_the_part(on_part, on_all):
    last, names = on_part[-1], ("accuracy", "loss")
    assert last["eval_examples"] == TEST and last[PART]["eval_examples"] == FEW
    assert [last[name] for name in names] == [on_all[-1][name] for name in names]
    assert set(last[PART]) == {*names, "eval_examples"}
    assert last[PART]["loss"] != last["loss"]


def test_nothing_else_of_a_round_changes(on_part, on_all):
    names = on_all[0].keys() - {"accuracy", "loss"}
    assert "validation_accuracy" in names  # validation data are always used as a whole
    for part, whole in zip(on_part, on_all, strict=True):
        assert {name: part[name] for name in names} == {name: whole[name] for name in names}


@pytest.mark.parametrize("count", [TEST, TEST + 1])
def test_part_of_all_examples_changes_no_record(play, on_all, count):
    assert play(**{"execution.eval_examples": count}) == on_all


def test_run_that_a_rule_ends_is_scored_on_all_in_its_last_round(play, on_part):
    (only,) = play(**{"execution.eval_examples": FEW, "federation.stop": "target(score=0.0)"})
    assert only["eval_examples"] == TEST
    before = {name: on_part[0][name] for name in ("accuracy", "loss", "eval_examples")}
    assert only[PART] == before


def test_models_are_compared_on_the_same_examples():
    task = Task("classes", "", "", metric="accuracy")
    assert score({"accuracy": 0.9, PART: {"accuracy": 0.4}}, task) == 0.4
    assert score({"accuracy": 0.9, PART: {}, "validation_accuracy": 0.3}, task) == 0.3
