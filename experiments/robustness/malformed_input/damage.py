"""Well-formed files with a few bytes changed at random."""

import pathlib
from collections.abc import Iterator

import numpy as np

from experiments.robustness.malformed_input import valid
from experiments.robustness.malformed_input.case import Case

SEED = 0


def cases(*, each: int) -> Iterator[Case]:
    """Generate a number of damaged versions of every file; deterministic."""
    for n, file in enumerate([*valid.files(), "config.json"]):
        format = pathlib.Path(file).suffix.lstrip(".")
        words = (f"--task={valid.task(pathlib.Path(file).name)}",) if "train." in file else ()
        for k in range(each):
            change = _damage(np.random.default_rng([SEED, n, k]), file)
            yield Case("random damage", f"{file} ({format}), version {k}", {file: change}, words)


def _damage(rng: np.random.Generator, file: str):
    def write(path: pathlib.Path) -> None:
        root = path.parents[len(pathlib.Path(file).parts) - 1]
        whole = valid.files().get(file) or valid.as_json(valid.settings(root))
        path.write_bytes(damaged(whole, rng))

    return write


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Flip bits, or remove, insert or replace bytes, at one to three positions."""
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        # Headers are short, so two thirds of the positions are near the beginning or the end.
        near = min(len(changed), 400)
        at = int(
            rng.choice([rng.integers(near), rng.integers(-near, 0), rng.integers(len(changed))])
        )
        at %= len(changed)
        count = int(rng.integers(1, 9))
        match int(rng.integers(0, 4)):
            case 0:
                changed[at] ^= 1 << int(rng.integers(0, 8))
            case 1:
                del changed[at : at + count]
            case 2:
                changed[at:at] = rng.bytes(count)
            case _:
                changed[at : at + count] = rng.bytes(count)
    return bytes(changed)
