"""``run --explain --target``: what is refused before JAX is loaded, and how answers are printed."""

import importlib.util
import subprocess
import sys

import pytest

from fedjax_lora.cli import explain, main
from fedjax_lora.core import topology
from fedjax_lora.core.chips import parse_target
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import BatchShape
from fedjax_lora.runs import cost
from fedjax_lora.runs.config import ExecutionConfig, RunConfig
from fedjax_lora.runs.cost.memory import Memory
from fedjax_lora.runs.cost.outline import Devices

MB = 10**6
MEMORY = Memory(
    base=400 * MB, server=0, data=0, client=0, working=20 * MB, activations=80 * MB, layers=0,
    cohort=16, clients_per_step=4,
)  # fmt: skip
NEEDS = cost.Needs(
    memory=MEMORY, up=1.0, down=1.0, rounds=2, flops=10**9, devices=Devices("TPU v5 lite", 4, 1, 1),
    shapes=(BatchShape(8, 64, 512),), round_flops=197e9, dtype="bfloat16",
)  # fmt: skip
FOUND = cost.Compiled(
    usage=cost.Usage(500 * MB, 50 * MB, 395 * MB, 50 * MB, 5 * MB),
    collectives={"all-reduce": (3, 4 * MB)},
    step_seconds=0.001,
    round_seconds=0.01,
    unknown_loops=0,
    seconds=57.2,
)


@pytest.fixture
def installed(monkeypatch):
    """All compilers are there, and the environment is left alone."""
    monkeypatch.setattr(topology, "is_installed", lambda module: True)
    monkeypatch.setattr(explain, "prepare_environment", lambda: None)


def on(words: str, memory: int | None):
    from fedjax_lora.core.target import Target

    return Target(platform="tpu", kind=words, devices=(None,), memory=memory, flops=197e12)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--explain", "--target", "v5"], "Unknown target 'v5'; did you mean 'v5"),
        (["--explain", "--target=v5e:3x3"], "names no slice of v5e; known are v5e:1x1"),
        (["--target", "v5e:2x2"], "--target says what to compile for, not where to run"),
        (["--explain", "--target", "h100:4", "--distributed"], "in one process"),
        (["--explain", "--target", "v5e:2x2", "--mode", "loop"], "leave --mode loop out"),
        (["--explain", "--target", "v5e:2x2", "--measure"], "leave --measure out"),
    ],
)
def test_invalid_explain_options_are_refused_in_one_sentence(words, says, installed, capsys):
    assert main.main(["run", *words]) == 2
    printed = capsys.readouterr().err
    assert says in printed and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("v6e:4x4", r"Compiling for v6e:4x4 needs .* pip install 'fedjax-lora\[aot\]'"),
        ("h200:8", r"Compiling for h200:8 needs .* jax-cuda13-plugin==VERSION jax-cuda13-pjrt"),
    ],
)
def test_missing_tpu_compiler_is_named(words, says, monkeypatch):
    monkeypatch.setattr(topology, "is_installed", lambda module: False)
    with pytest.raises(InputError, match=says):
        explain.prepare_target(words)
    assert importlib.util.find_spec("libtpu_that_nobody_has") is None
    monkeypatch.undo()
    assert not topology.is_installed("no_such_package.inside")


def test_target_of_several_chips_implies_a_mesh(installed):
    assert explain.check_target(RunConfig(), "v5e:4x4").execution.mode == "sharded"
    assert explain.check_target(RunConfig(), "v5e").execution == ExecutionConfig()


def test_unknown_target_is_refused_before_jax_is_imported():
    code = (
        "import sys; from fedjax_lora.cli import main; "
        "status = main.main(['run', '--explain', '--target', 'v9']); "
        "sys.exit(status if 'jax' not in sys.modules else 99)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 2


def test_gpu_target_is_described_by_its_data_sheet():
    from fedjax_lora.core.chips import CHIPS

    text = topology.gpu_description(CHIPS["h200"])
    assert "device_memory_size: 151397597184" in text and "core_count: 132" in text
    assert text.count("{") == text.count("}") and str(parse_target("h200:2")) == "h200:2"


def test_compiled_estimate_lists_memory_parts_traffic_time_and_omissions():
    lines = cost.format_compiled(FOUND, NEEDS, on("TPU v5 lite", 16_000 * MB))
    values = {line[:50].strip(): line[50:].split() for line in lines if len(line) > 50}
    assert lines[0] == "compiled for this target in 57 s; never run or timed on one"
    assert values["memory of a device, by the compiler"] == ["900.0", "MB"]
    assert values["outputs in the place of arguments"] == ["-50.0", "MB"]
    # 900 MB where 800 were estimated: 112.5 MB a client, 134 more of them in what is left.
    assert values["clients at once that would fit, about"] == ["138"]
    assert values["3 x all-reduce in a round, on a device"] == ["4.0", "MB"]
    assert values["a round, estimated"] == ["10.0", "ms"]
    # A thousandth of a second at the peak.
    assert values["its share of the peak"][:2] == ["10.0", "%"]
    assert lines[-1].endswith("not in these times: gathers, most copies, collectives")


def test_without_cycle_counts_no_time_is_estimated():
    found = FOUND._replace(step_seconds=None, round_seconds=None, collectives={})
    lines = cost.format_compiled(found, NEEDS, on("NVIDIA", 16_000 * MB))
    assert "collectives in a round: none" in lines
    assert "at least" in lines[-1] and "1.0 ms, at the peak of 197 TFLOP/s" in lines[-1]


@pytest.mark.parametrize(
    ("found", "memory"),
    [(cost.TooLarge(1600 * MB, 700 * MB, 20.0), 700 * MB), (FOUND, 450 * MB)],
    ids=["the compiler refuses", "it fits into no device of this kind"],
)
def test_insufficient_memory_states_needed_and_available_megabytes(found, memory):
    (line,) = cost.format_compiled(found, NEEDS, on("TPU v5 lite", memory))
    needed = 1600 if isinstance(found, cost.TooLarge) else 900
    assert f"does not fit: the compiler needs {needed}.0 MB of a device for 4 clients" in line
    assert f"a program can use {memory / MB:.1f} MB" in line
    assert line.endswith("try --clients-per-step 1")


def test_if_one_client_does_not_fit_remat_and_smaller_batches_are_advised():
    one = NEEDS._replace(memory=MEMORY._replace(clients_per_step=1))
    (line,) = cost.format_compiled(cost.TooLarge(900 * MB, 700 * MB, 2.0), one, on("TPU", None))
    assert "try --remat, a smaller --batch" in line


@pytest.mark.parametrize(("memory", "advised"), [(None, True), (10**10, True), (10**9, False)])
def test_sharding_a_base_that_fits_on_one_device_is_advised_against(memory, advised):
    divided = NEEDS._replace(devices=Devices("TPU v5 lite", 4, 4, 1))
    assert bool(cost.advice(divided, memory)) == advised
    assert cost.advice(NEEDS, memory) == []
