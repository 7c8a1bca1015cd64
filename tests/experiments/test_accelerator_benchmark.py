"""The benchmark of accelerators: rehearsed on this machine, and what it does when things fail."""

import json
import pathlib
import sys
import time

import pytest

from experiments.benchmarks.accelerators import PARTS, TOTAL_SECONDS, report, run
from experiments.tools import json_lines


def rehearse(part: str, file: pathlib.Path) -> dict[str, dict]:
    run.play(part, file, tiny=True)
    return json_lines.by_name(file)


def test_parts_fit_into_the_time_of_all():
    """No part alone can take it: those that are worth most come first, and get what is left."""
    assert all(seconds < TOTAL_SECONDS / 2 for seconds in PARTS.values())
    assert sum(list(PARTS.values())[:4]) < TOTAL_SECONDS == 8 * 60


def test_products_and_adapters_are_measured(tmp_path: pathlib.Path):
    file = tmp_path / "results.jsonl"
    found = rehearse("peak", file) | rehearse("adapters", file)
    assert [name for name, r in found.items() if "error" in r] == []
    assert all(r["seconds"] > 0 and r["device"] == "cpu" for r in found.values())
    # Three ways to compute the same terms; without terms the error is the terms themselves.
    apart = {name: r["apart"] for name, r in found.items() if name.startswith("adapters/")}
    assert apart.pop("adapters/kernel alone") == 1.0
    assert len(apart) == 3 and max(apart.values()) < 0.02


def test_server_factorisations_miss_equally_little(tmp_path: pathlib.Path):
    found = rehearse("server", tmp_path / "results.jsonl")
    missed = [r["missed"] for r in found.values()]
    assert len(missed) == 3 and max(missed) - min(missed) < 1e-5 * max(missed)


def test_error_of_a_case_is_recorded_and_repeated_while_results_are_kept(tmp_path, monkeypatch):
    file, calls = tmp_path / "results.jsonl", []

    def measure(name: str) -> dict:
        calls.append(name)
        if name == "bad":
            raise ValueError("out of memory")
        return {"seconds": 1.0}

    def cases(part: str, *, tiny: bool):
        return [(name, lambda name=name: measure(name)) for name in ("bad", "good")]

    monkeypatch.setattr(run, "cases_of", cases)
    for _ in range(2):
        run.play("peak", file, tiny=True)
    assert calls == ["bad", "good", "bad"]
    found = json_lines.by_name(file)
    assert found["peak/bad"]["error"] == "ValueError: out of memory"
    assert found["peak/good"]["seconds"] == 1.0


def test_part_that_hangs_or_dies_leaves_the_others_their_time(tmp_path: pathlib.Path):
    """Programs of parts are replaced by ones that sleep, die, and say what they were given."""
    file, program = tmp_path / "results.jsonl", tmp_path / "part.py"
    program.write_text(
        "import json, sys, time\n"
        "part = sys.argv[sys.argv.index('--part') + 1]\n"
        "if part == 'slow': time.sleep(60)\n"
        "if part == 'dead': sys.exit(3)\n"
        f"open({str(file)!r}, 'a').write(json.dumps({{'name': part + '/x'}}) + '\\n')\n"
    )
    began = time.monotonic()
    command = (sys.executable, "-S", str(program))
    parts = {"slow": 2.0, "dead": 30.0, "good": 30.0}
    run.measure_all(file, tiny=False, total=40.0, parts=parts, command=command)
    assert time.monotonic() - began < 40
    found = json_lines.by_name(file)
    assert found["slow/part"]["error"] == "took more than 2 s"
    assert found["dead/part"]["error"] == "ended with status 3"
    assert "good/x" in found
    run.measure_all(file, tiny=False, total=0.0, parts={"good": 30.0}, command=command)
    assert json_lines.by_name(file)["good/part"]["error"] == "no time was left"


def test_report_compares_with_measured_rate_estimate_and_loop(tmp_path: pathlib.Path):
    file, about = tmp_path / "results.jsonl", {"device": "X", "jax": "1"}
    round = {
        "seconds": 2.0, "first_seconds": 30.0, "tokens_per_second": 1e6, "clients": 16,
        "clients_at_once": 8, "flops": 3e14, "peak_bytes": 3e9, "estimated_bytes": 2e9,
    }  # fmt: skip
    loop = {"seconds": 20.0, "first_seconds": 21.0, "tokens_per_second": 1e5, "device": "cuda"}
    for record in (
        {"name": "peft/encoder", **loop, "jax": "1"},
        {"name": "encoder/default", **round, **about},
        {"name": "peak/bfloat16 default", "seconds": 1.0, "flops": 6e14, **about},
        {"name": "attention/part", "error": "took | more"},
    ):
        json_lines.append(file, record)
    lines = report.table(file).splitlines()
    assert lines[4].endswith("| 600 TFLOP/s |")
    assert lines[5].endswith(
        "1,000,000 tokens/s, 8 of 16 clients at once, 50.0 % of the products' rate, memory 1.50 "
        "times the estimate |"
    )
    assert lines[6].endswith("100,000 tokens/s on cuda, ours is 10.0 times as fast |")
    assert lines[7] == "| attention/part | - | - | took \\| more |"


@pytest.mark.slow
@pytest.mark.parametrize("part", ["encoder", "decoder", "sharded", "peft", "attention"])
def test_part_can_be_rehearsed(part: str, tmp_path: pathlib.Path):
    found = rehearse(part, tmp_path / "results.jsonl")
    failed = {name: r["error"] for name, r in found.items() if "error" in r}
    assert set(failed) <= {"attention/encoder cudnn", "attention/decoder cudnn"}
    assert json.dumps(found)
    assert len(found) > len(failed)
