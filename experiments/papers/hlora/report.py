"""Claims and tables of the study of HLoRA, from the result files alone."""

from collections.abc import Iterator

from experiments.papers.hlora import LEARNED, STUDY, TASKS
from experiments.tools.claims import Claim, course, higher, last
from experiments.tools.report import Report, publish

PUBLISHED = {"mrpc": (84.0, 87.1, 90.2), "rte": (78.3, 86.1, 87.4), "qqp": (83.7, 88.4, 91.6)}
"""Accuracy of naive federated LoRA, of HLoRA with mixed ranks, and of centralised LoRA."""

HLORA, NAIVE = "HLoRA, mixed ranks", "naive, equal ranks"
SAME = "HLoRA, equal ranks"
FIGURE = "Fig. 3, values not available"


def claims() -> list[Claim]:
    """The claims of the paper; those on the mean also for the additional tasks."""
    return [*_table(), *_fig3("table", "the tasks"), *_learned()]


def _table() -> Iterator[Claim]:
    for task in TASKS:
        naive, hlora, central = PUBLISHED[task]
        yield Claim(
            f"{task}: HLoRA with mixed ranks ends above naive averaging",
            f"{hlora} against {naive} ({central} in one place)",
            "table",
            higher("table", HLORA, NAIVE, tasks=[task]),
        )


def _fig3(part: str, tasks: str) -> Iterator[Claim]:
    for says, first, second, value in (
        ("reconstruction learns faster than naive averaging", SAME, NAIVE, course),
        ("reconstruction ends above naive averaging", SAME, NAIVE, last),
        ("mixed ranks learn more slowly than equal ranks", SAME, HLORA, course),
        ("mixed ranks end above equal ranks", HLORA, SAME, last),
    ):
        found = higher(part, first, second, value=value)
        yield Claim(f"{says} (mean over {tasks})", FIGURE, part, found)


def _learned() -> Iterator[Claim]:
    tasks = " and ".join(LEARNED)
    gains = [hlora - naive for naive, hlora, _ in PUBLISHED.values()]
    yield Claim(
        f"HLoRA with mixed ranks ends above naive averaging (mean over {tasks})",
        f"on its tasks {min(gains):.1f} to {max(gains):.1f} points",
        "learned",
        higher("learned", HLORA, NAIVE),
    )
    yield from _fig3("learned", tasks)


REPORT = Report(STUDY, claims())

if __name__ == "__main__":
    publish(REPORT)
