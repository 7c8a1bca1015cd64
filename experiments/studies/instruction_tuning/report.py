"""Table and figure of the instruction-tuning comparison, from the result files alone."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.studies.instruction_tuning import (
    METHODS,
    RATES,
    RESULTS,
    STUDY,
    TASK,
    best_rate,
    tuning_scores,
)
from experiments.tools.json_lines import Record
from experiments.tools.markdown import as_table, put
from experiments.tools.study import Records, Results, results
from fedjax_lora.runs.plots import COLOURS, GREY, level, style
from fedjax_lora.runs.sweep.statistics import estimate

PER_CLIENT = "validation_perplexity_by_client"


def runs_of(found: Results, label: str) -> list[Record]:
    """The finished runs of a method, one per seed."""
    return list(found.runs("methods", label, TASK).values())


def per_client(run: Record, when: str = "") -> np.ndarray:
    """Perplexity of the global model on each client's held-out examples, by client number."""
    found = run["summary"][f"{when}{PER_CLIENT}"]
    return np.array([found[name] for name in sorted(found, key=int)])


def table() -> str:
    """The comparison as a Markdown table."""
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
        mean = lambda name: np.mean([s[name] for s in summaries])  # noqa: E731, B023
        clients = np.mean([per_client(run) for run in runs], axis=0)
        cells = [f"{label} `{method}`", _tuned(found.records, label)]
        cells += [f"{mean('start_perplexity'):.1f}", _spread([s["perplexity"] for s in summaries])]
        cells += [f"{clients.min():.1f}", f"{clients.max():.1f}", str(len(runs))]
        cells += [f"{mean(f'{way}_bytes') / 1e6:.1f}" for way in ("up", "down")]
        lines.append(cells)
    return as_table(columns, lines)


def _tuned(records: Records, label: str) -> str:
    """What tuning found; the chosen rate's in bold."""
    scores, best = tuning_scores(records, label), best_rate(records, label)
    cells = [f"{scores[rate]:.1f}" if rate in scores else "-" for rate in RATES]
    cells[RATES.index(best)] = f"**{cells[RATES.index(best)]}**"
    return " / ".join(cells)


def _spread(values: Sequence[float]) -> str:
    score = estimate(values)
    text = f"{score.mean:.2f}"
    return text if score.n < 2 else f"{text} ± {score.deviation:.2f}"


def draw() -> None:
    """Test perplexity over the rounds, and each client's at the end; means over seeds."""
    found = results(STUDY, "small")
    runs = {label: runs for label in METHODS if (runs := runs_of(found, label))}
    figure = Figure(figsize=(11, 4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for n, (label, own) in enumerate(runs.items()):
        tested = [[h for h in run["history"] if "perplexity" in h] for run in own]
        values = np.array([[h["perplexity"] for h in history] for history in tested])
        rounds = [h["round"] for h in tested[0]]
        left.plot(rounds, values.mean(axis=0), "o-", ms=3, color=COLOURS[n], label=label)
        left.fill_between(
            rounds, values.min(axis=0), values.max(axis=0), color=COLOURS[n], alpha=0.15, lw=0
        )
        _dots(right, own, n, label)
    first = next(iter(runs.values()))
    level(left, first[0]["summary"]["start_perplexity"], "before training", at=8)
    left.set(xlabel="round", ylabel="perplexity on the global test set", yscale="log")
    left.set_yticks([20, 30, 40, 60], ["20", "30", "40", "60"])
    left.minorticks_off()
    names = sorted(first[0]["summary"][PER_CLIENT], key=int)
    before = np.mean([per_client(run, "start_") for run in first], axis=0)
    right.plot(range(len(names)), before, "_", ms=16, color=GREY, label="before training")
    right.set(xlabel="natural client", ylabel="perplexity on its held-out examples")
    right.set_xticks(range(len(names)), names)
    for axes in (left, right):
        style(axes, rounds=axes is left)
    right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(RESULTS / "perplexity.png")


def _dots(axes: Axes, runs: Sequence[Record], n: int, label: str) -> None:
    values = np.mean([per_client(run) for run in runs], axis=0)
    shift = 0.12 * (n - (len(METHODS) - 1) / 2)
    axes.plot(np.arange(len(values)) + shift, values, "o", ms=4, color=COLOURS[n], label=label)


def main() -> None:
    """Write table and figure, and put the table into the README."""
    text = table()
    (RESULTS / "table.md").write_text(text)
    draw()
    put("instruction_tuning", text)
    print(text)


if __name__ == "__main__":
    main()
