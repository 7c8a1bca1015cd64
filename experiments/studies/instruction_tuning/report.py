"""Table and figure of the instruction-tuning comparison, from the result files alone."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from experiments.studies.instruction_tuning import (
    METHODS,
    RATES,
    RESULTS,
    STUDY,
    TASK,
    best_rate,
    tuning_scores,
)
from experiments.tools.figures import over_rounds
from experiments.tools.json_lines import Record
from experiments.tools.markdown import as_table, put
from experiments.tools.study import Records, Results, results
from fedjax_lora.runs.figure_style import (
    GREY,
    draw_seeds,
    method_styles,
    panels,
    reference_line,
    shared_legend,
    style_axes,
)
from fedjax_lora.runs.sweep.intervals import estimate

PER_CLIENT = "validation_perplexity_by_client"


def runs_of(found: Results, label: str) -> list[Record]:
    """The finished runs of a method, one per seed."""
    return list(found.runs("methods", label, TASK).values())


def per_client(run: Record, when: str = "") -> np.ndarray:
    """Perplexity of the global model on each client's held-out examples, by client number."""
    found = run["summary"][f"{when}{PER_CLIENT}"]
    return np.array([found[name] for name in sorted(found, key=int)])


def table() -> str:
    """Tabulate the comparison."""
    found = results(STUDY, "small")
    rates = " / ".join(f"{rate:g}" for rate in RATES)
    columns = ["method", f"held-out perplexity, tuning, at {rates}", "perplexity before", "after"]
    columns += ["best client", "worst client", "seeds", "MB up", "MB down"]
    lines = []
    for label, method in METHODS.items():
        runs = runs_of(found, label)
        if not runs:
            continue
        summaries = [run["summary"] for run in runs]
        mean = functools.partial(_mean, summaries)
        clients = np.mean([per_client(run) for run in runs], axis=0)
        cells = [f"{label} `{method}`", _tuned(found.records, label)]
        cells += [f"{mean('start_perplexity'):.1f}", _spread([s["perplexity"] for s in summaries])]
        cells += [f"{clients.min():.1f}", f"{clients.max():.1f}", str(len(runs))]
        cells += [f"{mean(f'{way}_bytes') / 1e6:.1f}" for way in ("up", "down")]
        lines.append(cells)
    return as_table(columns, lines)


def _mean(summaries: Sequence[dict[str, Any]], name: str) -> float:
    return float(np.mean([summary[name] for summary in summaries]))


def _tuned(records: Records, label: str) -> str:
    """Held-out perplexities of the tuned rates, the selected one in bold."""
    scores, best = tuning_scores(records, label), best_rate(records, label)
    cells = [f"{scores[rate]:.1f}" if rate in scores else "-" for rate in RATES]
    cells[RATES.index(best)] = f"**{cells[RATES.index(best)]}**"
    return " / ".join(cells)


def _spread(values: Sequence[float]) -> str:
    score = estimate(values)
    text = f"{score.mean:.2f}"
    return text if score.n < 2 else f"{text} ± {score.deviation:.2f}"


def draw() -> None:
    """Draw test perplexity over the rounds, and each client's perplexity after the last round."""
    found = results(STUDY, "small")
    runs = {label: runs for label in METHODS if (runs := runs_of(found, label))}
    styles = dict(zip(METHODS, method_styles([*METHODS.values()]), strict=True))
    figure, (left, right) = panels(2, width=5.5, height=3.6)
    for label, of_label in runs.items():
        rounds, values = over_rounds(of_label, lambda entry: entry.get("perplexity"))
        draw_seeds(left, rounds, values, styles[label], label=label)
    _clients(right, runs, styles)
    first = next(iter(runs.values()))
    reference_line(left, first[0]["summary"]["start_perplexity"], "before training", at=8)
    left.set(xlabel="round", ylabel="perplexity on the global test set")
    for axes in (left, right):
        axes.set_yscale("log")
        axes.set_yticks([20, 30, 40, 60, 100], ["20", "30", "40", "60", "100"])
        axes.minorticks_off()
        style_axes(axes, rounds=axes is left)
    left.set_ylim(19, 72)
    shared_legend(figure, (left, right), columns=4)
    figure.savefig(RESULTS / "perplexity.png")


def _clients(
    axes: Axes, runs: Mapping[str, Sequence[Record]], styles: Mapping[str, dict[str, Any]]
) -> None:
    """Draw the perplexities of all clients, means over seeds, one point per method."""
    first = next(iter(runs.values()))
    names = sorted(first[0]["summary"][PER_CLIENT], key=int)
    positions = np.arange(len(names))
    before = np.mean([per_client(run, "start_") for run in first], axis=0)
    axes.plot(positions, before, "_", ms=16, color=GREY, label="before training")
    for number, (label, of_label) in enumerate(runs.items()):
        values = np.mean([per_client(run) for run in of_label], axis=0)
        shift = 0.12 * (number - (len(runs) - 1) / 2)
        colour, marker = styles[label]["color"], styles[label]["marker"]
        axes.plot(positions + shift, values, marker, ms=4, color=colour, label=label)
    axes.set(xlabel="client", ylabel="perplexity on the client's held-out examples")
    axes.set_xticks(positions, names)


def main() -> None:
    """Write table and figure, and put the table into the README."""
    text = table()
    (RESULTS / "table.md").write_text(text)
    draw()
    put("instruction_tuning", text)
    print(text)


if __name__ == "__main__":
    main()
