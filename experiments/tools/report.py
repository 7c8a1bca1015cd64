"""Reports of studies: claims, tables, figures and cost, from the result files alone."""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.tools.claims import NOT_RUN, RULE, Claim, course, last, spread
from experiments.tools.figures import accuracy_figure, finished
from experiments.tools.json_lines import Record
from experiments.tools.markdown import as_table, put
from experiments.tools.study import RUNS, SIZES, Part, Results, Study, distinct, results
from fedjax_lora.runs.figure_style import seeds_caption
from fedjax_lora.runs.sweep.intervals import estimate


class Report(NamedTuple):
    """Content of a study's README.

    Attributes:
      study: the study.
      claims: of its paper.
      extra: further Markdown.
      figures: further figures, by name.
    """

    study: Study
    claims: Sequence[Claim] = ()
    extra: Callable[[Results], str] = lambda results: ""
    figures: Callable[[Results], Mapping[str, Figure]] = lambda results: {}


def publish(report: Report) -> None:
    """Draw the figures of both sizes and write both sections of the study's README."""
    readme = report.study.home() / "README.md"
    for size in SIZES:
        found = results(report.study, size)
        figures = all_figures(report, found)
        for old in found.folder.glob("*.png"):
            old.unlink()
        for name, figure in figures.items():
            figure.savefig(found.folder / f"{name}.png")
        put(size, page(report, found), readme)


def all_figures(report: Report, found: Results) -> dict[str, Figure]:
    """Draw the figures of the finished runs, by name."""
    of_parts = {
        name: figure
        for name, part in found.parts.items()
        if part.shown and (figure := accuracy_figure(found, part)) is not None
    }
    return of_parts | dict(report.figures(found))


def page(report: Report, found: Results) -> str:
    """Format the README section of one size; without runs of the full size, only its cost."""
    sections = [cost(found)]
    if found.size == "small" or found.records:
        if report.claims:
            sections += [claim_table(found, report.claims), RULE]
        sections.append(report.extra(found))
        sections += [part_table(found, part) for part in found.parts.values() if part.shown]
    return "\n".join(section for section in sections if section)


def cost(found: Results) -> str:
    """Describe how many runs are finished, how long they took and on which machine."""
    cells = distinct(found.parts.values())
    finished_runs = [found.records[cell.config] for cell in cells if cell.config in found.records]
    if not finished_runs:
        return f"Not yet run: 0 of {len(cells)} runs.\n"
    wall, processor = (
        statistics.median(record["summary"][name] for record in finished_runs) / 60
        for name in ("seconds", "processor_seconds")
    )
    machine = json.loads((found.folder / "machine.json").read_text(encoding="utf-8"))
    summary = finished_runs[-1]["summary"]
    return (
        f"{len(finished_runs)} of {len(cells)} runs are finished "
        f"([result file](results/{found.size}/{RUNS})). The median run took "
        f"{wall:.1f} minutes, {processor:.1f} of processor time, on "
        f"{machine['cores']} cores ({machine['processor']}), {summary['devices']}, Python "
        f"{summary['python']}, jax {summary['packages']['jax']}. {_backbones(found)}.\n"
    )


def _backbones(found: Results) -> str:
    """Describe the most common backbone and the parts that use another."""
    backbones = {name: part.backbone() for name, part in found.parts.items()}
    usual = statistics.mode(backbones.values())
    others = [f"{name}: {backbone}" for name, backbone in backbones.items() if backbone != usual]
    return "; ".join([f"Backbone: {usual}", *others])


def claim_table(found: Results, claims: Sequence[Claim]) -> str:
    """Tabulate the claims with their verdicts."""
    lines = []
    for claim in claims:
        ours, verdict, _ = claim.find(found)
        evidence = _evidence(found, claim) if verdict != NOT_RUN else ""
        lines.append([claim.says, claim.published, ours, f"**{verdict}**", evidence])
    return as_table(["claim", "published", "ours", "verdict", "evidence"], lines)


def _evidence(found: Results, claim: Claim) -> str:
    """Link the evidence: the figure or runs of the claim's part, or the file that it names."""
    part = found.parts.get(claim.part)
    if part is None:
        return f"[{claim.part}]({claim.part})" if claim.part.endswith(".py") else ""
    has_curves = any(finished(found, part, task) for task in part.tasks)
    file = claim.evidence or (f"{claim.part}.png" if has_curves else RUNS)
    return f"[{claim.part}](results/{found.size}/{file})"


COLUMNS = (
    "task",
    "arm",
    "last round",
    "mean over the rounds",
    "majority class",
    "seeds",
    "MB up",
    "MB down",
)


def part_table(found: Results, part: Part) -> str:
    """Tabulate the arms of a part; empty if none of its runs is finished."""
    rows = list(_rows(found, part))
    if not rows:
        return ""
    heading = (
        f"**{part.name}**: {part.title}; {part.backbone()}. Test accuracy in per cent, mean ± "
        "standard deviation over seeds.\n"
    )
    counts = [len(runs) for task in part.tasks for runs in finished(found, part, task).values()]
    caption = f"{part.title}; {seeds_caption(counts)}"
    return "\n".join([heading, as_table(COLUMNS, rows), picture(found, part.name, caption)])


def picture(found: Results, name: str, caption: str) -> str:
    """Embed a figure of `all_figures`."""
    return f"![{caption}](results/{found.size}/{name}.png)\n"


def _rows(found: Results, part: Part) -> Iterator[list[str]]:
    for task in part.tasks:
        for arm, runs in finished(found, part, task).items():
            yield _row(task, arm, runs, len(part.seeds))


def _row(task: str, arm: str, runs: Sequence[Record], planned: int) -> list[str]:
    summaries = [run["summary"] for run in runs]
    mean = lambda name: float(np.mean([summary[name] for summary in summaries]))  # noqa: E731
    return [
        task,
        arm,
        *(spread(estimate([value(run) for run in runs])) for value in (last, course)),
        f"{100 * mean('majority_accuracy'):.1f}",
        f"{len(runs)} of {planned}",
        *(f"{mean(f'{way}_bytes') / 1e6:.0f}" for way in ("up", "down")),
    ]
