"""How clients fare in a comparison, from made-up runs and by hand."""

import pytest

from fedjax_lora.runs.sweep import figures, html_report, statistics
from tests._helpers.synthetic_runs import runs

SCORES = {(method, seed): [0.5] for method in ("hlora", "fedsa_lora") for seed in (0, 1)}


def scored(only=None):
    """Twelve clients, a third of rank 1, whose own models are worth less in seed 1."""
    made = runs(SCORES)
    for cell, record in made:
        if only is None or cell.labels["method"] == only:
            low = 0.1 * cell.labels["seed"]
            record["summary"] = record["summary"] | {
                "clients": {
                    "rank": [1] * 4 + [4] * 8,
                    "examples": [10] * 12,
                    "own_accuracy": [0.4 - low] * 2 + [0.6] * 2 + [0.8] * 8,
                    "global_accuracy": [0.7] * 12,
                }
            }
    return statistics.summarise(made)


def test_mean_worst_tenth_and_ranks_are_means_over_seeds():
    """The worst tenth of twelve clients are two: 0.4 and 0.3 in the two seeds."""
    own, of_server = (scored()[0].fairness[name] for name in ("own", "global"))
    assert own.mean == pytest.approx((0.4 * 2 + 0.6 * 2 + 0.8 * 8) / 12 - 0.1 * 2 / 12 / 2)
    assert own.worst_tenth == pytest.approx(0.35)
    assert own.by_rank == pytest.approx({1: (0.5 + 0.45) / 2, 4: 0.8})
    assert of_server == (pytest.approx(0.7), pytest.approx(0.7), pytest.approx({1: 0.7, 4: 0.7}))


def test_tables_and_page_show_clients_where_all_runs_have_scored_them():
    lines = scored()
    header, body = statistics.shown(lines)
    assert header[-1] == "worst tenth of clients" and [row[-1] for row in body] == ["0.3500"] * 2
    header, body = statistics.by_client(lines)
    assert header == ["method", "model", "mean of clients", "worst tenth", "rank 1", "rank 4"]
    assert body[:2] == [
        ["hlora", "own", "0.6917", "0.3500", "0.4750", "0.8000"],
        ["hlora", "global", "0.7000", "0.7000", "0.7000", "0.7000"],
    ]
    assert "| hlora | own | 0.6917 |" in statistics.markdown(lines)
    page = html_report.page(lines, figures.curves(lines), title="t", command="c", errors={})
    assert "<h2>Clients</h2>" in page and "0.6917" in page


def test_runs_that_have_not_scored_clients_have_no_column():
    lines = scored(only="hlora")
    assert "worst tenth of clients" not in statistics.shown(lines)[0]
    assert [row[0] for row in statistics.by_client(lines)[1]] == ["hlora"] * 2
    assert statistics.by_client(statistics.summarise(runs(SCORES))) is None
