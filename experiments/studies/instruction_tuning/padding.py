"""Share of real tokens in local training: batches drawn at random, and by length.

One epoch of each of the nine clients, batch 16, the three lengths that a run of a language task
pads to. "Packed" fills rows of the full length, example after example.

    python -m experiments.studies.instruction_tuning.padding --data-dir DATA --tokenizer FOLDER
"""

import json
import pathlib

import numpy as np
import tyro

from experiments.studies.instruction_tuning import RESULTS
from fedjax_lora import data
from fedjax_lora.data import instruction_tokens
from fedjax_lora.data.batch_shapes import (
    first_fitting,
    length_buckets,
    padded_shapes,
    row_buckets,
    step_sizes,
)
from fedjax_lora.data.batching import client_batches
from fedjax_lora.evaluation.task_types import TASK_TYPES

BATCH = 16


def share(members: list[np.ndarray], length: np.ndarray, lengths: tuple[int, ...], by_length: bool):
    """Share of real tokens among all computed tokens."""
    steps = max(-(-len(own) // BATCH) for own in members)
    made = client_batches(
        members, length, batch=BATCH, padded_steps=steps, by_length=by_length,
        rngs=[np.random.default_rng(k) for k in range(len(members))],
    )  # fmt: skip
    shapes = padded_shapes(row_buckets(BATCH), lengths)
    need = step_sizes(made)[made.valid.any(axis=2)]
    padded = sum(shapes[n].tokens for n in first_fitting(shapes, need))
    return float(made.tokens.sum() / padded)


def packed(members: list[np.ndarray], length: np.ndarray, longest: int) -> float:
    """Share of real tokens if examples are packed into rows of the full length."""
    rows = 0
    for own in members:
        room = 0
        for tokens in length[np.random.default_rng(0).permutation(own)]:
            rows, room = (rows + 1, longest) if tokens > room else (rows, room)
            room -= tokens
    return float(length.sum() / (rows * longest))


def main(data_dir: str, tokenizer: str, format: str = "auto", max_length: int = 512) -> None:
    """Measure the shares and add them to the results.

    Args:
      data_dir: folder that holds dolly_alpaca_fed10/.
      tokenizer: folder of the tokenizer.
      format: prompt format.
      max_length: maximum number of tokens of an example.
    """
    from transformers import AutoTokenizer

    task = data.load("dolly_alpaca", data_dir=data_dir)
    made = instruction_tokens.encode(
        task.train, AutoTokenizer.from_pretrained(tokenizer), format=format, max_length=max_length
    )
    length, groups = made.tokens.length, made.split.groups
    assert groups is not None
    members = [np.flatnonzero(groups == k) for k in np.unique(groups)]
    longest = made.tokens.ids.shape[1]
    lengths = length_buckets(length, longest=longest, most=TASK_TYPES["language"].num_buckets)
    found = {
        "lengths": lengths,
        "mean_length": float(length.mean()),
        "random": share(members, length, lengths, False),
        "by_length": share(members, length, lengths, True),
        "packed": packed(members, length, longest),
    }
    path = RESULTS / "padding.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results[f"{pathlib.Path(tokenizer).name}, {format}, {max_length}"] = found
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(found)


if __name__ == "__main__":
    tyro.cli(main)
