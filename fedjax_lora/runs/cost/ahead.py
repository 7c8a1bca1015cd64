"""Compile the round of a run for a target, and read what its compiler says. Nothing is run."""

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lora import federated, models
from fedjax_lora.core.chips import chip_of_kind
from fedjax_lora.core.target import current_target
from fedjax_lora.runs.compilation import build_round
from fedjax_lora.runs.cost import hlo
from fedjax_lora.runs.cost.estimate import round_sum
from fedjax_lora.runs.cost.outline import Outline, abstract, devices_of

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Usage(NamedTuple):
    """Bytes on a device that a compiled round needs.

    Attributes:
      arguments: base, state, training tokens and plan.
      outputs: the new state and the metrics.
      temporaries: everything between them.
      aliased: outputs that take the place of arguments.
      code: the program itself.
    """

    arguments: int
    outputs: int
    temporaries: int
    aliased: int
    code: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.arguments + self.outputs + self.temporaries - self.aliased + self.code


class Compiled(NamedTuple):
    """What a compiler says of the round of a run.

    Attributes:
      usage: bytes on a device.
      collectives: number and bytes on a device of the collectives of a round, by kind.
      step_seconds: estimated time of one step of the clients that train at once, in the largest
        shape; None where the compiler estimates no cycles.
      round_seconds: estimated time of a round, mean over the plans of the first rounds; None as
        above.
      unknown_loops: loops besides those over local steps whose length is not known, each of which
        counts once.
      seconds: what tracing and compiling took.
    """

    usage: Usage
    collectives: Mapping[str, tuple[int, int]]
    step_seconds: float | None
    round_seconds: float | None
    unknown_loops: int
    seconds: float


class TooLarge(NamedTuple):
    """A round that the compiler refused, because it does not fit into a device.

    Attributes:
      needed: bytes that it needs.
      available: bytes that a program can use.
      seconds: what tracing and compiling took.
    """

    needed: int
    available: int
    seconds: float


def compile_round(outline: Outline) -> Compiled | TooLarge:
    """Compile the round of a run for the current target.

    Args:
      outline: the rounds of the run, whose mode is not ``loop`` and which are not measured.
    """
    began = time.perf_counter()
    try:
        compiled = lower_round(outline).compile()
    except jax.errors.JaxRuntimeError as error:
        sizes = read_out_of_memory(str(error))
        if sizes is None:
            raise
        return TooLarge(*sizes, time.perf_counter() - began)
    return describe(outline, compiled, time.perf_counter() - began)


def lower_round(outline: Outline) -> jax.stages.Lowered:
    """Lower the round of a run from shapes, with every array where the run has it.

    Args:
      outline: the rounds of the run.
    """
    mesh, model = outline.round_spec.execution.mesh, outline.assets.model
    base = models.frozen_base(dataclasses.replace(model, params=abstract(model.params)))
    everywhere = federated.everywhere(mesh)
    if mesh is None:
        everywhere = jax.sharding.SingleDeviceSharding(everywhere)
    base_where = everywhere if mesh is None else federated.base_sharding(base, mesh)
    return build_round(outline.round_spec).lower(
        _placed(base, base_where),
        _placed(outline.shapes.data, everywhere),
        _placed(outline.shapes.state, everywhere),
        abstract(jax.tree.map(jnp.asarray, outline.plan(0))),
        jax.eval_shape(lambda: jax.random.key(0)),
    )


def _placed(tree: Any, where: Any) -> Any:
    """Return shapes at a sharding, or at a tree of them."""
    if isinstance(where, jax.sharding.Sharding):
        where = jax.tree.map(lambda x: where, tree)
    place = lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)  # noqa: E731
    return jax.tree.map(place, tree, where)


def describe(outline: Outline, compiled: Any, seconds: float) -> Compiled:
    """Read what the compiler says of a compiled round.

    Args:
      outline: the rounds of the run.
      compiled: of `lower_round`.
      seconds: what tracing and compiling took.
    """
    program = hlo.read(compiled.as_text())
    step, of_round = _seconds(outline, program)
    return Compiled(
        usage=usage_of(compiled),
        collectives=program.collectives(steps=int(outline.plan(0).batches.steps.max())),
        step_seconds=step,
        round_seconds=of_round,
        unknown_loops=program.unknown_loops(),
        seconds=seconds,
    )


def usage_of(compiled: Any) -> Usage:
    """Return the bytes on a device that a compiled function needs."""
    found = compiled.memory_analysis()
    return Usage(
        arguments=found.argument_size_in_bytes,
        outputs=found.output_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        aliased=found.alias_size_in_bytes,
        code=found.generated_code_size_in_bytes,
    )


def _seconds(outline: Outline, program: hlo.Program) -> tuple[float | None, float | None]:
    """Estimate the time of a step in the largest shape, and of a round."""
    chip, execution = chip_of_kind(current_target().kind), outline.round_spec.execution
    if chip is None or not chip.cycle_flops:
        return None, None
    shapes = outline.round_spec.shapes
    local = outline.federation.padded // devices_of(execution.mesh).clients
    at_once = min(execution.clients_per_step or local, local)
    groups = outline.trainings * (local // at_once)

    def cycles(steps: int, branch: int) -> int:
        return program.cycles(steps=steps, branch=branch, branches=len(shapes))

    fixed = cycles(0, 0)
    of_step = {shape: (cycles(1, n) - fixed) / groups for n, shape in enumerate(shapes)}
    by_client = {shape: count / at_once for shape, count in of_step.items()}
    total = fixed + round_sum(outline, by_client)
    return of_step[shapes[-1]] / chip.clock, total / chip.clock


def read_out_of_memory(message: str) -> tuple[int, int] | None:
    """Read the bytes that a program needs and those that there are from a compiler's refusal.

    >>> read_out_of_memory("RESOURCE_EXHAUSTED: ... Used 47.5G of 15.75G hbm. Exceeded ...")
    (51002736640, 16911433728)

    Returns:
      Bytes needed and available; None if the message is about something else.
    """
    size = r"([\d.]+)([KMGT]?)"
    match = re.search(rf"Used {size} of {size} hbm", message) or re.search(
        rf"memory required[^(]*\({size}\) exceeds available HBM \({size}\)", message
    )
    if match is None:
        return None
    needed, unit, available, other = match.groups()
    return math.ceil(float(needed) * UNITS[unit]), int(float(available) * UNITS[other])
