"""Measure; see `experiments.benchmarks.compilation`."""

import dataclasses
import json
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

import psutil
import tyro

from experiments.benchmarks.compilation import RECORDS, RESULTS, STARTS
from experiments.benchmarks.processes import ROOT, watch
from experiments.tools import json_lines
from experiments.tools.alternate import machine

MODULE = "experiments.benchmarks.compilation.run"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """The run that is started twice: 100 clients, cohorts of 10."""

    clients: int = 100
    cohort: int = 10
    rounds: int = 4
    train: int = 1000
    test: int = 64
    tokens: int = 64
    batch: int = 16
    layers: int | None = None


def config(setting: Setting, data_dir: str | None) -> Any:
    """Return the config of the run."""
    from fedjax_lora.runs import config

    return config.RunConfig(
        data=config.DataConfig(
            task="ag_news" if data_dir else "docstrings",
            data_dir=data_dir,
            train_examples=setting.train,
            test_examples=setting.test,
            max_length=setting.tokens,
        ),
        model=config.ModelConfig(layers=setting.layers),
        federation=config.FederationConfig(
            clients=setting.clients, cohort=setting.cohort, rounds=setting.rounds
        ),
        local=config.LocalConfig(batch=setting.batch),
    )


def start(setting: Setting, data_dir: str | None, out: str) -> dict[str, Any]:
    """Execute the run in this process as the command line does, recording compilation."""
    import jax
    import numpy as np

    from experiments.benchmarks.compilation.listen import Compiler, branches
    from fedjax_lora.core.cache import cache_dir, enable_compilation_cache
    from fedjax_lora.data.batch_shapes import first_fitting, step_sizes
    from fedjax_lora.runs import build, compilation, run

    compiler = Compiler()
    enable_compilation_cache()
    chosen, shared, ends = config(setting, data_dir), compilation.programs(), []
    assets = build.load_assets(chosen, cache_dir=str(cache_dir() / "tokens"))
    loaded = age()
    run.run(chosen, out=out, assets=assets, programs=shared, on_round=lambda _: ends.append(age()))
    compiled, traced = list(compiler.programs), dict(compiler.traced)
    made = build.build(chosen, assets, shared)  # to look at: its programs are the run's
    plans = [made.federation.plan(t, made.ranks.initial, 1e-3) for t in range(setting.rounds)]
    need = np.stack([step_sizes(plan.batches) for plan in plans])
    shapes, taken = made.round_spec.shapes, need[..., 0] > 0
    steps = np.bincount(first_fitting(shapes, need[taken]), minlength=len(shapes))
    text = made.step.lower(  # type: ignore[attr-defined]
        made.inputs.base, made.inputs.train, made.begin().state, plans[0], jax.random.key(0)
    ).as_text("hlo")
    return {
        "loaded_seconds": loaded,
        "round_end_seconds": ends,
        "programs": compiled,
        "traced_seconds": traced,
        "round_compilations": made.step.compiled._cache_size(),  # type: ignore[attr-defined]
        "step_copies": branches(text),
        "shapes": shapes,
        "steps_by_shape": steps.tolist(),
        "cohorts": [plan.id.tolist() for plan in plans],
        "ranks": [plan.rank.tolist() for plan in plans],
        "jax": jax.__version__,
    }


def age() -> float:
    """Seconds since the start of this process."""
    return time.time() - psutil.Process().create_time()


def main(
    data_dir: str | None = None,
    repeats: int = 3,
    setting: Setting = Setting(),
    results: pathlib.Path = RESULTS,
) -> None:
    """Measure the pairs of starts without records; a few minutes on two idle cores.

    Args:
      data_dir: folder with ``ag_news``; the built-in task by default.
      repeats: number of cold starts, each followed by a warm one.
      setting: size of the run.
      results: folder of the result files.
    """
    results.mkdir(exist_ok=True)
    about = {"machine": machine(), "setting": dataclasses.asdict(setting)}
    (results / "machine.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    finished = json_lines.by_name(results / RECORDS)
    for repetition in range(repeats):
        if f"{STARTS[-1]}-{repetition}" in finished:
            continue
        with tempfile.TemporaryDirectory() as folder:
            made = [measure(name, setting, data_dir, pathlib.Path(folder)) for name in STARTS]
        for name, record in zip(STARTS, made, strict=True):
            json_lines.append(results / RECORDS, {"name": f"{name}-{repetition}"} | record)
            print(name, repetition, f"{record['round_end_seconds'][0]:.1f} s", flush=True)


def measure(
    name: str, setting: Setting, data_dir: str | None, folder: pathlib.Path
) -> dict[str, Any]:
    """Measure one start in a process of its own; the cache is in the folder."""
    out = folder / name
    order = {"setting": dataclasses.asdict(setting), "data_dir": data_dir, "out": str(out)}
    command = [sys.executable, "-m", MODULE, "start", json.dumps(order)]
    cache = folder / "cache"
    own = {"PYTHONPATH": str(ROOT), "FEDJAX_LORA_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    watch(command, os.environ | own, folder / "log")
    record = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    kept = sorted(path.name.rsplit("-", 2)[0] for path in (cache / "xla").glob("*-cache"))
    return record | {"in_cache_after": kept}


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "start":
        order = json.loads(sys.argv[2])
        record = start(Setting(**order["setting"]), order["data_dir"], order["out"])
        pathlib.Path(f"{order['out']}.json").write_text(json.dumps(record), encoding="utf-8")
    else:
        tyro.cli(main)
