"""What the demo prints and reaches: ``python -m experiments.tools.readme_demo``.

It also draws the demo's accuracy over the rounds beside that of LoRA on all data in one place.
"""

import io
import json
import pathlib
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from experiments.studies.demo import centralised
from experiments.tools import json_lines
from experiments.tools.markdown import put
from fedjax_lora.cli.terminal import print_summary, row_printer
from fedjax_lora.runs.figure_style import BLUE, ORANGE, reference_line, style_axes

RESULTS = pathlib.Path(__file__).parents[1] / "studies" / "demo" / "results"
RECORDED = "Nothing was compiled before, and the machine did nothing else"
"""What the times of the results do not say of how they were taken."""

ENDS = 4  # rows shown at the beginning and at the end
NO_EVENTS: dict[str, Any] = {"dropped": [], "stragglers": [], "rejected": []}


def block() -> str:
    """The printed table, shortened, and a sentence about its last line."""
    return f"```text\n{printed()}```\n\n{sentence()}"


def printed() -> str:
    """The lines of the terminal, from the committed run folder."""
    metrics, timing = (
        [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text().splitlines()]
        for name in ("metrics", "timing")
    )
    out = io.StringIO()
    console = Console(file=out, width=100)
    print_row = row_printer(console, "accuracy")
    for numbers, seconds in zip(metrics, timing, strict=True):
        print_row(NO_EVENTS | numbers | seconds)
    header, *rows = out.getvalue().splitlines()
    print_summary(console, summary(), "accuracy", pathlib.Path("runs/demo"))
    ending = out.getvalue().splitlines()[len(rows) + 1]
    return "\n".join([header, *rows[:ENDS], "  ...", *rows[-ENDS:], ending]) + "\n"


def sentence() -> str:
    """Accuracy, that of the majority class, rounds, versions and times."""
    s = summary()
    return (
        f"On 2 CPU cores: {100 * s['accuracy']:.1f} % test accuracy after {s['rounds']} rounds of "
        f"{s['method']} (always the most frequent class: {100 * s['majority_accuracy']:.1f} %; "
        f"logistic regression on TF-IDF features of all texts: {100 * ceiling():.1f} %; "
        f"{in_one_place()}), with "
        f"Python {s['python']} and jax {s['packages']['jax']}. {RECORDED}: the run had "
        f"{s['processor_seconds']:.0f} processor seconds in {s['seconds']:.0f} s. The learning "
        f"rate was chosen with this seed; {other_seeds()}.\n"
    )


def other_seeds() -> str:
    """The accuracy with other seeds, each from ``fedjax-lora run --seed N``."""
    found = json.loads((RESULTS / "other_seeds.json").read_text())
    return " and ".join(f"seed {seed} gives {100 * x:.1f} %" for seed, x in found.items())


def in_one_place() -> str:
    """The accuracy of LoRA on all data in one place."""
    found = centralised.best()
    rates = sorted(one["rate"] for one in json_lines.by_name(centralised.FILE).values())
    return (
        "LoRA on all data in one place, with as many steps: "
        f"{100 * found['records'][-1]['accuracy']:.1f} % at the best of the learning rates "
        f"{', '.join(map(str, rates))}"
    )


def draw(file: pathlib.Path = RESULTS / "centralised.png") -> None:
    """Draw the accuracy over the rounds, federated and in one place, with what it is to beat."""
    figure = Figure(figsize=(5.2, 3.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    metrics = (RESULTS / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    curves = {
        "LoRA in one place": (centralised.best()["records"], ORANGE),
        f"{summary()['method']}, ten of 50 clients": (list(map(json.loads, metrics)), BLUE),
    }
    for label, (records, colour) in curves.items():
        tested = [record for record in records if "accuracy" in record]
        places = [record["round"] for record in tested]
        axes.plot(
            places, [100 * r["accuracy"] for r in tested], "o-", ms=3, color=colour, label=label
        )
    reference_line(axes, 100 * ceiling(), "TF-IDF, all texts", at=places[-1])
    reference_line(axes, 100 * summary()["majority_accuracy"], "majority class", at=places[-1])
    axes.set(xlabel="round", ylabel="test accuracy, %", ylim=(0, 102))
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 0.2))
    style_axes(axes)
    figure.savefig(file)


def ceiling() -> float:
    """The accuracy of a plain classifier, from `experiments.studies.demo.ceiling`."""
    return json.loads((RESULTS / "ceiling.json").read_text())["accuracy"]


def summary() -> dict[str, Any]:
    """The run's ``summary.json``."""
    found: dict[str, Any] = {"train_test_overlap": 0, "skipped_examples": 0}
    return found | json.loads((RESULTS / "summary.json").read_text())


if __name__ == "__main__":
    put("demo", block())
    draw()
