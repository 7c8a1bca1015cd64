"""Adapter sets with random clients, in NumPy only: no library changes another's threads."""

import dataclasses
from typing import NamedTuple

import numpy as np

NOISE = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """The adapters of a cohort.

    Attributes:
      name: identifier.
      targets: inputs and outputs by target.
      layers: number of layers of each target.
      ranks: ranks of the clients.
      dense_layers: number of layers that the dense contenders compute.
      methods: aggregated with each of these.
    """

    name: str
    targets: dict[str, tuple[int, int]]
    layers: int
    ranks: tuple[int, ...]
    dense_layers: int
    methods: tuple[str, ...] = ("hlora", "fedit", "masked_mean", "flora")

    @property
    def rank(self) -> int:
        """The stored rank, `R`."""
        return max(self.ranks)

    @property
    def shares(self) -> np.ndarray:
        """The clients' weights in the mean, ``float64[c]``."""
        examples = np.random.default_rng(0).integers(50, 500, len(self.ranks))
        return examples / examples.sum()


PROBLEMS = (
    Problem(
        name="Llama-8B",
        targets={"layers/q_proj": (4096, 4096), "layers/v_proj": (4096, 1024)},
        layers=32,
        ranks=(16,) * 20,
        dense_layers=1,
    ),
    Problem(
        name="RoBERTa-large",
        targets={"layers/query": (1024, 1024), "layers/value": (1024, 1024)},
        layers=24,
        ranks=(4, 8, 16, 32, 64) * 20,
        dense_layers=4,
    ),
)


def case(*, clients: int = 100, rank: int = 16, width: int = 1024) -> Problem:
    """Return a problem of one matrix; clients have a quarter, half and all of `rank` in turn."""
    return Problem(
        name=f"{clients}-clients-rank-{rank}-width-{width}",
        targets={"layers/query": (width, width)},
        layers=1,
        ranks=tuple((rank // 4, rank // 2, rank)[k % 3] for k in range(clients)),
        dense_layers=1,
        methods=("hlora", "zero_padding"),
    )


SWEEPS = {
    "clients": {count: case(clients=count) for count in (10, 30, 100, 300, 1000)},
    "rank": {rank: case(rank=rank) for rank in (4, 16, 64, 256)},
    "width": {width: case(width=width) for width in (256, 512, 1024, 2048)},
}
"""One size varies at a time; 100 clients, rank 16 and width 1024 are part of all three."""


class Client(NamedTuple):
    """One client's factors of one matrix, at its true rank `r`."""

    a: np.ndarray  # float32[i, r]
    b: np.ndarray  # float32[r, o]


def clients(problem: Problem, target: str, layer: int) -> list[Client]:
    """Generate the cohort's factors of one matrix; the same in every process."""
    inputs, outputs = problem.targets[target]
    rng = np.random.default_rng([list(problem.targets).index(target), layer])
    draw = lambda *shape: rng.standard_normal(shape, dtype=np.float32)  # noqa: E731
    size = np.arange(1, problem.rank + 1, dtype=np.float32) ** -0.5
    a, b = draw(inputs, problem.rank) * size, draw(problem.rank, outputs) * size[:, None]
    noise = np.float32(NOISE)
    return [
        Client(
            a[:, :r] + noise * size[:r] * draw(inputs, r),
            b[:r] + noise * size[:r, None] * draw(r, outputs),
        )
        for r in problem.ranks
    ]


def exact(problem: Problem, target: str, layer: int) -> np.ndarray:
    """Compute the best product of rank `R` by the dense SVD in float64, ``[i, o]``."""
    mean = sum(
        share * (x.a.astype(np.float64) @ x.b)
        for share, x in zip(problem.shares, clients(problem, target, layer), strict=True)
    )
    u, s, vt = np.linalg.svd(mean, full_matrices=False)
    return (u[:, : problem.rank] * s[: problem.rank]) @ vt[: problem.rank]


def relative_error(factors: tuple[np.ndarray, np.ndarray], want: np.ndarray) -> float:
    """Relative error of a product ``a @ b`` in the Frobenius norm."""
    a, b = (x.astype(np.float64) for x in factors)
    return float(np.linalg.norm(a @ b - want) / np.linalg.norm(want))
