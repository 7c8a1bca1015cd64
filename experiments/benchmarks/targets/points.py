"""Rounds to compile: backbones and methods on growing slices of TPUs, and on GPUs."""

import dataclasses

from experiments.benchmarks.backbones import Work

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


def _points(backbone: str, method: str, *targets: str) -> tuple[Point, ...]:
    return tuple(Point(target=t, backbone=backbone, method=method) for t in targets)


POINTS = (
    *_points("minilm", "fed_plora", "v5e:1x1", "v5e:4x4"),
    *_points("bert-base", "fed_plora", "v5e:4x4"),
    *_points("llama-1b", "fed_plora", "v5e:4x4"),
    *_points("minilm", "flora", "v5e:4x4"),
    *_points("minilm", "hlora", "v5e:4x4"),
    *_points("roberta-large", "fed_plora", "v5e:4x4"),
    *_points("llama-8b", "fed_plora", "v5p:2x2x1"),
    *_points("minilm", "fed_plora", "v5e:16x16"),
    *_points("bert-base", "fed_plora", "v5e:1x1", "v5e:16x16"),
    *_points("llama-1b", "fed_plora", "v5e:1x1", "v5e:16x16"),
    *_points("bert-base", "hlora", "v5e:4x4"),
    *_points("bert-base", "flora", "v5e:4x4"),
    *_points("roberta-large", "fed_plora", "v5e:1x1", "v5e:16x16"),
    *_points("bert-base", "fed_plora", "v6e:2x2", "v5p:2x2x1"),
    *_points("llama-8b", "fed_plora", "v5e:1x1"),
    *_points("llama-1b", "hlora", "v5e:4x4"),
    *_points("llama-1b", "flora", "v5e:4x4"),
    *_points("minilm", "hlora", "v5e:1x1", "v5e:16x16"),
    *_points("minilm", "flora", "v5e:1x1", "v5e:16x16"),
)
"""What matters most first: every backbone and every method, then how they grow with the chips."""
