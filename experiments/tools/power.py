"""Seeds that undecided claims need, from the spread of the finished runs.

``python -m experiments.tools.power`` writes the table of ``experiments/papers/PROTOCOL.md``. It is
to be run before new seeds are, not after.
"""

import functools
import pathlib
from collections.abc import Iterator

from experiments.tools.claims import MARGIN, UNTESTABLE, Finding
from experiments.tools.markdown import as_table, put
from experiments.tools.statistics import MOST_SEEDS, WANTED_POWER, power, seeds_for
from experiments.tools.study import results
from experiments.tools.write_reports import REPORTS
from fedjax_lora.runs.sweep.intervals import Estimate

PROTOCOL = pathlib.Path(__file__).parents[1] / "papers" / "PROTOCOL.md"

COLUMNS = (
    "study",
    "claim",
    "seeds",
    "deviation, points",
    f"power at {100 * MARGIN:.0f} points",
    f"seeds for {100 * WANTED_POWER:.0f} %",
)


@functools.cache
def undecided() -> tuple[tuple[str, str, Finding], ...]:
    """Claims whose verdict is that these runs cannot tell: study, claim and finding."""
    return tuple(_undecided())


def _undecided() -> Iterator[tuple[str, str, Finding]]:
    for report in REPORTS:
        found = results(report.study, "small")
        for claim in report.claims:
            finding = claim.find(found)
            if finding.verdict == UNTESTABLE:
                yield report.study.name, claim.says, finding


def table() -> str:
    """Tabulate the claims that more seeds could decide, those that need the fewest first."""
    lines = [
        (study, says, finding.difference)
        for study, says, finding in undecided()
        if finding.difference is not None
    ]
    lines.sort(key=lambda line: line[2].deviation)
    return as_table(COLUMNS, [[study, says, *_cells(found)] for study, says, found in lines])


def _cells(found: Estimate) -> list[str]:
    wanted = seeds_for(found.deviation, MARGIN)
    return [
        f"{found.n}",
        f"{100 * found.deviation:.1f}",
        f"{100 * power(found.deviation, MARGIN, found.n):.0f} %",
        f"{wanted}" if wanted else f"over {MOST_SEEDS}",
    ]


def others() -> str:
    """List the undecided claims that no number of seeds decides, with the reason."""
    lines = [
        [study, says, finding.ours]
        for study, says, finding in undecided()
        if finding.difference is None
    ]
    return as_table(["study", "claim", "why"], lines)


if __name__ == "__main__":
    put("power", table(), PROTOCOL)
    put("no_seeds", others(), PROTOCOL)
