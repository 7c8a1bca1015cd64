"""Rules that end a run early, alone and in a run."""

import pytest

from fedjax_lora import InputError
from fedjax_lora.runs.compilation import programs
from fedjax_lora.runs.run import run
from fedjax_lora.runs.stopping import patience, target
from fedjax_lora.runs.sweep import grid
from tests._helpers import tiny_runs


@pytest.mark.parametrize(
    ("scores", "ends"),
    [([], False), ([0.7], False), ([0.8, 0.7], False), ([0.7, 0.75], True), ([0.8, None], False)],
)
def test_target_compares_the_last_score(scores, ends):
    assert target(lower_is_better=False, score=0.75)(scores) == ends


def test_target_of_an_error_is_reached_from_above():
    rule = target(lower_is_better=True, score=8.0)
    assert not rule([-9.0]) and rule([-9.0, -8.0])


@pytest.mark.parametrize(
    ("scores", "ends"),
    [
        ([0.1, 0.2, 0.3], False),
        ([0.3, 0.2], False),
        ([0.3, 0.2, 0.1], True),
        ([0.3, 0.3, 0.3], True),  # equal is not better
        ([0.1, 0.0, 0.2, 0.1], False),
        ([0.3, 0.304, 0.303], True),  # not by more than the improvement
        ([None, None], True),
        ([None, 0.1], False),
    ],
)
def test_patience_counts_evaluations_without_a_better_score(scores, ends):
    assert patience(lower_is_better=False, evaluations=2, improvement=0.005)(scores) == ends


@pytest.mark.parametrize("options", [{"evaluations": 0}, {"evaluations": 1, "improvement": -1.0}])
def test_impossible_patience_is_refused(options):
    with pytest.raises(InputError, match="at least 1 evaluation"):
        patience(lower_is_better=False, **options)


CHANGES = {"execution.eval_every": 1, "execution.checkpoint_every": 1}


def test_interrupted_run_ends_early_after_the_same_round(tmp_path):
    """The rule sees the whole history, so an interruption changes nothing."""
    # Nothing is better than the first score by 1: three evaluations later the run ends.
    stop = {"federation.stop": "patience(evaluations=1, improvement=1.0)"}
    config = tiny_runs.change(tiny_runs.CONFIG, CHANGES | stop)
    shared = {"assets": tiny_runs.assets(), "programs": programs()}
    whole = run(config, out=tmp_path / "whole", **shared)
    assert len(whole.records) == 2 == whole.summary["rounds"]
    assert {n for n in whole.summary if "accuracy" in n} >= {"accuracy"}

    again = run(config, out=tmp_path / "whole", **shared, resume=True)
    assert again.records == whole.records and again.summary == whole.summary
    everything = tiny_runs.change(tiny_runs.CONFIG, CHANGES)
    longer = run(everything, out=tmp_path / "whole", **shared, resume=True)
    assert len(longer.records) == tiny_runs.ROUNDS and longer.records[:2] == whole.records


def test_comparison_of_runs_with_early_stopping_is_refused():
    base = tiny_runs.change(tiny_runs.CONFIG, {"federation.stop": "target(score=0.5)"})
    _, problems = grid.cells(grid.Grid(base=base, methods=("hlora",), seeds=(0,), vary={}))
    assert ["equal numbers of rounds" in problem.reason for problem in problems] == [True]
