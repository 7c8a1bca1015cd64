"""Table and figure of whole experiments: ``python -m experiments.benchmarks.end_to_end.report``."""

import json
import pathlib
import statistics
from typing import Any

import numpy as np

from experiments.benchmarks.end_to_end import RECORDS, RESULTS
from experiments.tools import json_lines
from experiments.tools.markdown import as_table, put
from fedjax_lora.runs.figure_style import COLOURS, panels, style_axes

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
    """The measurements by program."""
    found = json_lines.by_name(results / RECORDS)
    processes = {
        program: [found[name] for name in sorted(found) if name.rpartition("-")[0] == program]
        for program in LABELS
    }
    return {program: records for program, records in processes.items() if records}


def median(made: list[dict[str, Any]], name: str) -> float:
    """Median over the processes of a program."""
    return statistics.median(record[name] for record in made)


def losses(record: dict[str, Any]) -> np.ndarray:
    """The training loss of every round."""
    return np.array([h["train_loss"] for h in record["history"]])


def row(name: str, found: Records) -> list[str]:
    """Format one row of the table."""
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
    """Tabulate all measurements."""
    found = records(results)
    return as_table(COLUMNS, [row(name, found) for name in found])


def padding(results: pathlib.Path = RESULTS) -> str:
    """Describe how many tokens are computed, padding included."""
    about = json.loads((results / "machine.json").read_text(encoding="utf-8"))
    real, longest, ours = about["training tokens"].values()
    return (
        f"The training batches hold {real:,} real tokens. The PEFT loop pads a batch to its\n"
        f"longest text and computes {longest / real:.2f} times as many, this library "
        f"{ours / real:.2f} times:\n"
        "the room that is left in the few shapes that its steps are compiled for.\n"
    )


def draw(results: pathlib.Path, file: pathlib.Path) -> None:
    """Draw time, memory, and the differences of the training losses from ours."""
    found = records(results)
    figure, (left, middle, right) = panels(3, width=4.0)
    names = [LABELS[name].replace("`", "") for name in found]
    base = median(found["ours-warm"], "seconds")
    for axes, name, unit in ((left, "seconds", base), (middle, "peak_megabytes", 1e3)):
        for at, of_program in enumerate(found.values()):
            axes.barh(at, median(of_program, name) / unit, color=COLOURS[at])
            each = [record[name] / unit for record in of_program]
            axes.plot(each, [at] * len(each), "k|", ms=9)
        axes.invert_yaxis()
        axes.set_yticks(range(len(names)), names if axes is left else [""] * len(names))
        style_axes(axes, rounds=False)
        axes.grid(visible=False, axis="y")
    left.set_xlabel("time of the process, relative to\nfedjax-lora run with a warm cache")
    middle.set_xlabel("peak memory, GB")
    ours = losses(found["ours-warm"][0])
    for at, of_program in enumerate(found.values()):
        apart = np.abs(losses(of_program[0]) - ours)
        rounds = np.arange(1, len(apart) + 1)
        right.plot(rounds, apart, marker="o", ms=3, color=COLOURS[at])
    right.set(xlabel="round", ylabel="difference of the training loss\nfrom fedjax-lora run")
    right.set_yscale("symlog", linthresh=1e-7)
    right.set_ylim(bottom=-3e-8)
    style_axes(right)
    figure.savefig(file)


if __name__ == "__main__":
    (RESULTS / "table.md").write_text(table(), encoding="utf-8")
    draw(RESULTS, RESULTS / "end_to_end.png")
    put("end_to_end", table())
    put("end_to_end_padding", padding())
