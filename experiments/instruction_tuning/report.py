"""Table and figure of the instruction-tuning comparison, from the result files alone."""

import json
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.instruction_tuning import METHODS, RESULTS
from experiments.markdown import put
from fedjax_lora.plots import COLOURS, GREY, level, style

PER_CLIENT = "validation_perplexity_by_client"


def records(method: str) -> list[dict[str, Any]]:
    """The finished runs of a method, one per seed."""
    paths = sorted((RESULTS / "runs").glob(f"{method}-seed*.json"))
    return [json.loads(path.read_text()) for path in paths]


def per_client(run: dict[str, Any], when: str = "") -> np.ndarray:
    """Perplexity of the global model on each client's held-out examples, by client number."""
    found = run["summary"][f"{when}{PER_CLIENT}"]
    return np.array([found[name] for name in sorted(found, key=int)])


def table() -> str:
    """The comparison as a Markdown table."""
    lines = [
        "| method | learning rate | perplexity before | after | best client | worst client | seeds "
        "| MB up | MB down |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for label, method in METHODS.items():
        runs = records(method)
        if not runs:
            continue
        summaries = [run["summary"] for run in runs]
        mean = lambda name: np.mean([s[name] for s in summaries])  # noqa: E731, B023
        clients = np.mean([per_client(run) for run in runs], axis=0)
        rates = sorted({run["config"]["local"]["learning_rate"] for run in runs})
        cells = [f"{label} `{method}`", ", ".join(f"{rate:g}" for rate in rates)]
        values = (mean("start_perplexity"), mean("perplexity"), clients.min(), clients.max())
        cells += [*(f"{x:.1f}" for x in values), str(len(runs))]
        cells += [f"{mean(f'{way}_bytes') / 1e6:.1f}" for way in ("up", "down")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw() -> None:
    """Test perplexity over the rounds, and each client's at the end."""
    figure = Figure(figsize=(11, 4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for n, (label, method) in enumerate(METHODS.items()):
        if runs := records(method):
            tested = [[h for h in run["history"] if "perplexity" in h] for run in runs]
            rounds = [h["round"] for h in tested[0]]
            values = np.mean([[h["perplexity"] for h in history] for history in tested], axis=0)
            left.plot(rounds, values, "o-", ms=3, color=COLOURS[n], label=label)
            _dots(right, runs, n, label)
    runs = records(next(iter(METHODS.values())))
    level(left, runs[0]["summary"]["start_perplexity"], "before training", at=8)
    left.set(xlabel="round", ylabel="perplexity on the global test set")
    names = sorted(runs[0]["summary"][PER_CLIENT], key=int)
    before = np.mean([per_client(run, "start_") for run in runs], axis=0)
    right.plot(range(len(names)), before, "_", ms=16, color=GREY, label="before training")
    right.set(xlabel="natural client", ylabel="perplexity on its held-out examples")
    right.set_xticks(range(len(names)), names)
    for axes in (left, right):
        style(axes, rounds=axes is left)
    right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(RESULTS / "perplexity.png")


def _dots(axes: Axes, runs: list[dict[str, Any]], n: int, label: str) -> None:
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
