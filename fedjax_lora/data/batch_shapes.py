"""The shapes that local steps are compiled for: few batch sizes, lengths and sums of tokens."""

from collections.abc import Sequence

import numpy as np

from fedjax_lora.core.types import Batches, BatchShape
from fedjax_lora.data.batching import length_buckets


def row_buckets(batch: int) -> tuple[int, ...]:
    """Batch sizes to compile: a client's last batch is often at most half full.

    >>> row_buckets(16)
    (8, 16)
    """
    return (batch // 2, batch) if batch >= 4 else (batch,)


def padded_shapes(rows: Sequence[int], lengths: Sequence[int]) -> tuple[BatchShape, ...]:
    """A shape for each number of rows with each length, all of them with room for padding."""
    return tuple(BatchShape(n, t, n * t) for n in rows for t in lengths)


def unpadded_shapes(
    length: np.ndarray,
    lengths: Sequence[int],
    *,
    batch: int,
    by_length: bool = False,
    most: int = 3,
) -> tuple[BatchShape, ...]:
    """Shapes for steps that compute no padding: those that random batches fill best.

    They depend on how long examples are and not on who has them, so that runs of other partitions
    and seeds mostly need no other compilation.

    Args:
      length: ``int[E]``, tokens of each example.
      lengths: length buckets, ascending; the last one holds every example.
      batch: examples in a batch.
      by_length: batches are of examples of about the same length.
      most: shapes for each of `row_buckets`.
    """
    rng = np.random.default_rng(0)
    order = np.argsort(length, kind="stable") if by_length else rng.permutation(len(length))
    shapes = []
    for rows in row_buckets(batch):
        # Full batches; of those with fewer rows than the next bucket has, any number is as likely.
        short = rows < batch
        starts = rng.integers(len(length), size=1024)
        size = rng.integers(1, rows + 1, 1024) if short else np.full(1024, rows)
        at = (starts[:, None] + np.arange(rows)) % len(length)
        drawn = np.where(np.arange(rows) < size[:, None], length[order[at]], 0)
        shapes += _levels(drawn, lengths, most)
    return tuple(shapes)


def step_sizes(batches: Batches) -> np.ndarray:
    """What each client's steps need room for, as `first_fitting` takes it, ``int[c, s, 3]``."""
    rows = batches.valid.sum(axis=2)
    return np.stack([rows, batches.longest, batches.tokens], axis=-1)


def first_fitting(shapes: Sequence[BatchShape], need: np.ndarray) -> np.ndarray:
    """The number of the first shape that has room, or of the last, as a step chooses it.

    Args:
      shapes: what is compiled.
      need: ``int[..., 3]``: texts, tokens of the longest, tokens of all.
    """
    fits = (np.array(shapes) >= need[..., None, :]).all(axis=-1)
    fits[..., -1] = True
    return np.argmax(fits, axis=-1)


def _levels(drawn: np.ndarray, lengths: Sequence[int], most: int) -> list[BatchShape]:
    """The shapes that are filled best by batches, ``drawn: int[b, rows]`` tokens."""
    rows, longest = drawn.shape[1], drawn.max(axis=1)
    room, total = rows * lengths[-1], drawn.sum(axis=1)
    step = max(8, room // 128 * 8)  # a sixteenth: coarse, so that other draws come out the same
    levels = length_buckets(total, longest=room, most=most, multiple=step)
    fits = np.searchsorted(levels, total)
    shapes, length = [], lengths[0]
    for n, tokens in enumerate(levels):
        own = int(longest[fits == n].max(initial=0))
        length = max(length, lengths[int(np.searchsorted(lengths, own))])
        length = lengths[-1] if tokens == room else length
        shapes.append(BatchShape(rows, length, min(tokens, rows * length)))
    return shapes
