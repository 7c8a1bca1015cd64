"""A run so small that the command line can be tested with it."""

from typing import Any


def small(**options: Any) -> list[str]:
    """Its options as words, with others added or exchanged.

    >>> small(rounds=2)[-3:]
    ['--rounds=2', '--batch=2', '--ranks=fixed(rank=2)']
    """
    chosen = {
        "layers": 1,
        "pooling": "family",  # of a checkpoint that transformers reads as a whole
        "max_length": 8,  # one length of batches: compiles in half the time
        "train_examples": 60,
        "test_examples": 30,
        "clients": 4,
        "cohort": 2,
        "rounds": 1,
        "batch": 2,  # a step is compiled for two shapes, of larger batches for six
        "ranks": "fixed(rank=2)",
    } | options
    return [f"--{name.replace('_', '-')}={value}" for name, value in chosen.items()]
