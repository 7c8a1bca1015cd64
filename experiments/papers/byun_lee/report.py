"""Claims and tables of the study of Byun & Lee, from the result files alone."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from experiments.papers.byun_lee import (
    HIGH,
    LOW,
    MIDDLE,
    SHARES,
    STUDY,
    TASKS,
    ZEROS,
    ZEROS_BY_NORM,
)
from experiments.papers.byun_lee.counts import PUBLISHED, count, mean_count
from experiments.papers.byun_lee.diagnostic import AFTER
from experiments.tools.claims import (
    FLOOR,
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
    UNTESTABLE,
    Claim,
    Finding,
    close,
    course,
    differing,
    higher,
    is_above,
    is_as_large,
    is_close,
    judged,
    measured,
    progress,
)
from experiments.tools.json_lines import Record
from experiments.tools.markdown import as_table
from experiments.tools.report import Report, publish
from experiments.tools.study import RUNS, Results
from fedjax_lora.runs.sweep.intervals import Estimate

FIGURE = "figure, values not available"


def claims() -> list[Claim]:
    """The claims of the paper."""
    return [*_diagnostic_claims(), *_fig2(), *_albert(), *_fig3(), *_fig4(), *_communication()]


def _diagnostic_claims() -> Iterator[Claim]:
    for says, published, pair, judge in (
        (
            f"one aggregation with {ZEROS} costs a high-quality client more than one with "
            "replication",
            "82.11 against 38.95",
            ("replication", "zero_padding"),
            is_above,
        ),
        (
            f"{ZEROS} costs it tens of points",
            "84.34 before, 38.95 after: 45.39",
            ("local", "zero_padding"),
            lambda lost: is_as_large(lost, 0.4539),
        ),
        (
            "replication costs it little",
            "84.34 before, 82.11 after",
            ("local", "replication"),
            is_close,
        ),
    ):
        yield Claim(says, published, "diagnostic", _diagnostic(pair, judge), RUNS)


def _diagnosed(results: Results) -> dict[int, Record]:
    return results.runs("diagnostic", "one aggregation", TASKS[0])


def _diagnostic(
    pair: tuple[str, str], judge: Callable[[Estimate], str]
) -> Callable[[Results], Finding]:
    """Claim about the accuracies of a client before and after one aggregation."""

    def find(results: Results) -> Finding:
        part, runs = results.parts["diagnostic"], [*_diagnosed(results).values()]
        if len(runs) < len(part.seeds):
            return Finding(progress(results, part.name, [*part.arms], part.tasks), NOT_RUN)
        first, second = ([run["history"][0][name] for run in runs] for name in pair)
        majority = np.mean([run["summary"]["majority_accuracy"] for run in runs])
        learned = np.mean([run["history"][0]["local"] for run in runs]) >= majority + FLOOR
        if not learned:
            return Finding("the client's own model learns too little", UNTESTABLE)
        return judged(differing(first, second), judge)

    return find


def diagnostic_table(results: Results) -> str:
    """Tabulate the diagnostic by seed."""
    part, runs = results.parts["diagnostic"], _diagnosed(results)
    if not runs:
        return ""
    columns = ["seed", "its own model", f"after {ZEROS}", "after replication", "majority class"]
    lines = [
        [
            str(seed),
            *(f"{100 * run['history'][0][name]:.1f}" for name in ("local", *AFTER)),
            f"{100 * run['summary']['majority_accuracy']:.1f}",
        ]
        for seed, run in sorted(runs.items())
    ]
    says = f"**{part.name}**: {part.title}; {part.backbone()}. Test accuracy in per cent.\n"
    return "\n".join([says, as_table(columns, lines)])


def _fig2() -> Iterator[Claim]:
    for task in TASKS:
        for other in (
            ZEROS,
            ZEROS_BY_NORM,
            f"rank {LOW} for all",
            f"rank {MIDDLE} for all",
        ):
            yield Claim(
                f"{task}: replication learns faster than {other} (mean over the rounds)",
                FIGURE,
                "fig2",
                higher("fig2", "replication", other, tasks=[task], value=course),
            )
        yield Claim(
            f"{task}: replication ends close to rank {HIGH} for all",
            FIGURE,
            "fig2",
            close("fig2", "replication", f"rank {HIGH} for all", tasks=[task]),
        )


def _albert() -> Iterator[Claim]:
    for task in TASKS:
        yield Claim(
            f"{task}: with ALBERT replication learns faster than {ZEROS} (mean over the rounds)",
            FIGURE,
            "fig2_albert",
            higher("fig2_albert", "replication", ZEROS, tasks=[task], value=course),
        )


def _fig3() -> Iterator[Claim]:
    for share in SHARES:
        at = f"{share:.0%} high"
        yield Claim(
            f"replication is above {ZEROS} with {at}-rank clients (mean over the rounds)",
            FIGURE,
            "fig3",
            higher("fig3", f"replication, {at}", f"{ZEROS}, {at}", value=course),
        )


def _fig4() -> Iterator[Claim]:
    for other in ("random", "inverse"):
        yield Claim(
            f"loss-based allocation is above {other} allocation (mean over the rounds)",
            FIGURE,
            "fig4",
            higher("fig4", "loss-based", other, value=course),
        )


def _communication() -> Iterator[Claim]:
    yield _bytes(
        f"replication sends no more than {ZEROS}",
        "stated",
        ZEROS,
        lambda ratio: ratio <= 1,
        "{0:.3f} times as many bytes up and down",
    )
    found = {rank: count(rank) for rank in PUBLISHED}
    ours = ", ".join(f"{number:,} with rank {rank}" for rank, number in found.items())
    share = mean_count() / found[HIGH]
    right = found == PUBLISHED and share < 1 / 3
    yield Claim(
        "the mix of ranks trains a third of the numbers that rank 20 for all does (DistilBERT)",
        "179,715 (0.69 MB) against 552,960 (2.11 MB)",
        "counts.py",
        lambda results: Finding(
            f"{ours}; {mean_count():,.0f} with the mix: a share of {share:.3f}",
            REPRODUCED if right else NOT_REPRODUCED,
        ),
    )
    yield _bytes(
        "so it sends a third, with what scoring all clients once costs",
        "a third",
        f"rank {HIGH} for all",
        lambda ratio: ratio < 1 / 3,
        "{0:.3f} of the bytes up and down, heads included",
    )


def _bytes(
    says: str, published: str, other: str, holds: Callable[[float], bool], text: str
) -> Claim:
    """Claim about the bytes of replication, relative to another arm."""
    ratio = lambda ours, theirs: sent(ours) / sent(theirs)  # noqa: E731
    found = measured("fig2", ["replication", other], ratio, holds, text, task=TASKS[0])
    return Claim(says, published, "fig2", found, RUNS)


def sent(history: list[dict[str, Any]]) -> int:
    """Bytes of a whole run, uplink and downlink, scoring included."""
    return sum(h["up_bytes"] + h["down_bytes"] for h in history)


REPORT = Report(STUDY, claims(), diagnostic_table)

if __name__ == "__main__":
    publish(REPORT)
