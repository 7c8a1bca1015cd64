"""Table and figure of the leaderboard, from the result file alone."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.studies.leaderboard import METHODS, MIXES, STUDY, TARGET, TASKS
from experiments.tools.claims import interval, last
from experiments.tools.json_lines import Record
from experiments.tools.markdown import as_table
from experiments.tools.statistics import simultaneous
from experiments.tools.study import Results, results
from fedjax_lora.runs.figure_style import method_styles, style_axes

PAGE = STUDY.home() / "results" / "table.md"
FIGURE = STUDY.home() / "results" / "pareto.png"
COLUMNS = (
    "method",
    *(f"{task}, {mix.replace('_', ' ')}" for task, mix in itertools.product(TASKS, MIXES)),
    "against the mean of all methods",
    "MB up",
    "MB down",
    "server ms",
    "rounds to the target",
)
MEGABYTE = 1e6


def finished(found: Results) -> dict[str, list[list[Record]]]:
    """The runs of every method that has all of them: one list of seeds per task and mix."""
    every = {
        name: [_seeds(found, f"{task}_{mix}", name, task) for task in TASKS for mix in MIXES]
        for name in METHODS
    }
    return {name: runs for name, runs in every.items() if all(runs)}


def _seeds(found: Results, part: str, name: str, task: str) -> list[Record]:
    runs = found.runs(part, name, task)
    seeds = found.parts[part].seeds
    return [runs[seed] for seed in seeds] if len(runs) == len(seeds) else []


def table(found: Results) -> str:
    """Tabulate the methods that are finished, those with the highest mean accuracy first."""
    runs = finished(found)
    if not runs:
        return "Not yet run.\n"
    score = {name: np.array([[last(r) for r in of] for of in each]) for name, each in runs.items()}
    by_seed = {name: of.mean(axis=0) for name, of in score.items()}
    everybody = np.mean([*by_seed.values()], axis=0)
    apart = simultaneous({name: (x - everybody).tolist() for name, x in by_seed.items()})
    order = sorted(runs, key=lambda name: -by_seed[name].mean())
    lines = [
        [
            name,
            *(f"{100 * of.mean():.1f} ± {100 * of.std(ddof=1):.1f}" for of in score[name]),
            interval(apart[name]),
            *_cost(found, name, runs[name]),
        ]
        for name in order
    ]
    return as_table(COLUMNS, lines)


def check(found: Results) -> str:
    """Tabulate the first methods again, on all layers of the backbone, in the order of these."""
    parts = [found.parts[f"{task}_all_layers"] for task in TASKS]
    rows = []
    for name in parts[0].arms:
        each = [_seeds(found, part.name, name, part.tasks[0]) for part in parts]
        if all(each):
            score = np.array([[last(run) for run in runs] for runs in each])
            cells = [f"{100 * x.mean():.1f} ± {100 * x.std(ddof=1):.1f}" for x in score]
            rows.append((float(score.mean()), [name, *cells]))
    if not rows:
        return ""
    lines = [line for _, line in sorted(rows, key=lambda row: -row[0])]
    return f"\n{parts[0].backbone()}:\n\n" + as_table(["method", *TASKS], lines)


def _cost(found: Results, name: str, runs: Sequence[Sequence[Record]]) -> list[str]:
    every = [run for of in runs for run in of]
    sent = [np.mean([run["summary"][f"{way}_bytes"] for run in every]) for way in ("up", "down")]
    timed = found.runs("timing", name, TASKS[0]).values()
    seconds = [run["summary"]["server_seconds"] for run in timed]
    needed = [
        rounds_to(run, TARGET[task])
        for (task, _), of in zip(itertools.product(TASKS, MIXES), runs, strict=True)
        for run in of
    ]
    reached = [x for x in needed if x is not None]
    count = f"{np.median(reached):.0f} ({len(reached)} of {len(needed)} runs)" if reached else "-"
    return [
        *(f"{x / MEGABYTE:.0f}" for x in sent),
        f"{1000 * np.mean(seconds):.0f}" if seconds else "-",
        count,
    ]


def rounds_to(run: Record, target: float) -> int | None:
    """The number of rounds after which an evaluation first reached the target; None if none did."""
    for count, record in enumerate(run["history"], 1):
        if record.get("accuracy", -1.0) >= target:
            return count
    return None


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names that no other beats in both: fewer megabytes and a higher accuracy.

    >>> pareto({"a": (1.0, 0.5), "b": (2.0, 0.6), "c": (3.0, 0.55)})
    ['a', 'b']
    """
    chosen, best = [], -np.inf
    for name, (_, accuracy) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if accuracy > best:
            chosen.append(name)
            best = accuracy
    return chosen


def figure(found: Results) -> Figure | None:
    """Draw mean accuracy against all bytes sent, with the line of methods that none beats."""
    runs = finished(found)
    if not runs:
        return None
    points = {}
    for name, each in runs.items():
        every = [run for of in each for run in of]
        sent = np.mean([r["summary"]["up_bytes"] + r["summary"]["down_bytes"] for r in every])
        points[name] = float(sent / MEGABYTE), 100 * float(np.mean([last(r) for r in every]))
    drawn = Figure(figsize=(9, 5.5), dpi=130, layout="constrained")
    axes = drawn.subplots()
    front = pareto(points)
    axes.plot(*zip(*(points[name] for name in front), strict=True), color="#BBBBBB", lw=1, zorder=0)
    styles = method_styles([METHODS[name] for name in points])
    for (name, (x, y)), style in zip(points.items(), styles, strict=True):
        axes.plot(x, y, ms=7, label=name, color=style["color"], marker=style["marker"], ls="none")
    part = next(iter(found.parts.values()))
    axes.set(
        xscale="log",
        xlabel="uploaded and downloaded by all clients of a run, MB (log scale)",
        ylabel="test accuracy, %, mean over tasks, mixes and seeds",
        title=f"{', '.join(TASKS)}; {part.backbone()}",
    )
    style_axes(axes, rounds=False)
    axes.legend(frameon=False, fontsize=7, ncols=3, loc="lower right")
    return drawn


def main() -> None:
    """Write table and figure beside the results."""
    found = results(STUDY, "small")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(table(found) + check(found), encoding="utf-8")
    if (drawn := figure(found)) is not None:
        drawn.savefig(FIGURE)


if __name__ == "__main__":
    main()
