"""How many clients train at once: the memory of the device decides, unless the config says it."""

import dataclasses
import importlib
from typing import NamedTuple

import pytest

from fedjax_lora.core.chips import CHIPS
from fedjax_lora.core.target import compiling_for, current_target, target_of
from fedjax_lora.runs import cost
from fedjax_lora.runs.cost import memory as memories
from fedjax_lora.runs.cost.clients_per_step import ROOM, clients_that_fit
from fedjax_lora.runs.cost.memory import Memory
from tests._helpers import tiny_runs

runs = importlib.import_module("fedjax_lora.runs.run")
MEMORY = Memory(
    base=100, server=10, data=10, client=1, working=2, activations=18, layers=0, cohort=64,
    clients_per_step=1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("available", "want"),
    [
        (0, 1),  # nothing fits: the compiler will say what is needed
        (184 + 20 * 1, 1),
        (184 + 20 * 2, 2),
        (184 + 20 * 31, 22),  # three groups of 22 rather than of 31, 31 and 2
        (184 + 20 * 63, 32),
        (184 + 20 * 64, 64),
        (10**9, 64),
    ],
)
def test_clients_per_step_is_the_largest_fitting_number_in_equal_groups(available, want):
    assert clients_that_fit(MEMORY, available) == want
    assert clients_that_fit(MEMORY._replace(clients_per_step=9), available) == want


@pytest.fixture(autouse=True)
def activations(monkeypatch):
    """Tracing a step takes seconds, and how many bytes it keeps is tested elsewhere."""
    monkeypatch.setattr(memories, "activations", lambda *_: 10**6)


class Device(NamedTuple):
    platform: str
    device_kind: str
    process_index: int = 0


def on(memory: int | None):
    """A TPU with so much memory."""
    return target_of((Device("tpu", CHIPS["v5e"].kind if memory else "unknown"),), memory)


def outlined(memory: int | None, **execution):
    config = tiny_runs.CONFIG
    fed = dataclasses.replace(config.federation, clients=8, cohort=8)
    how = dataclasses.replace(config.execution, **execution)
    config = dataclasses.replace(config, federation=fed, execution=how)
    with compiling_for(on(memory)):
        return cost.outline_run(config, tiny_runs.assets())


def test_chosen_clients_per_step_is_recorded_and_fits():
    """And a config that says a number keeps it, whatever the device has."""
    whole = outlined(10**9)
    assert (
        whole.config.execution.clients_per_step == 8 == whole.round_spec.execution.clients_per_step
    )
    with compiling_for(on(10**9)):
        need = cost.needs_of(whole).memory
    half = need.total - 4 * need.per_client
    found = outlined(int((half + 1) / ROOM) + 1)
    assert found.config.execution.clients_per_step == 4
    assert found.setup.execution.clients_per_step == 4
    assert found.plan(0).id.shape == (8,)
    assert outlined(1, clients_per_step=3).config.execution.clients_per_step == 3


def test_with_unknown_memory_the_whole_cohort_trains_at_once():
    found = outlined(None)
    assert found.config.execution.clients_per_step is None
    assert found.round_spec.execution.clients_per_step == 8


def test_on_a_cpu_one_client_trains_at_once_and_the_config_is_unchanged(tmp_path):
    assert current_target().is_cpu
    config = dataclasses.replace(
        tiny_runs.CONFIG, federation=dataclasses.replace(tiny_runs.CONFIG.federation, rounds=1)
    )
    found = cost.outline_run(config, tiny_runs.assets())
    assert found.config == config and found.round_spec.execution.clients_per_step == 1


def test_run_records_and_reports_its_clients_per_step(tmp_path, monkeypatch, caplog):
    """On processors that are taken for an accelerator; the run ends before anything is compiled."""

    class Assembled(Exception):
        pass

    def assemble(config, setup, *others):
        raise Assembled(config.execution.clients_per_step, setup.execution.clients_per_step)

    monkeypatch.setattr(runs, "assemble", assemble)
    target = dataclasses.replace(current_target(), platform="gpu", memory=10**9)
    with compiling_for(target), caplog.at_level("WARNING"), pytest.raises(Assembled) as raised:
        runs.run(tiny_runs.CONFIG, assets=tiny_runs.assets())
    assert raised.value.args == (2, 2)
    assert "training 2 clients at a time, of 2 on a device: chosen for 1.0 GB" in caplog.text
