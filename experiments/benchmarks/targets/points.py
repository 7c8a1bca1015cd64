"""Rounds to compile: backbones and methods on growing slices of TPUs, and on GPUs."""

import dataclasses

from experiments.benchmarks.backbones import Work

SLICES = ("v5e:1x1", "v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16", "v5p:2x2x1", "v6e:2x2", "h100:8")
METHODS = ("fed_plora", "hlora", "flora")

SIZES = {
    "minilm": (16, 64),
    "bert-base": (16, 64),
    "roberta-large": (16, 128),
    "llama-1b": (4, 512),
    "llama-8b": (4, 512),
}
"""Texts of a step and their tokens, by backbone."""

CLIENTS_PER_CHIP = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """A round on a target: weak scaling, with as many clients for every chip."""

    target: str
    backbone: str
    method: str

    @property
    def name(self) -> str:
        """Name of its record."""
        return f"{self.backbone} {self.method} {self.target}"

    def work(self, chips: int) -> Work:
        """Return the round, on this number of chips."""
        batch, length = SIZES[self.backbone]
        return Work(
            backbone=self.backbone,
            method=self.method,
            clients=CLIENTS_PER_CHIP * chips,
            batch=batch,
            length=length,
            mode="vmap" if chips == 1 else "sharded",
        )


POINTS = tuple(
    Point(target=target, backbone=backbone, method=method)
    for backbone in SIZES
    for method in METHODS
    for target in SLICES
)
"""In the order of what compiling them takes."""
