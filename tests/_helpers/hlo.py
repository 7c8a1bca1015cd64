"""The collective operations of a compiled program, read from its text."""

import re
from typing import Any, NamedTuple

import numpy as np

TASK_TYPES = (
    "all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute",
    "reduce-scatter",
)  # fmt: skip
_LINE = re.compile(rf"= (.*?) ({'|'.join(TASK_TYPES)})(?:-start)?\(")
_ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One array of a collective operation, as it is on a device afterwards."""

    kind: str
    shape: tuple[int, ...]
    bytes: int


def collectives(compiled: Any) -> list[Collective]:
    """Those of a compiled program."""
    found = []
    for line in compiled.as_text().splitlines():
        if match := _LINE.search(line):
            for dtype, dims in _ARRAY.findall(match[1]):
                shape = tuple(int(n) for n in dims.split(",") if n)
                bits = 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype))
                found.append(Collective(match[2], shape, int(np.prod(shape)) * bits // 8))
    return found
