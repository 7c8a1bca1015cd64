"""Shapes for which local steps are compiled: few batch sizes, lengths and token counts."""

from collections.abc import Sequence

import numpy as np

from fedjax_lora.core.types import Batches, BatchShape


def length_buckets(
    length: np.ndarray, *, longest: int, most: int = 2, multiple: int = 8
) -> tuple[int, ...]:
    """Choose the lengths to which batches are padded, so that the least padding is computed.

    The choice is optimal if the examples of a batch have about the same length.

    >>> length_buckets(np.array([10, 11, 12, 30, 31, 61]), longest=61, most=3)
    (16, 32, 61)

    Args:
      length: ``int[E]``, tokens of each example.
      longest: the last bucket, as it is; no example is longer.
      most: largest number of buckets.
      multiple: the other buckets are multiples of it.

    Returns:
      Lengths in tokens, ascending.
    """
    sizes = np.unique(
        [*np.minimum(-(-np.asarray(length) // multiple) * multiple, longest), longest]
    )
    fits = np.searchsorted(np.sort(length), sizes, side="right")
    # For each size: the padded tokens of the examples that fit into it, with the best buckets of
    # which it is the last.
    cost, best = (fits * sizes).astype(float), [(int(size),) for size in sizes]
    for _ in range(most - 1):
        extended = cost[:, None] + (fits - fits[:, None]) * sizes
        extended[np.tril_indices(len(sizes))] = np.inf  # the previous bucket is smaller
        previous, lower = extended.argmin(axis=0), extended.min(axis=0) < cost
        best = [(*best[k], int(size)) if better else buckets
                for k, size, better, buckets
                in zip(previous, sizes, lower, best, strict=True)]  # fmt: skip
        cost = np.minimum(cost, extended.min(axis=0))
    return best[-1]


def row_buckets(batch: int) -> tuple[int, ...]:
    """Batch sizes to compile: the full one and a half one, for a client's last batch.

    >>> row_buckets(16)
    (8, 16)
    """
    return (batch // 2, batch) if batch >= 4 else (batch,)


def padded_shapes(rows: Sequence[int], lengths: Sequence[int]) -> tuple[BatchShape, ...]:
    """Shapes for every combination of rows and length, with room for padding."""
    return tuple(BatchShape(n, t, n * t) for n in rows for t in lengths)


def step_shapes(
    length: np.ndarray,
    *,
    longest: int,
    buckets: int,
    batch: int,
    by_length: bool = False,
    unpadded: bool = False,
    most: int = 3,
) -> tuple[tuple[int, ...], tuple[BatchShape, ...]]:
    """Choose the lengths that batches are padded to, and the shapes of local steps.

    Args:
      length: ``int[E]``, tokens of each training example.
      longest: tokens of the longest text of all splits.
      buckets: largest number of lengths.
      batch: examples in a batch.
      by_length: whether batches contain examples of about the same length.
      unpadded: whether steps compute no padding.
      most: largest number of shapes for each of `row_buckets`; also of lengths.

    Returns:
      Lengths in tokens, ascending, and the shapes to compile.
    """
    lengths = length_buckets(length, longest=longest, most=min(buckets, most))
    if unpadded:
        shapes = unpadded_shapes(length, lengths, batch=batch, by_length=by_length, most=most)
        return lengths, shapes
    return lengths, padded_shapes(row_buckets(batch), lengths)


def unpadded_shapes(
    length: np.ndarray,
    lengths: Sequence[int],
    *,
    batch: int,
    by_length: bool = False,
    most: int = 3,
) -> tuple[BatchShape, ...]:
    """Choose shapes for steps that compute no padding, so that random batches fill them best.

    The shapes depend on the lengths of the examples and not on the partition, so that runs with
    other partitions and seeds mostly need no other compilation.

    Args:
      length: ``int[E]``, tokens of each example.
      lengths: length buckets, ascending; every example fits into the last one.
      batch: examples in a batch.
      by_length: whether batches contain examples of about the same length.
      most: largest number of shapes for each of `row_buckets`.
    """
    rng = np.random.default_rng(0)
    order = np.argsort(length, kind="stable") if by_length else rng.permutation(len(length))
    shapes = []
    for rows in row_buckets(batch):
        # Full batches; for the smaller bucket, every number of examples is equally likely.
        short = rows < batch
        starts = rng.integers(len(length), size=1024)
        size = rng.integers(1, rows + 1, 1024) if short else np.full(1024, rows)
        at = (starts[:, None] + np.arange(rows)) % len(length)
        drawn = np.where(np.arange(rows) < size[:, None], length[order[at]], 0)
        shapes += _levels(drawn, lengths, most)
    return tuple(shapes)


def step_sizes(batches: Batches) -> np.ndarray:
    """Texts, tokens of the longest text, and all tokens of each step: ``int[c, s, 3]``."""
    rows = batches.valid.sum(axis=2)
    return np.stack([rows, batches.longest, batches.tokens], axis=-1)


def first_fitting(shapes: Sequence[BatchShape], need: np.ndarray) -> np.ndarray:
    """Index of the first shape that a step fits into, or else of the last shape.

    Args:
      shapes: the compiled shapes.
      need: ``int[..., 3]``, from `step_sizes`.

    Returns:
      ``int[...]``; a local step chooses its shape by the same rule.
    """
    fits = (np.array(shapes) >= need[..., None, :]).all(axis=-1)
    fits[..., -1] = True
    return np.argmax(fits, axis=-1)


def _levels(drawn: np.ndarray, lengths: Sequence[int], most: int) -> list[BatchShape]:
    """Shapes that sampled batches fill best; ``drawn: int[b, rows]`` are their tokens per text."""
    rows, longest = drawn.shape[1], drawn.max(axis=1)
    room, total = rows * lengths[-1], drawn.sum(axis=1)
    step = max(8, room // 128 * 8)  # a sixteenth: coarse, so that other draws give the same levels
    levels = length_buckets(total, longest=room, most=most, multiple=step)
    level = np.searchsorted(levels, total)
    shapes, length = [], lengths[0]
    for n, tokens in enumerate(levels):
        longest_text = int(longest[level == n].max(initial=0))
        length = max(length, lengths[int(np.searchsorted(lengths, longest_text))])
        length = lengths[-1] if tokens == room else length
        shapes.append(BatchShape(rows, length, min(tokens, rows * length)))
    return shapes
