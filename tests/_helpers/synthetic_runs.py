"""Made-up finished runs: scores by method, varied value and seed."""

from typing import Any

from fedjax_lora.runs import config as configs
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.sweep import grid
from fedjax_lora.runs.sweep.grid import Grid
from fedjax_lora.runs.sweep.statistics import Run

SUMMARY = {
    "majority_accuracy": 0.25,
    "python": "3.12.1",
    "packages": {"jax": "0.12.0", "numpy": "2.4"},
    "devices": "1 x cpu",
    "base_sha256": "abc",
}


def history(scores: list[float | None], up: int = 1000) -> list[dict[str, Any]]:
    """Two rounds for each score, of which the second was evaluated."""
    made = []
    for n in range(2 * len(scores)):
        record = {"round": n + 1, "train_loss": 1.0 / (n + 1), "examples": 8, "up_bytes": up,
                  "down_bytes": 2 * up, "rejected": [3] if n == 1 else []}  # fmt: skip
        if n % 2:
            record |= {"accuracy": scores[n // 2], "loss": 2.0}
        made.append(record)
    return made


def runs(
    scores: dict[tuple, list[float | None]], vary: dict[str, tuple] | None = None
) -> list[Run]:
    """Runs by ``(method, *varied values, seed)``; in the order of a grid, absent ones left out."""
    methods, seeds = (tuple(dict.fromkeys(key[at] for key in scores)) for at in (0, -1))
    chosen = Grid(base=RunConfig(), methods=methods, seeds=seeds, vary=vary or {})
    cells, problems = grid.cells(chosen)
    assert not problems
    return [
        (
            cell,
            {
                "config": configs.to_dict(cell.config),
                "history": history(scores[key], up=1000 * (1 + methods.index(key[0]))),
                "summary": SUMMARY | {"accuracy": scores[key][-1]},
            },
        )
        for cell in cells
        if (key := tuple(cell.labels.values())) in scores
    ]
