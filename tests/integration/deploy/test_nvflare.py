"""Real server and client processes on this machine leave what a simulation leaves."""

import csv
import json
import pathlib
import random
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.extras, pytest.mark.timeout(1200)]

GOOD = ("order", "invoice", "meeting", "schedule", "report", "lunch", "team")
BAD = ("winner", "prize", "free", "click", "offer", "pills", "cheap")
OPTIONS = [
    "--method=hlora",
    "--model=minilm",
    "--layers=1",
    "--rounds=2",
    "--max-length=16",
    "--batch=8",
    "--max-steps=3",
    "--ranks=table(ranks=[2,4,8])",
]
COLUMNS = "text='body', label='class'"


def write(path: pathlib.Path, rows: int) -> None:
    """Mails whose longest has more tokens than are read, so that shapes are those of the limit."""
    draw = random.Random(path.name)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["body", "class"])
        for k in range(rows):
            words = draw.choices(BAD if k % 2 else GOOD, k=draw.randint(5, 30))
            table.writerow([" ".join(words), "spam" if k % 2 else "ham"])


def fedjax_lora(*words: str, folder: pathlib.Path) -> None:
    command = [sys.executable, "-m", "fedjax_lora", *words, *OPTIONS]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_federation_of_processes_leaves_the_adapter_of_a_simulation(tmp_path):
    files = {"a.csv": 37, "b.csv": 20, "c.csv": 53, "test.csv": 30}
    for name, rows in files.items():
        write(tmp_path / name, rows)
    given = ["--test", "test.csv", "--text", "body", "--label", "class", "--data", *list(files)[:3]]
    fedjax_lora("deploy", "try", "fed", *given, folder=tmp_path)
    task = f"file(train={list(files)[:3]}, test='test.csv', {COLUMNS}, client_files=True)"
    alike = ["--partition=natural", "--clients=3", "--cohort=3", "--min-examples=1"]
    alike += ["--mode=loop", "--step-shapes=1", f"--task={task}", "--out=simulated"]
    fedjax_lora("run", *alike, folder=tmp_path)
    real, simulated = tmp_path / "fed" / "run", tmp_path / "simulated"
    adapter = pathlib.Path("adapter", "adapter_model.safetensors")
    assert (real / adapter).read_bytes() == (simulated / adapter).read_bytes()
    lines = [
        (real / n).read_text("utf-8").splitlines() for n in ("metrics.jsonl", "messages.jsonl")
    ]
    for record, messages in (map(json.loads, pair) for pair in zip(*lines, strict=True)):
        sites = messages["sites"].values()
        assert record["silent"] == []
        assert record["up_bytes"] == sum(site["up"] for site in sites)
        assert record["down_bytes"] == sum(site["down"] - 8 for site in sites)  # a random key
    # Not in the engine's folder, which servers of one machine would share.
    assert any((tmp_path / "fed").glob("**/jobs/*"))
