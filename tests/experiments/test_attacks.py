"""The experiment with attackers: one short case, and its report."""

import jax
import numpy as np
import pytest

from experiments.robustness.attacks import ATTACKS, DEFENCES, METHODS, report, run
from fedjax_lora import InputError, lora, methods
from fedjax_lora.federated import transforms


@pytest.fixture(autouse=True)
def as_users_have_it():
    """The model is a user's code: with JAX's own promotion of types and shapes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_report_counts_attackers_found_by_a_defence():
    given = run.problem(steps=20)
    case = run.Case("zero_padding", "sign flip x10", "reject_outliers", 0)
    record = run.play(case, given, rounds=3)
    assert record["attacks"] + record["honest"] == 30
    assert record["found"] > 0 and 0 <= record["accuracy"] <= 1
    text = report.table_of([record, record | {"seed": 1, "accuracy": record["accuracy"]}])
    assert f"{100 * record['accuracy']:.1f}" in text and "zero_padding" in text


def test_skipped_cases_are_those_that_the_library_refuses():
    spec = lora.make_spec({"x": {"kernel": np.zeros((4, 4), "float32")}}, targets="x", rank=2)
    for method in METHODS:
        for defence, updates in DEFENCES.items():
            case = run.Case(method, "none", defence, 0)
            if defence == "geometric_median":
                continue  # refused by the options of a run
            try:
                transforms.make_transforms(updates, methods.make(method, spec))
            except InputError:
                assert not run.is_possible(case)
            else:
                assert run.is_possible(case)


@pytest.mark.parametrize("flips", [True, False])
def test_labels_are_flipped_only_for_attackers_of_label_flip(flips):
    given = run.Problem(None, {"label": np.arange(400) % 10}, {})
    case = run.Case("hlora", "label flip" if flips else "noise", "none", 0)
    parts, mine = run.partition(given, case), run.attack_of(case)[1]
    assert mine.sum() == 4
    assert [bool(rows.min() >= 200) for rows in parts] == (mine & flips).tolist()
    assert set(ATTACKS) >= {"none", "label flip"}
