"""What is decided by the hardware follows the target, and not this process."""

from typing import NamedTuple

import jax
import pytest

from fedjax_lora import federated
from fedjax_lora.core.chips import CHIPS
from fedjax_lora.core.target import compiling_for, current_target, target_of
from fedjax_lora.federated.causal_lm import chunk_of_target
from fedjax_lora.models.layer_stack import layers_per_step
from fedjax_lora.runs import config
from fedjax_lora.runs.loading import execution_of
from fedjax_lora.runs.setup import default_step_shapes


class Device(NamedTuple):
    id: int
    platform: str
    device_kind: str
    process_index: int = 0


def chips(count: int, name: str = "v5e", platform: str = "tpu", per_process: int = 4):
    kind = CHIPS[name].kind if name in CHIPS else name
    return tuple(Device(n, platform, kind, n // per_process) for n in range(count))


def test_default_target_is_the_current_process():
    target = current_target()
    assert target.is_cpu and target.devices == tuple(jax.devices()) and target.processes == 1
    assert target.kind == "cpu" and target.memory is None and target.flops is None
    assert target.own_device == jax.local_devices()[0]


@pytest.mark.parametrize(
    ("name", "platform", "count", "want"),
    [
        ("v5e", "tpu", 16, ("tpu", 4)),
        ("h100", "cuda", 4, ("gpu", 1)),
        ("other", "tpu", 1, ("tpu", 1)),
    ],
)
def test_devices_are_described_by_their_device_kind(name, platform, count, want):
    target = target_of(chips(count, name, platform))
    assert (target.platform, target.processes) == want and len(target.devices) == count
    known = CHIPS.get(name)
    assert target.memory == (known.memory if known else None)
    assert target.flops == (known.flops if known else None)
    assert target_of(chips(count, name, platform), memory=7).memory == 7


def test_layers_and_clients_per_step_depend_on_the_target():
    before = layers_per_step(6, None), federated.default_clients_per_step(10)
    with compiling_for(target_of(chips(1))):
        within = layers_per_step(6, None), federated.default_clients_per_step(10)
        assert layers_per_step(6, 2) == 2
        with compiling_for(None):
            assert not current_target().is_cpu
        assert (layers_per_step(12, None), layers_per_step(13, None)) == (12, 1)
    assert before == (6, 1) and within == (6, 10) and current_target().is_cpu
    assert layers_per_step(13, None) == 13


def test_shapes_of_steps_and_parts_of_logits_depend_on_the_target():
    here = default_step_shapes(), chunk_of_target()
    with compiling_for(target_of(chips(1))):
        there = default_step_shapes(), chunk_of_target()
    assert here == (3, 2**23) and there == (1, 2**26)


def test_mesh_consists_of_the_target_devices():
    """`jax.make_mesh` may order the devices differently, so only their number is compared."""
    run = config.RunConfig(execution=config.ExecutionConfig(mode="sharded"))
    here = execution_of(run).mesh
    with compiling_for(target_of(tuple(jax.devices()[:2]))):
        two = execution_of(run).mesh
    assert here is not None and two is not None
    assert (here.size, two.size) == (len(jax.devices()), 2)
    assert execution_of(run).mesh is here
