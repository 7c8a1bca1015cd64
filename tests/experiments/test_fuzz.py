"""Generated inputs give equal results in both libraries: a sample, and many in the slow test."""

import numpy as np
import pytest

from experiments.robustness.fuzz import adapters, checkpoints, report, run
from experiments.robustness.fuzz.case import (
    BOTH,
    CRASH,
    DIFFERENT,
    EQUAL,
    OURS,
    THEIRS,
    UNWRITTEN,
    Answer,
    Case,
    Outcome,
    Subject,
    Unwritten,
    judge,
)
from experiments.tools import json_lines
from fedjax_lora import InputError

CHEAP = {
    "adapters": (6, 15),  # one that is computed, one that is refused
    "checkpoints": (20,),
    "tables": (0, 3, 11),
    "templates": (0, 5),
    "conversations": (0, 1, 5, 14),
    "configs": (1, 8, 30),
}
"""Numbers of cases in the default suite, of few seconds together."""

MORE = {
    "adapters": range(40),
    "checkpoints": range(40),
    "tables": range(130),
    "templates": range(100),
    "conversations": range(100),
    "configs": range(120),
}


def wrong(part, numbers, folder, ways=None):
    """What ended otherwise than it should, in words."""
    judged = run.sample(part, numbers, folder, ways=ways)
    assert any(outcome.verdict == EQUAL for outcome in judged.values())
    return {
        name: outcome for name, outcome in judged.items() if outcome.verdict in (DIFFERENT, CRASH)
    }


@pytest.mark.parametrize("part", CHEAP)
def test_sampled_configs_are_equal_or_refused(part, tmp_path):
    """Without exports, for the time."""
    assert wrong(part, CHEAP[part], tmp_path, ways=1) == {}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", MORE)
def test_many_configs_are_equal_or_refused(part, tmp_path):
    assert wrong(part, MORE[part], tmp_path) == {}


def test_strategies_cover_every_field_of_the_library_configs():
    """A field of a new version of either library needs values, or a reason to leave it out."""
    assert adapters.undrawn() == set()
    assert {family for family, fields in checkpoints.undrawn().items() if fields} == set()


@pytest.mark.parametrize("part", run.PARTS)
def test_cases_are_deterministic(part):
    first, second = (
        [case for case, _ in zip(run.PARTS[part].cases(), range(30), strict=False)]
        for _ in range(2)
    )
    assert first == second
    assert len({case.name for case in first}) == 30


def raise_(error):
    raise error


SAME = {"x": np.ones(3), "names": ("a", "b")}


@pytest.mark.parametrize(
    ("theirs", "ours", "verdict"),
    [
        (lambda: Answer(SAME), lambda: iter([("way", SAME)]), EQUAL),
        (lambda: Answer(SAME), lambda: iter([("a", SAME), ("b", SAME | {"x": 1})]), DIFFERENT),
        (lambda: Answer(SAME), lambda: iter([("way", SAME | {"names": ("b", "a")})]), DIFFERENT),
        (lambda: Answer(SAME), lambda: iter([("way", {"x": np.ones(3)})]), DIFFERENT),
        (lambda: Answer(np.ones(3)), lambda: iter([("way", np.ones(2))]), DIFFERENT),
        (lambda: Answer(np.ones(3)), lambda: iter([("way", np.full(3, np.nan))]), DIFFERENT),
        (lambda: Answer(np.ones(3)), lambda: iter([("way", np.ones(3) + 1e-3)]), DIFFERENT),
        (lambda: Answer(np.ones(3)), lambda: iter([("way", np.ones(3) + 1e-6)]), EQUAL),
        (lambda: Answer(SAME), lambda: raise_(InputError("No.")), OURS),
        (lambda: Answer(SAME), lambda: raise_(KeyError("x")), CRASH),
        (lambda: raise_(ValueError("x")), lambda: iter([("way", SAME)]), THEIRS),
        (lambda: raise_(ValueError("x")), lambda: raise_(InputError("No.")), BOTH),
        (lambda: raise_(ValueError("x")), lambda: raise_(KeyError("x")), CRASH),
    ],
)  # fmt: skip
def test_every_outcome_is_classified(theirs, ours, verdict, tmp_path):
    outcome = judge(Case("part", 0, {}), lambda *_: Subject(theirs, ours), tmp_path)
    assert outcome.verdict == verdict


def test_case_unsupported_by_the_library_is_reduced_to_one_option(tmp_path):
    seen = []

    def write(case, folder):
        seen.append(dict(case.options))
        raise Unwritten("options exclude each other")

    case = Case("part", 3, {"family": "bert", "about": "r", "r": 2, "bias": "all"})
    _, outcome = run.compare(case, write, tmp_path)
    assert outcome.verdict == UNWRITTEN
    assert seen[1] == {"family": "bert", "about": "r", "r": 2}


def test_recorded_cases_are_skipped(tmp_path, monkeypatch):
    judged = []

    def compare(case, writer, folder):
        judged.append(case.number)
        return case, Outcome(UNWRITTEN if case.number == 1 else EQUAL)

    monkeypatch.setattr(run, "compare", compare)
    file = tmp_path / "cases.jsonl"
    assert len(run.run("configs", file, size=3)) == 4
    assert judged == [0, 1, 2, 3]
    records = run.run("configs", file, size=4)
    assert judged == [0, 1, 2, 3, 4]
    assert records == json_lines.read(file)
    run.run("configs", file, size=1, again=[EQUAL])
    assert judged == [0, 1, 2, 3, 4, 0]
    assert report.summarize(records)["configs"][EQUAL] == 4


def test_committed_results_have_no_failure():
    counts = report.read_summary()["counts"]
    assert {part: size.size for part, size in run.PARTS.items()} == {
        part: sum(found.values()) for part, found in counts.items()
    }
    assert all(found[DIFFERENT] == found[CRASH] == 0 for found in counts.values())
