"""Cycles, loops and collectives, read from small pieces of programs as compilers print them."""

from typing import Any

import jax
import pytest

from fedjax_lora.runs.cost import ahead, hlo
from fedjax_lora.runs.cost.ahead import read_out_of_memory

TPU = """\
HloModule jit_round_fn, is_scheduled=true

%fused_computation.1 (param_0: f32[8]) -> f32[8] {
  ROOT %add = f32[8]{0:T(128)} add(%param_0, %param_0)
}

%layers.cond (wide.param: (s32[], f32[8])) -> pred[] {
  %constant.2 = s32[]{:T(128)} constant(12), metadata={op_name="jit(round_fn)/shard_map"}
  %wide.param = (s32[]{:T(128)}, f32[8]{0:T(128)S(1)}) parameter(0)
  %get-tuple-element.1 = s32[]{:T(128)} get-tuple-element(%wide.param), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%get-tuple-element.1, %constant.2), direction=LT
}

%layers.body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %fusion.3 = f32[8]{0:T(128)} fusion(%p), kind=kLoop, calls=%fused_computation.1, \
backend_config={"window_config":{"estimated_cycles":"10","iteration_bounds":["1"]}}
  %all-gather.2 = bf16[4,8]{1,0:T(8,128)(2,1)} all-gather(%fusion.3), channel_id=1, dimensions={0}
}

%short (p: f32[8]) -> f32[8] {
  %fusion.5 = f32[8]{0} fusion(%p), calls=%fused_computation.1, \
backend_config={"window_config":{"estimated_cycles":"100"}}
}

%long (p: f32[8]) -> f32[8] {
  %while.1 = (s32[]{:T(128)}, f32[8]{0}) while(%tuple.1), condition=%layers.cond, \
body=%layers.body, metadata={op_name="jit(round_fn)/local_steps/while/body/encoder/while"}
}

%steps.cond (p: (s32[], s32[])) -> pred[] {
  %get-tuple-element.7 = s32[]{:T(128)} get-tuple-element(%p), index=0
  %get-tuple-element.8 = s32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %lt.9 = pred[]{:T(512)} compare(%get-tuple-element.7, %get-tuple-element.8), direction=LT
}

%steps.body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %conditional.6 = (f32[8]{0:T(128)}, f32[2]{0}) conditional(%clamp.2, %t, %t, %t), \
branch_computations={%short, %long, %short}, metadata={op_name="jit(round_fn)/local_steps/while"}
  %fusion.6 = f32[8]{0} fusion(%p), calls=%fused_computation.1, \
backend_config={"window_config":{"estimated_cycles":"1"}}
}

%groups.cond (p: (s32[], f32[8])) -> pred[] {
  %constant.4 = s32[]{:T(128)} constant(2)
  ROOT %lt.2 = pred[]{:T(512)} compare(%get-tuple-element.2, %constant.4), direction=LT
}

%groups.body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %while.2 = (s32[], f32[8]{0}) while(%tuple.2), condition=%steps.cond, body=%steps.body, \
metadata={op_name="jit(round_fn)/shard_map/while/body/local_steps/while" stack_frame_id=178}
}

%svd.body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %fusion.9 = f32[8]{0} fusion(%p), calls=%fused_computation.1, \
backend_config={"window_config":{"estimated_cycles":"7000"}}
}

ENTRY %main.1 (a: f32[8]) -> f32[8] {
  %while.3 = (s32[], f32[8]{0}) while(%tuple.3), condition=%groups.cond, body=%groups.body, \
metadata={op_name="jit(round_fn)/shard_map/while"}
  %while.4 = (s32[], f32[8]{0}) while(%tuple.4), condition=%steps.cond, body=%svd.body, \
metadata={op_name="jit(round_fn)/svd/while"}
  %all-reduce.6 = f32[]{:T(128)} all-reduce(%reduce.1), channel_id=7, to_apply=%region_1
  %all-reduce.18 = (f32[3,32,4]{1,2,0:T(4,128)}, /*index=1*/pred[16]{0:T(512)(128)(4,1)S(1)}) \
all-reduce(%x, %y), channel_id=8, to_apply=%region_2
  %bitcast.7 = f32[1]{0:T(128)} bitcast(%all-reduce.6)
  %fusion.7 = f32[8]{0} fusion(%a), calls=%fused_computation.1, \
backend_config={"window_config":{"estimated_cycles":"100000"}}
}
"""

GPU = """\
HloModule jit_round_fn

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %ag-start = (f32[4]{0}, f32[16]{0}) all-gather-start(%p), channel_id=1, dimensions={0}
  %ag-done = f32[16]{0} all-gather-done(%ag-start)
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %while = (s32[], f32[4]{0}) while(%t), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0","step":"1"}}
  %ar = (f32[4]{0}, bf16[8]{0}) all-reduce-start(%x, %y), channel_id=2, to_apply=%add
  %done = (f32[4]{0}, bf16[8]{0}) all-reduce-done(%ar)
}
"""


@pytest.fixture(scope="module")
def program() -> hlo.Program:
    return hlo.read(TPU)


@pytest.mark.parametrize(
    ("steps", "branch", "want"),
    [
        (0, 0, 0),
        (1, 0, 2 * (100 + 1)),  # two groups
        (1, 1, 2 * (12 * 10 + 1)),  # twelve layers
        (5, 1, 2 * 5 * (12 * 10 + 1)),
        (5, 2, 2 * 5 * (100 + 1)),
    ],
)
def test_loop_bodies_are_multiplied_by_their_iterations(steps, branch, want, program):
    """A loop of unknown length that is not one over steps counts once."""
    once = 100_000 + 7000
    assert program.cycles(steps=steps, branch=branch, branches=3) == once + want


def test_conditionals_count_their_longest_branch(program):
    assert program.cycles(steps=1, branch=0, branches=4) == 107_000 + 2 * (12 * 10 + 1)


def test_loops_of_unknown_length_are_counted(program):
    assert program.unknown_loops() == 1


def test_collectives_are_multiplied_by_the_loops_around_them(program):
    """Twelve layers, two groups and three steps; and two operations of one and two arrays."""
    assert program.collectives(steps=3) == {
        "all-gather": (12 * 2 * 3, 12 * 2 * 3 * 4 * 8 * 2),
        "all-reduce": (3, 4 + 4 * 3 * 32 * 4 + 16),
    }


def test_gpu_programs_with_loops_and_collectives_are_parsed():
    found = hlo.read(GPU)
    assert found.collectives(steps=1) == {"all-gather": (3, 3 * 64), "all-reduce": (2, 16 + 16)}
    assert found.cycles(steps=1, branch=0, branches=1) == 0 == found.unknown_loops()


def test_text_that_is_not_a_program_is_refused():
    with pytest.raises(ValueError, match="has no ENTRY"):
        hlo.read("func.func public @main() { }")


@pytest.mark.parametrize(
    ("message", "want"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 47.03G of 15.75G hbm. "
            "Exceeded hbm capacity by 31.28G.",
            (47.03 * 2**30, 15.75 * 2**30),
        ),
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total "
            "memory required for HLO temporaries (508.00G) exceeds available HBM (15.75G). HLO "
            "module: jit__lambda.",
            (508 * 2**30, 15.75 * 2**30),
        ),
        ("RESOURCE_EXHAUSTED: Used 512.5M of 1G hbm.", (512.5 * 2**20, 2**30)),
    ],
)
def test_out_of_memory_message_is_parsed_to_bytes(message, want):
    assert read_out_of_memory(message) == pytest.approx(want, rel=1e-9)


def test_other_errors_are_not_mistaken_for_out_of_memory():
    assert read_out_of_memory("INTERNAL: Mosaic failed to compile: vmem 16M") is None


class Refused:
    """A lowered round whose compilation fails with a message."""

    def __init__(self, message: str) -> None:
        self.message = message

    def compile(self):
        raise jax.errors.JaxRuntimeError(self.message)


def test_round_that_does_not_fit_is_reported_and_other_failures_are_raised(monkeypatch):
    monkeypatch.setattr(ahead, "lower_round", Refused)
    compile_round: Any = ahead.compile_round
    found = compile_round("RESOURCE_EXHAUSTED: Used 512.5M of 1G hbm.")
    assert isinstance(found, ahead.TooLarge)
    assert (found.needed, found.available) == (int(512.5 * 2**20), 2**30)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Mosaic"):
        compile_round("INTERNAL: Mosaic failed")
