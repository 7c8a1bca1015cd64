"""The numbers against hand computation and SciPy."""

import csv
import io

import numpy as np
import pyarrow.parquet
import pytest
import scipy.stats

from fedjax_lora.runs.sweep import intervals, statistics
from tests._helpers.synthetic_runs import runs

SCORES = {
    ("fed_plora", 0): [0.1, 0.5], ("fed_plora", 1): [0.1, 0.6], ("fed_plora", 2): [0.1, 0.7],
    ("hlora", 0): [0.2, 0.6], ("hlora", 1): [0.2, 0.8], ("hlora", 2): [0.2, 0.7],
    ("flora", 1): [0.0, 0.4],
}  # fmt: skip


def test_summary_matches_a_hand_computation():
    """Student's 97.5 % quantile for two degrees of freedom is 4.302653."""
    first, second, third = statistics.summarise(runs(SCORES))
    assert [line.labels for line in (first, second, third)] == [
        {"method": "fed_plora"}, {"method": "hlora"}, {"method": "flora"}
    ]  # fmt: skip
    assert first.score == pytest.approx((0.6, 0.1, 4.302653 * 0.1 / 3**0.5, 3), abs=1e-6)
    assert first.difference is None
    # differences 0.1, 0.2, 0.0 have the deviation 0.1
    assert second.difference == pytest.approx((0.1, 0.1, 4.302653 * 0.1 / 3**0.5, 3), abs=1e-6)
    assert third.score.n == third.difference.n == 1
    assert third.difference.mean == pytest.approx(-0.2)
    assert np.isnan(third.score.half) and np.isnan(third.difference.half)
    assert (second.up, second.down) == (4 * 2000, 4 * 4000)


def test_intervals_equal_scipy():
    values = np.random.default_rng(0).normal(size=7)
    mean, _, half, n = intervals.estimate(values.tolist())
    low, high = scipy.stats.t.interval(0.95, n - 1, mean, scipy.stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-9)


def test_differences_are_paired_over_common_seeds():
    """Far apart seeds, one of which the second method lacks: the difference is still exact."""
    scores = {("fed_plora", 0): [0.1], ("fed_plora", 1): [0.9], ("fed_plora", 2): [0.4],
              ("hlora", 0): [0.11], ("hlora", 1): [0.91]}  # fmt: skip
    line = statistics.summarise(runs(scores))[1]
    assert line.difference == pytest.approx((0.01, 0.0, 0.0, 2), abs=1e-12)


def test_differences_compare_runs_with_equal_varied_fields():
    vary = {"local.batch": (8, 16)}
    scores = {("fed_plora", 8, 0): [0.1], ("hlora", 8, 0): [0.2],
              ("fed_plora", 16, 0): [0.5], ("hlora", 16, 0): [0.4]}  # fmt: skip
    lines = statistics.summarise(runs(scores, vary))
    found = {(line.labels["method"], line.labels["local.batch"]): line.difference for line in lines}
    assert found["fed_plora", 8] is None and found["fed_plora", 16] is None
    assert found["hlora", 8].mean == pytest.approx(0.1)
    assert found["hlora", 16].mean == pytest.approx(-0.1)


def test_rows_are_tidy_and_the_same_in_every_format(tmp_path):
    rows = statistics.rows(runs(SCORES))
    assert len(rows) == 7 * 2
    row = next(r for r in rows if r["method"] == "hlora" and r["seed"] == 1 and r["round"] == 4)
    assert row == {
        "method": "hlora", "seed": 1, "round": 4, "train_loss": 0.25, "examples": 8,
        "up_bytes": 8000, "down_bytes": 16000, "accuracy": 0.8, "loss": 2.0, "dropped": 0,
        "stragglers": 0, "rejected": 0,
    }  # fmt: skip
    assert [r["rejected"] for r in rows[:2]] == [1, 0]
    (tmp_path / "t.parquet").write_bytes(statistics.as_parquet(rows))
    assert pyarrow.parquet.read_table(tmp_path / "t.parquet").to_pylist() == rows
    read = list(csv.DictReader(io.StringIO(statistics.as_csv(rows))))
    assert read == [{key: str(x) for key, x in r.items()} for r in rows]


def test_lists_and_none_as_varied_values_are_written_to_tables(tmp_path):
    cell, record = runs({("hlora", 0): [0.5]})[0]
    labels = [{"lora.lora_layers": a, "local.clip": b} for a in ([0], [0, 1]) for b in (None, 1.0)]
    rows = statistics.rows([(cell._replace(labels=chosen), record) for chosen in labels])
    assert [r["lora.lora_layers"] for r in rows] == ["[0]", "[0]", "[0, 1]", "[0, 1]"]
    assert [r["local.clip"] for r in rows] == [None, 1.0, None, 1.0]
    (tmp_path / "t.parquet").write_bytes(statistics.as_parquet(rows))
    assert pyarrow.parquet.read_table(tmp_path / "t.parquet").to_pylist() == rows


DIVERGED = {
    ("fed_plora", 0): [0.1, 0.5], ("fed_plora", 1): [0.1, 0.6],
    ("hlora", 0): [0.2, None], ("hlora", 1): [0.2, 0.8],
    ("flora", 0): [None, None], ("flora", 1): [None, None],
}  # fmt: skip


def test_diverged_run_has_no_score_and_keeps_those_of_others(tmp_path):
    first, second, third = statistics.summarise(runs(DIVERGED))
    assert first.score.mean == pytest.approx(0.55)
    assert np.isnan(second.score.mean) and np.isnan(third.difference.mean)
    lines = statistics.markdown([first, second, third]).splitlines()
    assert lines[2].startswith("| fed_plora | 0.5500 | 0.0707 | [")
    assert lines[3] == "| hlora | - | - | - | 2 | - | 0.01 | 0.02 |"
    assert lines[4].startswith("| flora | - | - | - | 2 | - |")
    rows = statistics.rows(runs(DIVERGED))
    found = {key: [] for key in DIVERGED}
    for row in rows:
        found[row["method"], row["seed"]].append(row["accuracy"])
    assert found == DIVERGED
    (tmp_path / "t.parquet").write_bytes(statistics.as_parquet(rows))
    assert pyarrow.parquet.read_table(tmp_path / "t.parquet").to_pylist() == rows
    assert statistics.as_csv(rows).count("\n") == 1 + len(rows)
    alone = statistics.rows(runs({("flora", 0): [None]}))
    assert alone[0]["accuracy"] is None


def test_a_difference_to_a_diverged_first_method_is_unknown():
    scores = {("fed_plora", 0): [None], ("hlora", 0): [0.4]}
    text = statistics.markdown(statistics.summarise(runs(scores))).splitlines()
    assert text[3] == "| hlora | 0.4000 | - | - | 1 | - | 0.00 | 0.01 |"


def test_markdown_table_has_scores_intervals_and_paired_differences():
    text = statistics.markdown(statistics.summarise(runs(SCORES))).splitlines()
    assert text[0] == (
        "| method | accuracy | sd | 95 % interval | seeds | paired difference to fed_plora "
        "| MB up | MB down |"
    )
    assert text[2] == "| fed_plora | 0.6000 | 0.1000 | [0.3516, 0.8484] | 3 | - | 0.00 | 0.01 |"
    assert "| +0.1000 [-0.1484, +0.3484] |" in text[3]
    assert "| 0.4000 | - | - | 1 | -0.2000 |" in text[4]
    scores = {("fed_plora", 0): [0.1], ("hlora", 0): [0.1], ("hlora", 1): [0.2]}
    assert "(1 of 2 seeds)" in statistics.markdown(statistics.summarise(runs(scores)))
    alone = statistics.markdown(statistics.summarise(runs({("hlora", 0): [0.1]})))
    assert "difference" not in alone


def test_formula_in_a_config_value_is_quoted_in_csv():
    cell, record = runs({("hlora", 0): [0.5]})[0]
    labels = {"data.data_dir": '=HYPERLINK("x")', "local.clip": -1.5}
    rows = statistics.rows([(cell._replace(labels=labels), record)])
    read = next(csv.DictReader(io.StringIO(statistics.as_csv(rows))))
    assert read["data.data_dir"] == '\'=HYPERLINK("x")' and read["local.clip"] == "-1.5"


def timed(scores, seconds, **options):
    """The runs of `SCORES` with a clock: each round of a method takes its seconds."""
    made = runs(scores, **options)
    for cell, record in made:
        for entry in record["history"]:
            entry |= {
                "simulated_seconds": seconds[cell.labels["method"]],
                "late": [1],
                "surplus": [],
            }
    return made


def test_time_is_measured_to_the_score_that_every_run_reaches():
    """The lowest best score is hlora's 0.5 of seed 1; fed_plora is there in round 4 and 2."""
    scores = {("fed_plora", 0): [0.4, 0.6], ("fed_plora", 1): [0.5, 0.7],
              ("hlora", 0): [0.6, 0.5], ("hlora", 1): [0.4, 0.5]}  # fmt: skip
    lines = statistics.summarise(timed(scores, {"fed_plora": 360.0, "hlora": 720.0}))
    assert [line.time for line in lines] == [(1440.0, 0.5, 1080.0), (2880.0, 0.5, 2160.0)]
    header, body = statistics.shown(lines)
    assert header[-2:] == ["simulated h", "h to 0.5000"]
    assert [row[-2:] for row in body] == [["0.4", "0.3"], ["0.8", "0.6"]]
    row = statistics.rows(timed(scores, {"fed_plora": 360.0, "hlora": 720.0}))[1]
    assert row["simulated_seconds"] == 1440.0 and row["late"] == 1 and row["surplus"] == 0


def test_without_a_clock_the_table_has_no_time():
    made = timed(SCORES, dict.fromkeys(("fed_plora", "hlora", "flora"), 1.0))
    del made[0][1]["history"][0]["simulated_seconds"]
    lines = statistics.summarise(made)
    assert all(line.time is None for line in lines)
    assert "simulated h" not in statistics.shown(lines)[0]


def test_diverged_run_never_reaches_a_score():
    scores = {("fed_plora", 0): [0.4, 0.6], ("hlora", 0): [None, None]}
    lines = statistics.summarise(timed(scores, {"fed_plora": 1.0, "hlora": 1.0}))
    assert lines[1].time.target == -np.inf
