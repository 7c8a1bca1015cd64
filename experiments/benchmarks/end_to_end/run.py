"""Measure; see `experiments.benchmarks.end_to_end`."""

import dataclasses
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import tyro

from experiments.benchmarks.end_to_end import CONTENDERS, RECORDS, RESULTS
from experiments.benchmarks.end_to_end.setting import Setting, lay_out
from experiments.benchmarks.processes import ROOT, ProcessResult, watch
from experiments.tools import json_lines
from experiments.tools.alternate import machine


def ours(folder: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run ``fedjax-lora run`` twice with one cache, which is empty at first."""
    with tempfile.TemporaryDirectory() as own:
        for state in ("cold", "warm"):
            yield f"ours-{state}", _ours(folder, pathlib.Path(own), state)


def _ours(folder: pathlib.Path, own: pathlib.Path, state: str) -> dict[str, Any]:
    out = own / state
    command = [sys.executable, "-m", "fedjax_lora", "run", "--config"]
    command += [str(folder / "config.json"), "--out", str(out)]
    environment = _environment() | {"FEDJAX_LORA_CACHE": str(own / "cache")}
    took = watch(command, environment, own / "log")
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    versions = {name: summary["packages"][name] for name in ("jax", "jaxlib")}
    return _record(took, list(map(json.loads, lines)), versions)


def theirs(name: str, folder: pathlib.Path, python: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run another program in one process."""
    command = [python, "-m", "experiments.benchmarks.end_to_end.contend", name, str(folder)]
    took = watch(command, _environment(), folder / "log")
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    yield name, _record(took, result["history"], result["versions"])


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def _record(took: ProcessResult, history: list[dict], versions: dict[str, Any]) -> dict[str, Any]:
    kept = ("train_loss", "accuracy", "loss")
    history = [{name: h[name] for name in kept if name in h} for h in history]
    return took._asdict() | {"history": history, "versions": versions}


def main(
    data_dir: str | None = None,
    flower: str | None = None,
    repeats: int = 3,
    only: str = "",
    setting: Setting = Setting(),  # noqa: B008
    results: pathlib.Path = RESULTS,
) -> None:
    """Measure the processes without a record, one after another.

    Args:
      data_dir: folder with ``ag_news``; the built-in task by default.
      flower: Python executable of an environment with Flower; Flower is left out by default.
      repeats: number of turns.
      only: the name of a single contender.
      setting: size of the experiment.
      results: folder of the result files.
    """
    results.mkdir(exist_ok=True)
    finished = json_lines.by_name(results / RECORDS)
    chosen = [
        name
        for name in CONTENDERS
        if only in ("", name) and (flower or not name.startswith("flower"))
    ]
    missing = [
        (name, repetition)
        for repetition in range(repeats)
        for name in chosen
        if f"{records_of(name)[-1]}-{repetition}" not in finished
    ]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        counts = lay_out(setting, folder, data_dir)
        about = {"machine": machine(), "setting": dataclasses.asdict(setting)}
        text = json.dumps(about | {"training tokens": counts}, indent=1)
        (results / "machine.json").write_text(f"{text}\n", encoding="utf-8")
        for name, repetition in missing:
            _measure(name, repetition, folder, flower, results)


def _measure(
    name: str, repetition: int, folder: pathlib.Path, flower: str | None, results: pathlib.Path
) -> None:
    """Run the processes of a contender and append their records."""
    python = flower if flower and name.startswith("flower") else sys.executable
    processes = ours(folder) if name == "ours" else theirs(name, folder, python)
    for which, record in processes:
        json_lines.append(results / RECORDS, {"name": f"{which}-{repetition}"} | record)
        print(which, repetition, f"{record['seconds']:.1f} s", flush=True)


def records_of(name: str) -> tuple[str, ...]:
    """Prefixes of the names of a contender's records."""
    return ("ours-cold", "ours-warm") if name == "ours" else (name,)


if __name__ == "__main__":
    tyro.cli(main)
