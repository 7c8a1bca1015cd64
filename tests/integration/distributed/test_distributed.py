"""Two processes with four devices each do what one process with eight does."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fedjax_lora.core import trees
from tests._helpers import distributed_worker, problems, tiny_runs
from tests._helpers.command_line import one_sentence
from tests._helpers.distributed_worker import SCENES
from tests._helpers.free_port import free_port
from tests._helpers.small_options import small

ROOT = pathlib.Path(__file__).parents[3]
WORKER = str(pathlib.Path(distributed_worker.__file__))


def start(words: list[str], *, devices: int, **options) -> subprocess.Popen:
    path = str(ROOT)
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # as here: see `conftest`
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [sys.executable, *words], env=environment | options.pop("env", {}), **pipes, **options
    )


def ended(process: subprocess.Popen, *, seconds: float = 200) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """What came of the scenes: in one process, and in each of two; the folders."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "first", "second")]
    script, address = WORKER, f"localhost:{free_port()}"
    both = [
        start([script, address, "2", str(n), str(folders[1 + n]), *SCENES], devices=4)
        for n in range(2)
    ]
    distributed_worker.main("", "1", "0", str(folders[0]), "whole", "base in parts")
    left = [ended(process) for process in both]
    assert all(code == 0 for code, _, _ in left), "\n".join(err[-3000:] for _, _, err in left)
    return [json.loads(pathlib.Path(f"{folder}.json").read_text()) for folder in folders], folders


def arrays(made: dict) -> dict[str, np.ndarray]:
    factors = {f"{p} {n}": x for p, pair in made["adapter"].items() for n, x in enumerate(pair)}
    return {name: np.asarray(x) for name, x in (factors | made["kernels"]).items()}


@pytest.mark.parametrize("scene", ["whole", "base in parts"])
def test_result_equals_that_of_one_process(played, scene):
    (alone, first, second), _ = played
    assert first[scene] == second[scene]
    want, got = alone[scene], first[scene]
    problems.assert_close(arrays(got), arrays(want))
    assert len(got["history"]) == tiny_runs.ROUNDS
    for one, other in zip(got["history"], want["history"], strict=True):
        assert one.keys() == other.keys()
        for name, value in trees.flat(other).items():
            got = trees.flat(one)[name]
            assert got == pytest.approx(value, abs=problems.MODE_TOLERANCE), name


def test_only_the_first_process_writes(played):
    (alone, *_), (folder, first, second) = played
    names = lambda path: {p.relative_to(path).as_posix() for p in path.rglob("*")}  # noqa: E731
    # Orbax names what is in its folder by chance.
    files = lambda path: {name for name in names(path) if "/arrays/" not in name}  # noqa: E731
    assert files(first / "whole") == files(folder / "whole")
    assert not list(second.iterdir())
    lines = (first / "whole" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2, 3, 4]
    assert alone["whole"]["history"][-1].keys() == json.loads(lines[-1]).keys()


def test_stop_request_reaches_all_processes_and_resume_is_bitwise_equal(played):
    (_, first, second), (_, folder, _) = played
    assert first["stopped"] == second["stopped"] == {"error": "stopped after round 2 of 4"}
    assert tiny_runs.left(folder / "parted") == tiny_runs.left(folder / "whole")
    for made in (first, second):
        assert made["resumed"] == made["finished"] == made["whole"]


@pytest.mark.parametrize(
    ("scene", "said"),
    [
        ("not divisible", "A mesh of 3 x 2 (clients x model) does not use 8 device(s) exactly"),
        ("another seed", "Process 1 has another config or input than process 0 (seed, data)"),
        ("not sharded", "A run of 2 processes needs --mode sharded"),
        ("taken", "holds this run already; resume it with --resume"),
        ("unwritable", "cannot be written"),
    ],
)
def test_errors_are_raised_on_all_processes(played, scene, said):
    (_, first, second), _ = played
    for made in (first, second):
        assert said in made[scene]["error"]


ADDRESS = "--coordinator-address"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([f"{ADDRESS}=localhost:1"], "belong together; give all three"),
        ([f"{ADDRESS}=here", "--num-processes=2", "--process-id=0"], "write HOST:PORT"),
        ([f"{ADDRESS}=1234", "--num-processes=2", "--process-id=0"], "write HOST:PORT"),
        (
            [f"{ADDRESS}=localhost:1", "--num-processes=0", "--process-id=0"],
            "--num-processes must be at least 1, got 0",
        ),
        (
            [f"{ADDRESS}=localhost:1", "--num-processes=2", "--process-id=2"],
            "--process-id is 2, but it counts from 0 to 1",
        ),
    ],
    ids=["a part", "no port", "no host", "no processes", "no such number"],
)
def test_incomplete_process_options_are_refused(words, sentence, capsys):
    """Before the process looks for the others."""
    assert one_sentence(["run", *words], capsys, sentence)


JOIN = """
import sys
from fedjax_lora.cli import main
from fedjax_lora.core import distributed
distributed.initialized.__wrapped__.__kwdefaults__["wait"] = 2
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        pytest.param(["--distributed"], "No cluster was found", marks=pytest.mark.slow),
        (
            [f"{ADDRESS}=localhost:1", "--num-processes=2", "--process-id=1"],
            "did not all connect within 2 s (this is process 1 of 2, the first is expected "
            "at localhost:1)",
        ),
        pytest.param(
            [f"{ADDRESS}=localhost:PORT", "--num-processes=2", "--process-id=0"],
            "did not all connect within 2 s (this is process 0 of 2",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["no cluster", "no first process", "no second process"],
)
def test_connection_timeout_is_reported_in_one_sentence(words, sentence):
    words = [word.replace("PORT", str(free_port())) for word in words]
    code, out, err = ended(start(["-c", JOIN, "run", *words], devices=4), seconds=60)
    assert (code, out) == (2, "")
    first, *others = err.splitlines()
    assert first.startswith("fedjax-lora: ") and sentence in first
    # XLA's coordinator, which process 0 runs, logs that it is closed before a process came.
    assert not others or "this is process 0" in first
    assert "Traceback" not in err


@pytest.mark.slow
def test_failure_of_one_process_ends_the_others(tmp_path):
    """Within JAX's heartbeat, 100 s, and not never."""
    script, address = WORKER, f"localhost:{free_port()}"
    words = [[script, address, "2", str(n), str(tmp_path)] for n in range(2)]
    both = [start([*words[0], "whole"], devices=4), start([*words[1], "no such scene"], devices=4)]
    (code, _, _), (failed, _, error) = (ended(process) for process in both)
    assert failed == 1 and "KeyError: 'no such scene'" in error
    assert code != 0


@pytest.mark.slow
def test_interrupted_command_resumes(tmp_path):
    """Real signals: SIGINT to the second process alone; a base that no device has all of."""
    out, port = tmp_path / "out", free_port()
    cache = {"FEDJAX_LORA_CACHE": str(tmp_path / "cache")}

    def run(*words: str) -> list[subprocess.Popen]:
        where = [f"--coordinator-address=localhost:{port}", "--num-processes=2"]
        return [
            start(
                ["-m", "fedjax_lora", "run", *where, f"--process-id={n}", *words],
                devices=4,
                env=cache,
            )
            for n in range(2)
        ]

    both = run(*small(rounds=400), "--mesh", "4", "2", f"--out={out}")
    deadline = time.monotonic() + 200
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").stat().st_size:
        assert time.monotonic() < deadline and all(p.poll() is None for p in both)
        time.sleep(0.1)
    both[1].send_signal(signal.SIGINT)
    (code, said, _), (other, silent, _) = (ended(process) for process in both)
    assert code == other == 130
    assert "resume with: fedjax-lora run --resume" in said
    assert [line for line in silent.splitlines() if not line.startswith("[Gloo]")] == []
    done = len((out / "metrics.jsonl").read_text().splitlines())
    both = run(f"--resume={out}", f"--rounds={done + 2}")
    for process in both:
        code, _, err = ended(process)
        assert code == 0, err[-3000:]
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == list(range(1, done + 3))
