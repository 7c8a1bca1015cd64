"""The README's claims and tables of the rerun of Byun & Lee, from the result files alone."""

from collections.abc import Iterator

import numpy as np

from experiments.byun_lee import HIGH, LOW, MIDDLE, SHARES, STUDY, TASKS
from experiments.byun_lee.counts import PUBLISHED, count, mean_count
from experiments.study import Results
from experiments.telling import Report, publish
from experiments.verdicts import (
    FLOOR,
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
    UNTESTABLE,
    Claim,
    Finding,
    close,
    course,
    higher,
    interval,
    progress,
    spread,
)
from fedjax_lora.compare.table import Estimate, estimate

FIGURE = "figure, values not available"


def claims() -> list[Claim]:
    """All of the paper's claims."""
    return [*_diagnostic_claims(), *_fig2(), *_fig3(), *_fig4(), _counts()]


def _diagnostic_claims() -> Iterator[Claim]:
    yield Claim(
        "one aggregation with zero padding costs a high-quality client more accuracy than one with "
        "replication",
        "84.34 before, 38.95 after zero padding, 82.11 after replication",
        "diagnostic",
        diagnostic,
    )


def diagnostic(results: Results) -> Finding:
    """Replication minus zero padding after one aggregation, paired by seed."""
    part, task, arm = results.parts["diagnostic"], TASKS[0], "one aggregation"
    records = results.runs(part.name, arm, task).values()
    rounds = [record["history"][0] for record in records]
    if len(rounds) < len(part.seeds):
        return Finding(progress(results, part.name, [arm], [task]), NOT_RUN)
    of = lambda name: estimate([h[name] for h in rounds])  # noqa: E731
    difference: Estimate = estimate([h["replication"] - h["zero_padding"] for h in rounds])
    ours = (
        f"{spread(of('local'))} before, {spread(of('zero_padding'))} after zero padding, "
        f"{spread(of('replication'))} after replication: {interval(difference)}"
    )
    majority = np.mean([record["summary"]["majority_accuracy"] for record in records])
    if of("local").mean < majority + FLOOR:
        return Finding(ours, UNTESTABLE)
    above = difference.mean - difference.half > 0
    return Finding(ours, REPRODUCED if above else NOT_REPRODUCED)


def _fig2() -> Iterator[Claim]:
    for task in TASKS:
        for other in (
            "zero padding",
            "norm-weighted zero padding",
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


def _fig3() -> Iterator[Claim]:
    for share in SHARES:
        at = f"{share:.0%} high"
        yield Claim(
            f"replication is above zero padding with {at}-rank clients (mean over the rounds)",
            FIGURE,
            "fig3",
            higher("fig3", f"replication, {at}", f"zero padding, {at}", value=course),
        )


def _fig4() -> Iterator[Claim]:
    for other in ("random", "inverse"):
        yield Claim(
            f"loss-based allocation is above {other} allocation (mean over the rounds)",
            FIGURE,
            "fig4",
            higher("fig4", "loss-based", other, value=course),
        )


def _counts() -> Claim:
    found = {rank: count(rank) for rank in PUBLISHED}
    ours = (
        f"{mean_count():,.0f} against {found[HIGH]:,}, a share of {mean_count() / found[HIGH]:.3f}"
    )
    right = found == PUBLISHED and mean_count() / found[HIGH] < 1 / 3
    return Claim(
        "the mix of ranks sends a third of what rank 20 for all does (DistilBERT)",
        "179,715 (0.69 MB) against 552,960 (2.11 MB) numbers",
        "counts.py",
        lambda results: Finding(ours, REPRODUCED if right else NOT_REPRODUCED),
    )


REPORT = Report(STUDY, claims())

if __name__ == "__main__":
    publish(REPORT)
