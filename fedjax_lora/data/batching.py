"""Index batches: the examples of each client's local steps, and their lengths."""

from collections.abc import Sequence

import numpy as np

from fedjax_lora.core.types import Batches


def local_steps(examples: int, *, batch: int, epochs: int = 1, most: int | None = None) -> int:
    """Local steps per round of a client with this many examples, at most ``most``."""
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
    """Draw the shuffled batches of one round.

    Each epoch is a new permutation of the client's examples; the last batch of an epoch may be
    short.

    Args:
      members: ``int[E_k]``, the examples of each client in the cohort.
      length: ``int[E]``, tokens of each example.
      batch: examples in a batch.
      epochs: passes over the client's examples.
      max_steps: largest number of steps.
      padded_steps: `s` of the result, the same in every round so that shapes do not change.
      rngs: one generator per client.
      by_length: batch examples of about the same length together (less padding, but the batches
        are less random); the order of the batches stays random.
    """
    count = len(members)
    index = np.zeros((count, padded_steps, batch), np.int32)
    valid = np.zeros(index.shape, bool)
    steps = np.zeros(count, np.int32)
    for k, (examples, rng) in enumerate(zip(members, rngs, strict=True)):
        steps[k] = local_steps(len(examples), batch=batch, epochs=epochs, most=max_steps)
        sort_by = length if by_length else None
        chunks = [rows for _ in range(epochs) for rows in _epoch(examples, batch, rng, sort_by)]
        if len(examples):  # short batches are padded with an example of the same client
            index[k] = examples[0]
        for s, rows in enumerate(chunks[: steps[k]]):
            index[k, s, : len(rows)] = rows
            valid[k, s, : len(rows)] = True
    tokens = np.where(valid, length[index], 0).astype(np.int32)
    return Batches(
        index, valid, steps, longest=tokens.max(axis=2), tokens=tokens.sum(axis=2, dtype=np.int32)
    )


def limit_steps(batches: Batches, steps: np.ndarray) -> Batches:
    """Limit each client to its first ``steps: int[c]`` local steps."""
    taken = np.arange(batches.valid.shape[1]) < steps[:, None]
    return batches._replace(
        valid=batches.valid & taken[..., None],
        steps=np.minimum(batches.steps, steps).astype(np.int32),
        longest=np.where(taken, batches.longest, 0),
        tokens=np.where(taken, batches.tokens, 0),
    )


def _epoch(
    examples: np.ndarray, batch: int, rng: np.random.Generator, length: np.ndarray | None
) -> list[np.ndarray]:
    """Cut one permutation of the examples into batches, sorted by ``length`` first if given."""
    order = rng.permutation(examples)
    if length is not None:
        order = order[np.argsort(length[order], kind="stable")]
    chunks = [order[at : at + batch] for at in range(0, len(order), batch)]
    return chunks if length is None else [chunks[k] for k in rng.permutation(len(chunks))]
