"""What a config cannot hold, whatever the data and the model are."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from fedjax_lora.core.errors import SECRET

FINITE = 3e38
"""The largest number in float32, roughly."""

LARGEST_BATCH = 2**16
"""Examples: beyond it the indices of a round alone would take gigabytes."""


def problems(config: Any) -> list[str]:
    """What is wrong with a `RunConfig`, a sentence's part each."""
    data, fed, local = config.data, config.federation, config.local
    in_range = [
        ("clients", fed.clients, 1, 10**7),
        ("cohort", fed.cohort, 1, math.inf),
        ("rounds", fed.rounds, 1, 10**9),
        ("min_examples", fed.min_examples, 1, math.inf),
        ("batch", local.batch, 1, LARGEST_BATCH),
        ("epochs", local.epochs, 1, 10**4),
        ("max_steps", local.max_steps, 1, math.inf),
        ("prox", local.prox, 0, FINITE),
        ("max_length", data.max_length, 4, 2**24),
        ("train_examples", data.train_examples, 1, math.inf),
        ("test_examples", data.test_examples, 1, math.inf),
        ("validation_examples", data.validation_examples, 0, math.inf),
        ("layers", config.model.layers, 1, math.inf),
        ("clients_per_step", config.execution.clients_per_step, 1, math.inf),
        ("devices", config.execution.devices, 1, math.inf),
        ("eval_every", config.execution.eval_every, 1, math.inf),
        ("eval_batch", config.execution.eval_batch, 1, LARGEST_BATCH),
        ("checkpoint_every", config.execution.checkpoint_every, 1, math.inf),
        ("checkpoint_keep", config.execution.checkpoint_keep, 1, math.inf),
        # A larger seed would be cut to its last 32 bits without a word.
        ("seed", config.seed, 0, 2**32 - 1),
    ]
    problems = [
        f"{name} must be at {f'most {high}' if value > high else f'least {low}'}, got {value}"
        for name, value, low, high in in_range
        if value is not None and not low <= value <= high
    ]
    if fed.cohort > fed.clients:
        problems.append(f"a cohort of {fed.cohort} cannot be drawn from {fed.clients} clients")
    positive = [
        ("learning_rate", local.learning_rate),
        ("clip", local.clip),
        ("alpha", config.lora.alpha),
    ]
    problems += [
        f"{name} must be above 0, got {value}" if not value > 0 else f"{name} must be finite"
        for name, value in positive
        if value is not None and not 0 < value <= FINITE
    ]
    rates = [("dropout", config.model.dropout), ("lora_dropout", config.lora.lora_dropout)]
    problems += [
        f"{name} must be in [0, 1), got {value}"
        for name, value in rates
        if value is not None and not 0 <= value < 1
    ]
    mesh = config.execution.mesh
    if len(mesh) != 2 or sorted(mesh)[1] < 1 or min(mesh) < -1 or 0 in mesh:
        problems.append(f"mesh must be two sizes above 0, or -1 for one of them, got {mesh}")
    return problems + list(_secrets(dataclasses.asdict(config)))


def _secrets(values: Mapping[str, Any]) -> Iterator[str]:
    """Options that hold a token or a password: a config is written into every result folder."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _secrets(value)
        elif SECRET.search(str(value)):
            yield f"{name} holds a token or a password; leave it out, and set HF_TOKEN instead"
