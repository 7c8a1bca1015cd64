"""Index batches: which examples a client sees in a round, and how long they are."""

from collections.abc import Sequence

import numpy as np

from fedjax_lora.types import Batches


def length_buckets(longest: int, shortest: int = 1, *, most: int = 3) -> tuple[int, ...]:
    """A few lengths that batches are padded to, multiples of 8 but for the longest.

    >>> length_buckets(64, most=3)
    (32, 48, 64)
    >>> length_buckets(64, shortest=40)
    (48, 64)
    """
    fractions = [longest * (most + 1 + n) // (2 * most) for n in range(most)]
    rounded = {min(longest, -(-x // 8) * 8) for x in fractions}
    return tuple(sorted(x for x in rounded | {longest} if x >= min(shortest, longest)))


def local_steps(examples: int, *, batch: int, epochs: int = 1, most: int | None = None) -> int:
    """Steps a client with this many examples takes in a round."""
    steps = epochs * -(-examples // batch)
    return steps if most is None else min(steps, most)


def client_batches(
    members: Sequence[np.ndarray],
    length: np.ndarray,
    buckets: Sequence[int],
    *,
    batch: int,
    epochs: int = 1,
    max_steps: int | None = None,
    padded_steps: int,
    rngs: Sequence[np.random.Generator],
) -> Batches:
    """Shuffled batches of one round, padded to ``padded_steps`` so that shapes never change.

    Each epoch is a new permutation of the client's examples; an epoch's last batch may be short.

    Args:
      members: the examples of each client in the cohort.
      length: ``int[E]``, tokens of each example.
      buckets: ascending lengths; the last one holds every example.
      batch: examples in a batch.
      epochs: passes over the client's examples.
      max_steps: stop after this many steps.
      padded_steps: `s` of the result.
      rngs: one generator per client.
    """
    count = len(members)
    index = np.zeros((count, padded_steps, batch), np.int32)
    valid = np.zeros(index.shape, bool)
    steps = np.zeros(count, np.int32)
    for k, (own, rng) in enumerate(zip(members, rngs, strict=True)):
        steps[k] = local_steps(len(own), batch=batch, epochs=epochs, most=max_steps)
        per_epoch = -(-len(own) // batch)
        for s in range(steps[k]):
            if s % per_epoch == 0:
                order = rng.permutation(own)
            rows = order[(s % per_epoch) * batch :][:batch]
            index[k, s, : len(rows)] = rows
            valid[k, s, : len(rows)] = True
    longest = np.where(valid, length[index], 0).max(axis=2)
    bucket = np.searchsorted(np.asarray(buckets), longest).astype(np.int32)
    return Batches(index, valid, steps, bucket)
