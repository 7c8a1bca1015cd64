"""The TPU compiler's word on the project's rounds, on a machine without a TPU.

Each program is compiled once and looked at by several tests.
"""

import contextlib
import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
import pytest

from fedjax_lora.core import trees
from fedjax_lora.core.chips import CHIPS, parse_target
from fedjax_lora.core.target import Target, compiling_for, target_of
from fedjax_lora.core.topology import prepare_environment, topology_devices
from fedjax_lora.runs import cost
from fedjax_lora.runs.cost import ahead
from fedjax_lora.runs.cost.clients_per_step import ROOM
from tests._helpers import target_rounds as rounds

pytestmark = [pytest.mark.tpu, pytest.mark.optimized, pytest.mark.timeout(1200)]

SLICES = ("v5e:2x2", "v5e:4x4")
VECTOR_MEMORY = 128 * 2**20  # of a v5e chip
SIDE = 1500  # bytes that are told besides adapter and head: weights, losses, ranks, flags
CALLS = {
    "AllocateBuffer", "AssumeGatherIndicesInBound", "GatherScatterIndicesBitpacked", "ZeroCrop",
    "ConcatBitcast",
}  # fmt: skip
"""What the compiler writes for gathers and buffers: nothing goes back to Python."""


@functools.cache
def target(words: str) -> Target:
    prepare_environment()
    spec = parse_target(words)
    return target_of(topology_devices(spec), CHIPS[spec.chip].memory)


class Made(NamedTuple):
    outline: cost.Outline
    needs: cost.Needs
    found: cost.Compiled
    text: str


@contextlib.contextmanager
def compiling(words: str) -> Iterator[None]:
    """Compile for a target as users do: JAX's own promotion and precision, no cache of programs."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        with (
            compiling_for(target(words)),
            jax.numpy_dtype_promotion("standard"),
            jax.default_matmul_precision(None),
        ):
            yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


@functools.cache
def made(words: str) -> Made:
    """The round of 16 clients, compiled for a slice."""
    with compiling(words):
        outline = rounds.outline(mode="sharded")
        compiled = ahead.lower_round(outline).compile()
        found = ahead.describe(outline, compiled, 0.0)
        return Made(outline, cost.needs_of(outline), found, compiled.as_text())


@pytest.mark.parametrize("words", SLICES)
def test_averaging_communicates_one_adapter_for_any_number_of_chips(words):
    shapes = made(words).outline.shapes
    ((kind, (_, size)),) = made(words).found.collectives.items()
    assert kind == "all-reduce"
    assert 0 <= size - trees.size_bytes(shapes.trained) < SIDE


def test_program_arguments_are_base_state_data_and_plan_once():
    """And nothing per client: to one per cent, however many clients there are on a chip."""
    one = made("v5e:2x2")
    shapes = one.outline.shapes
    want = trees.size_bytes((shapes.base, shapes.state, shapes.data))
    want += sum(x.nbytes for x in jax.tree.leaves(one.outline.plan(0)))
    assert one.found.usage.arguments == pytest.approx(want, rel=0.01)


def test_compiled_memory_is_near_the_estimate():
    """As near as the choice of clients at once needs it, and nearer.

    Less than the estimate may be what the chip's vector memory keeps. (With texts four times as
    many, where that matters little, the compiler needed 1.05 times the estimate.)
    """
    one = made("v5e:2x2")
    used, estimate = one.found.usage.total - one.found.usage.code, one.needs.memory.total
    assert 0.9 * estimate - VECTOR_MEMORY < used < 1.2 * estimate
    assert 1 / ROOM > 1.2


def test_all_clients_train_at_once_if_memory_allows():
    assert made("v5e:2x2").needs.memory.clients_per_step == rounds.CLIENTS // 4
    assert made("v5e:4x4").needs.memory.clients_per_step == rounds.CLIENTS // 16


def test_compiled_times_do_not_exceed_the_peak_rate():
    """A round is two steps and the server's work; nothing is faster than the chip's peak."""
    one = made("v5e:2x2")
    step, of_round = one.found.step_seconds, one.found.round_seconds
    assert step is not None and of_round is not None
    assert 2 * step < of_round < 4 * step
    assert one.needs.round_flops / CHIPS["v5e"].flops < of_round < 1.0
    assert one.found.unknown_loops == 0


def test_compiled_program_is_small_and_has_no_host_calls():
    text = made("v5e:2x2").text
    assert set(re.findall(r'custom_call_target="([^"]*)"', text)) <= CALLS
    assert made("v5e:2x2").found.usage.code < 20e6


def test_out_of_memory_message_of_the_compiler_is_parsed():
    """A sort of 100 GiB on a chip of 15.75 GiB."""
    device = target("v5e:1x1").devices[0]
    x = jax.ShapeDtypeStruct(
        (100, 2**14, 2**14), np.float32, sharding=jax.sharding.SingleDeviceSharding(device)
    )
    with (
        compiling("v5e:1x1"),
        pytest.raises(jax.errors.JaxRuntimeError) as raised,
    ):
        jax.jit(lambda x: jax.numpy.sort(x, axis=0) + 1).lower(x).compile()
    found = ahead.read_out_of_memory(str(raised.value))
    assert found is not None
    assert found[0] > 100 * 2**30
    assert found[1] == pytest.approx(CHIPS["v5e"].memory, rel=0.001)
