"""Claims and tables of the study of Fed-PLoRA, from the result files alone."""

import operator
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.papers.fed_plora import MAIN, MEASURED, STUDY, TASKS
from experiments.papers.fed_plora.claims import EXACT, RATIOS, claims, mean_of
from experiments.tools.figures import draw_arms, finished
from experiments.tools.json_lines import Record
from experiments.tools.markdown import as_table
from experiments.tools.report import Report, picture, publish
from experiments.tools.study import Results
from fedjax_lora.runs.figure_style import panels, seeds_caption, shared_legend


def noise_table(results: Results) -> str:
    """Tabulate noise, similarity and cost of the measured rounds."""
    runs = {arm: list(results.runs("measured", arm, TASKS[0]).values()) for arm in MAIN}
    lines = [_noise_row(arm, of_arm) for arm, of_arm in runs.items() if of_arm]
    if not lines:
        return ""
    heading = (
        f"**measured**: noise relative to the ideal update of the round, on {TASKS[0]}, "
        f"{MEASURED['federation.rounds']} rounds, {results.parts['measured'].backbone()}, means "
        "over seeds; the server's time is the median over the rounds after the first.\n"
    )
    caption = seeds_caption([len(of_arm) for of_arm in runs.values() if of_arm])
    drawing = picture(results, "noise", f"noise and similarity over the rounds; {caption}")
    return "\n".join([heading, as_table(NOISE_COLUMNS, lines), drawing])


NOISE_COLUMNS = (
    "arm",
    "initialization noise, rounds 2 / last",
    "aggregation noise, rounds 2 / last",
    "same-index cosine, first / last",
    "cross-index",
    "MB up",
    "MB down",
    "client MB",
    "server ms",
)


def _noise_row(arm: str, runs: list[Record]) -> list[str]:
    histories = [run["history"] for run in runs]
    server = np.mean([run["summary"]["server_seconds"] for run in runs])
    at = lambda name, n: _number([h[n][name] for h in histories])  # noqa: E731
    mean = lambda name: np.mean([mean_of(name)(h) for h in histories])  # noqa: E731
    return [
        arm,
        f"{at('init_ratio', 1)} / {at('init_ratio', -1)}",
        f"{at('agg_ratio', 1)} / {at('agg_ratio', -1)}",
        f"{at('same_cosine', 0)} / {at('same_cosine', -1)}",
        at("cross_cosine", -1),
        f"{mean('up_bytes') / 1e6:.2f}",
        f"{mean('down_bytes') / 1e6:.2f}",
        f"{mean('client_bytes_mean') / 1e6:.1f}",
        f"{1000 * server:.0f}",
    ]


PANELS = {
    "init_ratio": ("initialization noise", "relative to the ideal update"),
    "agg_ratio": ("aggregation noise", "relative to the ideal update"),
    "same_cosine": ("modules of the same index on different clients", "cosine similarity"),
    "cross_cosine": ("modules of different index", "cosine similarity"),
}


def figures(results: Results) -> dict[str, Figure]:
    """Draw both noises and the similarities (the paper's Fig. 2) over the rounds."""
    part = results.parts["measured"]
    arms = finished(results, part, TASKS[0])
    if not arms:
        return {}
    figure, every_axes = panels(len(PANELS), columns=2)
    for axes, (name, (title, unit)) in zip(every_axes, PANELS.items(), strict=True):
        is_noise = name in RATIOS.values()
        bounds = (0.0, np.inf) if is_noise else (-1.0, 1.0)
        draw_arms(axes, part, arms, operator.itemgetter(name), bounds=bounds)
        axes.set(xlabel="round", ylabel=unit)
        axes.set_title(title, fontsize=10)
        if is_noise:
            axes.set_yscale("symlog", linthresh=EXACT)
            axes.set_ylim(bottom=-EXACT / 4)
            _name_zeros(axes, arms, name)
    shared_legend(figure, every_axes)
    return {"noise": figure}


def _name_zeros(axes: Axes, arms: Mapping[str, Sequence[Record]], name: str) -> None:
    """Name the arms without noise, whose curves cover each other."""
    largest = {arm: max(h[name] for run in of for h in run["history"]) for arm, of in arms.items()}
    text = ", ".join(arm.partition(",")[0] for arm, noise in largest.items() if noise < EXACT)
    at = MEASURED["federation.rounds"]
    axes.annotate(text, (at, 0), (0, 6), textcoords="offset points", ha="right", fontsize=8)


def _number(values: list[float | None]) -> str:
    """Format a mean over seeds; a dash if it is undefined for all of them."""
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.2g}" if known else "-"


REPORT = Report(STUDY, claims(), noise_table, figures)

if __name__ == "__main__":
    publish(REPORT)
