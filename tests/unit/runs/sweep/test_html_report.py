"""The figure and the page, from made-up runs."""

import base64
import math
import re

import numpy as np
import pytest

from fedjax_lora.runs.sweep import figures, html_report, statistics
from tests._helpers.synthetic_runs import runs

VARY = {"local.batch": (8, 16)}
SCORES = {
    (method, batch, seed): [0.1 * seed + 0.01 * batch, 0.2 + 0.1 * seed]
    for method in ("fed_plora", "hlora")
    for batch in (8, 16)
    for seed in (0, 1)
}


@pytest.fixture(scope="module")
def lines():
    return statistics.summarise(runs(SCORES, VARY))


def page(lines, figure=b"\x89PNG...", **options):
    given = {"title": "a < b", "command": "fedjax-lora compare 'x<y'", "errors": {}}
    return html_report.page(lines, figure, **(given | options))


def test_page_is_self_contained(lines):
    figure = figures.curves(lines)
    assert figure.startswith(b"\x89PNG")
    text = page(lines, figure)
    sources = re.findall(r'(?:src|href|action)="([^"]*)"', text)
    assert len(sources) == 1
    assert base64.b64decode(sources[0].removeprefix("data:image/png;base64,")) == figure
    without = text.replace(sources[0], "")
    assert not re.search(r"https?:|//|<script|<link|@import|url\(", without)


def test_page_holds_table_command_and_errors(lines):
    text = page(lines, errors={"hlora, seed=2": "ValueError: a<b"})
    header, rows = statistics.shown(lines)
    for word in [*header, *(cell for row in rows for cell in row)]:
        assert word in text
    for word in ("a &lt; b", "x&lt;y", "hlora, seed=2", "ValueError: a&lt;b", "0.12.0", "1 x cpu"):
        assert word in text
    assert "a < b" not in text and "Runs that failed" in text
    assert "Runs that failed" not in page(lines)


def test_settings_are_split_into_common_and_varied(lines):
    common, varied = html_report.settings([run for line in lines for run in line.runs])
    assert varied == [["federation.method", "fed_plora; hlora"], ["local.batch", "8; 16"],
                      ["seed", "0; 1"]]  # fmt: skip
    assert ["local.learning_rate", "0.005"] in common
    assert not {name for name, _ in common} & {name for name, _ in varied}


def drawn(lines, monkeypatch):
    """The figure itself, taken where it would be saved."""
    seen = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, *a, **k: seen.append(self))
    figures.curves(lines)
    return seen[0]


def curves_in(panel):
    """The means; single runs have no markers."""
    return [line for line in panel.lines if line.get_marker() != "None"]


def test_figure_has_a_panel_per_setting_and_a_curve_per_method(lines, monkeypatch):
    """A row for each batch size, in it two methods with two runs each, and the majority class."""
    axes = drawn(lines, monkeypatch).axes
    assert len(axes) == 4
    for panel in axes:
        assert not panel.collections, "no band of two seeds"
        assert len(curves_in(panel)) == 2
        assert len(panel.lines) == 2 + 2 * 2 + 1  # means, single runs, majority class
    assert [level.get_ydata()[0] for level in axes[0].lines if level.get_linestyle() == "--"] == [
        0.25
    ]
    curve = curves_in(axes[0])[0]
    assert curve.get_xdata().tolist() == [2, 4]
    assert curve.get_ydata().tolist() == pytest.approx([0.13, 0.25])
    assert curves_in(axes[1])[1].get_xdata().tolist() == pytest.approx([2 * 0.006, 4 * 0.006])
    low, high = axes[0].get_ylim()
    assert low < 0.08 and 0.3 < high < 0.5, "as high as the runs"


@pytest.mark.parametrize("lost", [1, 4], ids=["one run", "all runs"])
@pytest.mark.filterwarnings("error")
def test_diverged_runs_leave_a_gap_in_the_figure(lost, monkeypatch):
    """The others are drawn, at their height; without any the panels are empty."""
    scores = {(method, seed): [0.2, 0.3] for method in ("fed_plora", "hlora") for seed in (0, 1)}
    scores |= {key: [0.2 if lost == 1 else None, None] for key in [*scores][:lost]}
    lines = statistics.summarise(runs(scores))
    assert page(lines, figures.curves(lines)).count("<img") == 1
    first = drawn(lines, monkeypatch).axes[0]
    broken, whole = (curve.get_ydata().tolist() for curve in curves_in(first))
    assert broken == pytest.approx([0.2 if lost == 1 else math.nan, math.nan], nan_ok=True)
    assert whole == pytest.approx([math.nan] * 2 if lost == 4 else [0.2, 0.3], nan_ok=True)
    if lost == 1:
        assert 0.19 < first.get_ylim()[0] < 0.25 and 0.3 < first.get_ylim()[1] < 0.32


@pytest.mark.parametrize(("second", "unit"), [(1.0, "seconds"), (90.0, "minutes"), (9e3, "hours")])
def test_third_panel_is_over_simulated_time(second, unit, monkeypatch):
    """Seeds take other times; curves are at their mean, and every label is inside its panel."""
    made = runs({(name, seed): [0.1, 0.2] for name in ("fed_plora", "hlora") for seed in (0, 1)})
    for cell, record in made:
        for entry in record["history"]:
            entry["simulated_seconds"] = second * (1 + 2 * cell.labels["seed"])
    lines = statistics.summarise(made)
    axes = drawn(lines, monkeypatch).axes
    assert len(axes) == 3 and axes[2].get_xlabel() == f"simulated time, {unit}"
    seconds = {"seconds": 1, "minutes": 60, "hours": 3600}[unit]
    x = np.array([4, 8]) * second / seconds  # two rounds of 2 on average
    assert curves_in(axes[2])[1].get_xdata() == pytest.approx(x)
    for panel in axes:
        (label,) = panel.texts
        low, high = panel.get_xlim()
        assert label.get_text() == "majority class" and low < label.xy[0] <= high


def test_settings_of_a_single_method_share_one_panel(monkeypatch):
    scores = {key: x for key, x in SCORES.items() if key[0] == "hlora"}
    axes = drawn(statistics.summarise(runs(scores, VARY)), monkeypatch).axes
    assert len(axes) == 2
    names = [line.get_label() for line in curves_in(axes[0])]
    assert names == ["batch = 8", "batch = 16"]
