"""The run's own config, as JSON."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from experiments.robustness.malformed_input import valid
from experiments.robustness.malformed_input.case import (
    LONG_NAME,
    LONG_NUMBER,
    NESTED,
    NOT_A_FILE,
    UNSUPPORTED,
    Case,
    FileChange,
)
from fedjax_lora.runs.config import RunConfig

FILE = "config.json"
GROUPS: dict[str, Any] = {field.name: field for field in dataclasses.fields(RunConfig)}
HUGE = 10**30

VALUES: dict[str, tuple[Any, ...]] = {
    "seed": (-1, 1.5, "0", None, True, [], {}, 2**32, HUGE, float("nan")),
    "data.task": ("", "nothing", "docstrings(x=1)", "file", "file(", "x" * 10_000, "\x00", "7"),
    "data.max_length": (0, 3, -1, 2.5, "8", HUGE, float("inf")),
    "data.train_examples": (0, -1, 1.5, HUGE, 10**6),
    "data.validation_examples": (-1, HUGE, 24),
    "data.test_examples": (0, -1, HUGE, 25),
    "model.model": ("", "/", "no/such", "x" * 10_000, "\x00", "../nothing", "a/b/c", "~nobody/x"),
    "model.layers": (0, -1, 3, HUGE, 1.0),
    "model.pooling": ("max", "", 7, ["mean"]),
    "model.dtype": ("float16", "float8", 32),
    "model.dropout": (-0.1, 1.0, 2, float("nan"), "0.1"),
    "lora.targets": ("nothing", "((", "*", "x" * 1_000, 7),
    "lora.alpha": (0, -1, float("nan"), float("inf"), 1e300, "1"),
    "lora.lora_layers": ([], [2], [-1], [HUGE], ["0"], 0, [[0]]),
    "lora.lora_dropout": (-0.1, 1.0, float("nan"), None),
    "federation.method": ("", "nothing", "hlora(", "hlora(x=1)", "hlora(7)", "__import__('os')"),
    "federation.clients": (0, -1, 1.5, 25, 10**6, HUGE),
    "federation.cohort": (0, -1, 5, HUGE),
    "federation.rounds": (0, -1, 1.5, HUGE),
    "federation.partition": ("", "dirichlet(alpha=0)", "dirichlet(alpha='x')", "natural", "iid(1)"),
    "federation.min_examples": (0, -1, 25, HUGE),
    "federation.ranks": (
        "", "fixed", "fixed(rank=0)", "fixed(rank=-1)", "fixed(rank=33)", "fixed(rank=1.5)",
        f"fixed(rank={HUGE})", "table(ranks=[1])", "table(ranks=[1, 2, 3, 'x'])", "tiers(ranks=[])",
        "tiers(ranks=[1, 2], shares=[1])", "tiers(ranks=[1], shares=[-1])", "random(low=4, high=2)",
        f"random(low=1, high={HUGE})", f"table(ranks=[1, 1, 1, {HUGE}])", "random(low=0, high=0)",
        "tiers(ranks=[1, 2], shares=[1e999, 1])", "budget(bytes=[1], high=2)",
        f"budget(bytes=[1e9], high={HUGE})", f"loss_based(low=1, high={HUGE}, share=0.5)",
        "by_quality(low=1, high=2)", f"tiers(ranks=[{HUGE}])",
    ),
    "federation.updates": (
        ["nothing"], ["clip"], ["clip(norm=0.0)"], ["int8", "clip(norm=1.0)"], "x",
    ),
    "federation.faults": (["nothing"], ["dropout"], ["dropout(probability=2)"], "dropout", [7]),
    "federation.server_optimizer": ("nothing", "sgd(momentum=2.0)", "adam(learning_rate=0.0)"),
    "local.learning_rate": (0, -1, float("nan"), float("inf"), 1e300, None),
    "local.optimizer": (
        "nothing", "adamw(x=1)", "adamw(b1='x')", "sgd(momentum=[1])", "adamw(", "lbfgs",
    ),
    "local.schedule": ("nothing", "linear(x=1)", "warmup_cosine(warmup=9)", "linear(end='x')"),
    "local.clip": (0, -1, float("nan"), float("inf"), "1"),
    "local.batch": (0, -1, 1.5, 10**9, HUGE),
    "local.epochs": (0, -1, 10**9, HUGE),
    "local.max_steps": (0, -1, 1.5),
    "local.prox": (-1, float("nan"), float("inf"), 1e300),
    "execution.mode": ("pmap", "", 7),
    "execution.clients_per_step": (0, -1, 1.5),
    "execution.eval_every": (0, -1),
    "execution.eval_batch": (0, -1, 10**9, HUGE),
}  # fmt: skip
"""Invalid values by field."""

TEXTS: dict[str, bytes] = {
    "an array": b"[]",
    "null": b"null",
    "a number": b"7",
    "a string": b'"run"',
    "truncated": b'{"seed": 0, "data',
    "a trailing comma": b'{"seed": 0,}',
    "single quotes": b"{'seed': 0}",
    "a comment": b'{"seed": 0} // the seed',
    "two objects": b'{"seed": 0}{"seed": 1}',
    "nested 200,000 deep": NESTED,
    "objects nested 100,000 deep": b'{"data":' * 100_000,
    "a number of 5,000 digits": b'{"seed": ' + LONG_NUMBER + b"}",
    "an unknown group": b'{"dta": {}}',
    "an unknown group of 5,000 characters": json.dumps({LONG_NAME: 1}).encode(),
    "an unknown option": b'{"data": {"tsk": "docstrings"}}',
    "an option without its group": b'{"task": "docstrings"}',
    "yaml": b"seed: 0\n",
    "larger than any config": b" " * (64 * 2**20 + 1),
}


def cases() -> Iterator[Case]:
    """Malformed configs of a run."""
    for name, change in (UNSUPPORTED | NOT_A_FILE | TEXTS).items():
        yield Case("run configs", name, {FILE: change})
    for field, values in VALUES.items():
        for value in values:
            shown = json.dumps(value)
            name = f"{field} of {shown if len(shown) < 60 else f'{len(shown)} characters'}"
            yield Case("run configs", name, {FILE: _changed(field, value)})
    for group, field in GROUPS.items():
        for value in (None, [], "x", 7):
            if group != "seed":
                yield Case("run configs", f"{group} of {value!r}", {FILE: _json({group: value})})
        for option in dataclasses.fields(field.type) if group != "seed" else ():
            name = f"{group}.{option.name} of an object"
            yield Case("run configs", name, {FILE: _changed(f"{group}.{option.name}", {"a": 1})})


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _changed(field: str, value: Any) -> FileChange:
    """Return a change of one field of the valid config, which holds paths of its folder."""
    group, _, option = field.partition(".")

    def write(path: pathlib.Path) -> None:
        values: dict[str, Any] = dict(valid.settings(path.parent))
        if option:
            values[group] = values.get(group, {}) | {option: value}
        else:
            values[group] = value
        path.write_bytes(_json(values))

    return write
