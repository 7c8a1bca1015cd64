"""Reports of reruns: claims, tables, figures and cost, from the result files alone."""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.tools.claims import NOT_RUN, RULE, Claim, course, last, spread
from experiments.tools.figures import accuracy_figure, finished
from experiments.tools.markdown import as_table, put
from experiments.tools.study import ROOT, SIZES, Part, Results, Study, distinct, results
from fedjax_lora.runs.sweep.record_store import Record
from fedjax_lora.runs.sweep.statistics import estimate


class Report(NamedTuple):
    """What a study's README is made from."""

    study: Study
    claims: Sequence[Claim] = ()
    extra: Callable[[Results], str] = lambda results: ""  # more Markdown
    figures: Callable[[Results], Mapping[str, Figure]] = lambda results: {}  # more, by name


def publish(report: Report) -> None:
    """Draw the figures of both sizes, and put both into the study's README."""
    readme = ROOT / report.study.name / "README.md"
    for size in SIZES:
        found = results(report.study, size)
        figures = drawn(report, found)
        for old in found.folder.glob("*.png"):
            old.unlink()
        for name, figure in figures.items():
            figure.savefig(found.folder / f"{name}.png")
        put(size, page(report, found), readme)


def drawn(report: Report, found: Results) -> dict[str, Figure]:
    """The figures of what is finished, by name."""
    of_parts = {
        name: figure
        for name, part in found.parts.items()
        if part.shown and (figure := accuracy_figure(found, part)) is not None
    }
    return of_parts | dict(report.figures(found))


def page(report: Report, found: Results) -> str:
    """Everything that the README says of one size; of the full one no more than it has to."""
    sections = [cost(found)]
    if found.size == "small" or found.records:
        if report.claims:
            sections += [claim_table(found, report.claims), RULE]
        sections.append(report.extra(found))
        sections += [part_table(found, part) for part in found.parts.values() if part.shown]
    return "\n".join(section for section in sections if section)


def cost(found: Results) -> str:
    """How many runs are finished, how long one takes and where they ran."""
    cells = distinct(found.parts.values())
    done = [found.records[cell.config] for cell in cells if cell.config in found.records]
    if not done:
        return f"Not yet run: 0 of {len(cells)} runs.\n"
    wall, processor = (
        statistics.median(record["summary"][name] for record in done) / 60
        for name in ("seconds", "processor_seconds")
    )
    machine = json.loads((found.folder / "machine.json").read_text(encoding="utf-8"))
    summary = done[-1]["summary"]
    return (
        f"{len(done)} of {len(cells)} runs are finished "
        f"([result files](results/{found.size}/runs)). The median run took "
        f"{wall:.1f} minutes, {processor:.1f} of processor time, on "
        f"{machine['cores']} cores ({machine['processor']}), {summary['devices']}, Python "
        f"{summary['python']}, jax {summary['packages']['jax']}. {_backbones(found)}.\n"
    )


def _backbones(found: Results) -> str:
    """The backbone of most parts, and where it is another."""
    of = {name: part.backbone() for name, part in found.parts.items()}
    usual = statistics.mode(of.values())
    others = [f"{name}: {backbone}" for name, backbone in of.items() if backbone != usual]
    return "; ".join([f"Backbone: {usual}", *others])


def claim_table(found: Results, claims: Sequence[Claim]) -> str:
    """Every claim with its verdict."""
    lines = []
    for claim in claims:
        ours, verdict = claim.find(found)
        evidence = _evidence(found, claim) if verdict != NOT_RUN else ""
        lines.append([claim.says, claim.published, ours, f"**{verdict}**", evidence])
    return as_table(["claim", "published", "ours", "verdict", "evidence"], lines)


def _evidence(found: Results, claim: Claim) -> str:
    """A link to what shows it: a figure or runs of the claim's part, or the file that it names."""
    part = found.parts.get(claim.part)
    if part is None:
        return f"[{claim.part}]({claim.part})" if claim.part.endswith(".py") else ""
    curves = any(finished(found, part, task) for task in part.tasks)
    shown = claim.evidence or (f"{claim.part}.png" if curves else "runs")
    return f"[{claim.part}](results/{found.size}/{shown})"


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
    """The arms of a part, or nothing if none of its runs is finished."""
    rows = list(_rows(found, part))
    if not rows:
        return ""
    says = (
        f"**{part.name}**: {part.title}; {part.backbone()}. Test accuracy in per cent, mean ± "
        "standard deviation over seeds.\n"
    )
    bands = f"{part.title}; bands are one standard deviation over seeds"
    return "\n".join([says, as_table(COLUMNS, rows), picture(found, part.name, bands)])


def picture(found: Results, name: str, says: str) -> str:
    """A figure of `drawn`, embedded."""
    return f"![{says}](results/{found.size}/{name}.png)\n"


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
