"""Check the values of a config that are impossible whatever the data and the model are."""

import dataclasses
import datetime
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fedjax_lora.core.errors import SECRET

if TYPE_CHECKING:
    from fedjax_lora.runs.config.schema import RunConfig

FINITE = 3e38
"""The largest number in float32, roughly."""

LARGEST_BATCH = 2**16
"""Examples: beyond it the indices of a round alone would take gigabytes."""

RANGES: Mapping[str, tuple[float, float]] = {
    "federation.clients": (1, 10**7),
    "federation.cohort": (1, math.inf),
    "federation.rounds": (1, 10**9),
    "federation.min_examples": (1, math.inf),
    "federation.partition_seed": (0, 2**32 - 1),
    "local.batch": (1, LARGEST_BATCH),
    "local.epochs": (1, 10**4),
    "local.max_steps": (1, math.inf),
    "local.prox": (0, FINITE),
    "data.max_length": (4, 2**24),
    "data.train_examples": (1, math.inf),
    "data.test_examples": (1, math.inf),
    "data.validation_examples": (0, math.inf),
    "model.layers": (1, math.inf),
    "execution.clients_per_step": (1, math.inf),
    "execution.devices": (1, math.inf),
    "execution.step_shapes": (1, 16),
    "execution.eval_every": (1, math.inf),
    "execution.eval_examples": (1, math.inf),
    "execution.eval_batch": (1, LARGEST_BATCH),
    "execution.checkpoint_every": (1, math.inf),
    "execution.checkpoint_keep": (1, math.inf),
    # A larger seed would be cut to its last 32 bits without a word.
    "seed": (0, 2**32 - 1),
}
"""Lowest and highest value of each field; None is always possible."""

POSITIVE = ("local.learning_rate", "local.clip", "lora.alpha")
"""Fields that must be above 0 and no more than `FINITE`."""

RATES = ("model.dropout", "lora.lora_dropout")
"""Fields that must be in [0, 1)."""


def problems(config: "RunConfig") -> list[str]:
    """List what is impossible in a `RunConfig`, each as a part of a sentence."""
    checks = [_out_of_range(config, field) for field in RANGES]
    checks += [_cohort_too_large(config.federation)]
    checks += [_not_positive(config, field) for field in POSITIVE]
    checks += [_no_rate(config, field) for field in RATES]
    checks += [_no_date(config.data.chat_date)]
    checks += [_no_mesh(config.execution.mesh), *_secrets(dataclasses.asdict(config))]
    return [problem for problem in checks if problem is not None]


def _field(config: Any, field: str) -> tuple[str, Any]:
    """Return the last part of a dotted field name, and the field's value."""
    value = config
    for part in field.split("."):
        value = getattr(value, part)
    return field.rpartition(".")[2], value


def _out_of_range(config: Any, field: str) -> str | None:
    (name, value), (low, high) = _field(config, field), RANGES[field]
    if value is None or low <= value <= high:
        return None
    bound = f"most {high}" if value > high else f"least {low}"
    return f"{name} must be at {bound}, got {value}"


def _not_positive(config: Any, field: str) -> str | None:
    name, value = _field(config, field)
    if value is None or 0 < value <= FINITE:
        return None
    bound = f"at most {FINITE}" if value > 0 else "above 0"
    return f"{name} must be {bound}, got {value}"


def _no_rate(config: Any, field: str) -> str | None:
    name, value = _field(config, field)
    return None if value is None or 0 <= value < 1 else f"{name} must be in [0, 1), got {value}"


def _cohort_too_large(fed: Any) -> str | None:
    if fed.cohort <= fed.clients:
        return None
    return f"a cohort of {fed.cohort} cannot be drawn from {fed.clients} clients"


def _no_date(text: str) -> str | None:
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        return f"chat_date must be a day such as 2024-07-26, got {text!r}"
    return None


def _no_mesh(mesh: tuple[int, ...]) -> str | None:
    if len(mesh) == 2 and sorted(mesh)[1] >= 1 and min(mesh) >= -1 and 0 not in mesh:
        return None
    return f"mesh must be two sizes above 0, or -1 for one of them, got {mesh}"


def _secrets(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield options that hold a token or a password: a config is part of every result folder."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _secrets(value)
        elif SECRET.search(str(value)):
            yield f"{name} holds a token or a password; leave it out, and set HF_TOKEN instead"
