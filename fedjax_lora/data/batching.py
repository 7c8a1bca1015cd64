"""Index batches: which examples a client sees in a round, and how long they are."""

from collections.abc import Sequence

import numpy as np

from fedjax_lora.core.types import Batches


def length_buckets(
    length: np.ndarray, *, longest: int, most: int = 2, multiple: int = 8
) -> tuple[int, ...]:
    """A few lengths that batches are padded to: those that leave the least padding.

    The best there are if examples in a batch are about as long. Multiples of ``multiple``, but for
    the longest, which is as given.

    >>> length_buckets(np.array([10, 11, 12, 30, 31, 61]), longest=61, most=3)
    (16, 32, 61)
    """
    sizes = np.unique(
        [*np.minimum(-(-np.asarray(length) // multiple) * multiple, longest), longest]
    )
    fits = np.searchsorted(np.sort(length), sizes, side="right")
    # Padded tokens of all examples that fit into each size, if it is the last bucket of the best.
    cost, best = (fits * sizes).astype(float), [(int(size),) for size in sizes]
    for _ in range(most - 1):
        more = cost[:, None] + (fits - fits[:, None]) * sizes
        more[np.tril_indices(len(sizes))] = np.inf  # the bucket before is smaller
        before, lower = more.argmin(axis=0), more.min(axis=0) < cost
        best = [(*best[k], int(s)) if x else own
                for k, s, x, own in zip(before, sizes, lower, best, strict=True)]  # fmt: skip
        cost = np.minimum(cost, more.min(axis=0))
    return best[-1]


def local_steps(examples: int, *, batch: int, epochs: int = 1, most: int | None = None) -> int:
    """Steps a client with this many examples takes in a round."""
    steps = epochs * -(-examples // batch)
    return steps if most is None else min(steps, most)


def client_batches(
    members: Sequence[np.ndarray],
    length: np.ndarray,
    *,
    batch: int,
    epochs: int = 1,
    max_steps: int | None = None,
    padded_steps: int,
    rngs: Sequence[np.random.Generator],
    by_length: bool = False,
) -> Batches:
    """Shuffled batches of one round, padded to ``padded_steps`` so that shapes never change.

    Each epoch is a new permutation of the client's examples; an epoch's last batch may be short.

    Args:
      members: the examples of each client in the cohort.
      length: ``int[E]``, tokens of each example.
      batch: examples in a batch.
      epochs: passes over the client's examples.
      max_steps: stop after this many steps.
      padded_steps: `s` of the result.
      rngs: one generator per client.
      by_length: batch examples of about the same length together (less padding, but the batches
        are less random); their order stays random.
    """
    count = len(members)
    index = np.zeros((count, padded_steps, batch), np.int32)
    valid = np.zeros(index.shape, bool)
    steps = np.zeros(count, np.int32)
    for k, (own, rng) in enumerate(zip(members, rngs, strict=True)):
        steps[k] = local_steps(len(own), batch=batch, epochs=epochs, most=max_steps)
        sort_by = length if by_length else None
        chunks = [rows for _ in range(epochs) for rows in _epoch(own, batch, rng, sort_by)]
        if len(own):  # a short batch is filled up with an example that is the client's own
            index[k] = own[0]
        for s, rows in enumerate(chunks[: steps[k]]):
            index[k, s, : len(rows)] = rows
            valid[k, s, : len(rows)] = True
    each = np.where(valid, length[index], 0).astype(np.int32)
    return Batches(
        index, valid, steps, longest=each.max(axis=2), tokens=each.sum(axis=2, dtype=np.int32)
    )


def limit_steps(work: Batches, steps: np.ndarray) -> Batches:
    """The same batches, of which each client takes only its first ``steps``: ``int[c]``."""
    taken = np.arange(work.valid.shape[1]) < steps[:, None]
    return work._replace(
        valid=work.valid & taken[..., None],
        steps=np.minimum(work.steps, steps).astype(np.int32),
        longest=np.where(taken, work.longest, 0),
        tokens=np.where(taken, work.tokens, 0),
    )


def _epoch(
    own: np.ndarray, batch: int, rng: np.random.Generator, length: np.ndarray | None
) -> list[np.ndarray]:
    """One permutation of the examples, cut into batches; sorted by ``length`` before the cut."""
    order = rng.permutation(own)
    if length is not None:
        order = order[np.argsort(length[order], kind="stable")]
    chunks = [order[at : at + batch] for at in range(0, len(order), batch)]
    return chunks if length is None else [chunks[k] for k in rng.permutation(len(chunks))]
