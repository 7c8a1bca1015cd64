"""Table and figure of whole experiments: ``python -m experiments.benchmarks.end_to_end.report``."""

import json
import pathlib
import statistics
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.benchmarks.end_to_end import RECORDS, RESULTS
from experiments.tools import json_lines
from experiments.tools.markdown import as_table, put
from fedjax_lora.runs.plots import COLOURS, style

LABELS = {
    "ours-warm": "`fedjax-lora run`, warm cache",
    "ours-cold": "`fedjax-lora run`, cold cache",
    "peft": "PyTorch + PEFT loop",
    "flower-1": "Flower, one worker",
    "flower-2": "Flower, two workers",
}
COLUMNS = (
    "program",
    "time of the process, times ours (warm)",
    "peak memory, MB",
    "test accuracy",
    "largest difference of a round's loss",
    "processes",
)

Records = dict[str, list[dict[str, Any]]]


def records(results: pathlib.Path = RESULTS) -> Records:
    """What was measured, by program."""
    found = json_lines.by_name(results / RECORDS)
    processes = {
        program: [found[name] for name in sorted(found) if name.rpartition("-")[0] == program]
        for program in LABELS
    }
    return {program: records for program, records in processes.items() if records}


def median(made: list[dict[str, Any]], name: str) -> float:
    """Of a program's processes."""
    return statistics.median(record[name] for record in made)


def losses(record: dict[str, Any]) -> np.ndarray:
    """The training loss of every round."""
    return np.array([h["train_loss"] for h in record["history"]])


def row(name: str, found: Records) -> list[str]:
    """One line of the table."""
    made, ours = found[name], found["ours-warm"]
    apart = max(float(np.abs(losses(r) - losses(ours[0])).max()) for r in made)
    return [
        LABELS[name],
        f"{median(made, 'seconds') / median(ours, 'seconds'):.2f}",
        f"{median(made, 'peak_megabytes'):,.0f}",
        f"{100 * made[0]['history'][-1]['accuracy']:.1f} %",
        "0" if apart == 0 else f"{apart:.0e}",
        str(len(made)),
    ]


def table(results: pathlib.Path = RESULTS) -> str:
    """Everything measured, as a Markdown table."""
    found = records(results)
    return as_table(COLUMNS, [row(name, found) for name in found])


def padding(results: pathlib.Path = RESULTS) -> str:
    """How much room batches take, as a sentence."""
    about = json.loads((results / "machine.json").read_text(encoding="utf-8"))
    real, longest, ours = about["training tokens"].values()
    return (
        f"The training batches hold {real:,} real tokens. The PEFT loop pads a batch to its\n"
        f"longest text and computes {longest / real:.2f} times as many, this library "
        f"{ours / real:.2f} times:\n"
        "the room that is left in the few shapes that its steps are compiled for.\n"
    )


def draw(results: pathlib.Path, file: pathlib.Path) -> None:
    """Time, memory, and the losses, which must be one line."""
    found = records(results)
    figure = Figure(figsize=(11, 3.4), dpi=120, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    names = [LABELS[name].replace("`", "") for name in found]
    base = median(found["ours-warm"], "seconds")
    for axes, name, unit in ((left, "seconds", base), (middle, "peak_megabytes", 1e3)):
        for at, made in enumerate(found.values()):
            axes.barh(at, median(made, name) / unit, color=COLOURS[at])
            each = [record[name] / unit for record in made]
            axes.plot(each, [at] * len(each), "k|", ms=9)
        axes.invert_yaxis()
        style(axes, rounds=False)
    left.set_yticks(range(len(names)), names)
    middle.set_yticks(range(len(names)), [""] * len(names))
    left.set_xlabel("time of the process, times ours (warm)")
    middle.set_xlabel("peak memory, GB")
    for at, made in enumerate(found.values()):
        values = losses(made[0])
        line = ("-", "--", ":", "-.", (0, (1, 3)))[at]
        rounds = np.arange(1, len(values) + 1)
        right.plot(rounds, values, ls=line, lw=3 - at / 2, color=COLOURS[at], label=names[at])
    right.set(xlabel="round", ylabel="training loss")
    right.legend(frameon=False, fontsize=7)
    style(right)
    figure.savefig(file)


if __name__ == "__main__":
    (RESULTS / "table.md").write_text(table(), encoding="utf-8")
    draw(RESULTS, RESULTS / "whole.png")
    put("end_to_end", table())
    put("end_to_end_padding", padding())
