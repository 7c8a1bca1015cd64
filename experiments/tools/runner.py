"""Runs what a study lacks: one file per finished run, one process for all of them."""

import dataclasses
import functools
import json
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from experiments.tools import alternate
from experiments.tools.study import Size, Stage, Study, distinct
from fedjax_lora.core import atomic_io
from fedjax_lora.core.cache import cache_dir, enable_compilation_cache
from fedjax_lora.core.errors import InputError, unknown
from fedjax_lora.runs.build import Assets
from fedjax_lora.runs.compilation import CompiledFunctions, programs
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.outputs import Result
from fedjax_lora.runs.run import run
from fedjax_lora.runs.sweep import grid
from fedjax_lora.runs.sweep.grid import Cell
from fedjax_lora.runs.sweep.runner import Finished, check, run_missing
from fedjax_lora.runs.sweep.shared_assets import AssetCache

Told = Callable[[str], Any]


def rerun(
    studies: Sequence[Study],
    size: Size,
    data_dir: str | None,
    *,
    only: Sequence[str] = (),
    models_dir: str | None = None,
) -> int:
    """Run what is missing, study by study; returns how many runs failed.

    It can be interrupted at any time: what is finished is kept, and the same call goes on. Where a
    run of a stage fails, the stages that depend on it are left for the next call.

    Args:
      studies: in this order.
      size: of the runs.
      data_dir: folder with the tasks' files; None takes them from the hub.
      only: names of the studies to run; all by default.
      models_dir: folder with the models' folders; None takes them by name.

    Raises:
      InputError: an unknown study, or whatever is wrong with the configs or the data, before
        anything of a stage runs.
    """
    known = {study.name: study for study in studies}
    for name in only:
        if name not in known:
            raise unknown("study", name, known)
    enable_compilation_cache()
    locate = functools.partial(located, data_dir=data_dir, models_dir=models_dir)
    failed = 0
    for name in only or known:
        for number, stage in enumerate(known[name].stages, 1):
            tell = functools.partial(_tell, f"{name}, stage {number}")
            errors = run_stage(known[name], stage, size, locate, tell)
            failed += len(errors)
            if errors:
                break
    return failed


def run_stage(
    study: Study, stage: Stage, size: Size, locate: Callable[[RunConfig], RunConfig], tell: Told
) -> dict[str, str]:
    """Run what a stage lacks; returns the errors by the name of the run."""
    folder = study.folder(size)
    records = study.records(size)
    cells = distinct(stage(size, records))
    missing = [cell for cell in cells if cell.config not in records]
    tell(f"{len(cells)} runs, {len(cells) - len(missing)} of them finished")
    if not missing:
        return {}
    shelf = AssetCache(str(cache_dir() / "tokens"))
    steps, problems = check([c._replace(config=locate(c.config)) for c in missing], shelf)
    grid.refuse(problems)
    atomic_io.write(folder / "machine.json", json.dumps(alternate.machine()) + "\n")
    shared = programs(least_steps=steps)
    seconds: list[float] = []

    def work(cell: Cell) -> Any:
        config = locate(cell.config)
        assets = shelf.assets(config)
        return study.works.get(cell.labels["part"], _run)(config, assets, shared)

    def on_run(done: Finished) -> None:
        seconds.append(done.seconds)
        left = (done.total - done.number) * statistics.median(seconds) / 60
        how = _score(done.record["summary"]) if done.record else done.error
        tell(
            f"[{done.number}/{done.total}] {grid.name(done.cell.labels)}: {how} in "
            f"{done.seconds:.0f} s, about {left:.0f} min left"
        )

    _, errors = run_missing(cells, records, folder / "runs", work, on_run)
    return errors


def located(config: RunConfig, data_dir: str | None, models_dir: str | None = None) -> RunConfig:
    """The config with where the files are, which no result file says."""
    data, model = dataclasses.replace(config.data, data_dir=data_dir), config.model
    if models_dir is not None:
        model = dataclasses.replace(model, model=str(pathlib.Path(models_dir) / model.model))
    return dataclasses.replace(config, data=data, model=model)


def _run(config: RunConfig, assets: Assets, shared: CompiledFunctions) -> Result:
    """A run; the summary of a measured one has the median time of the server's step."""
    server: list[float] = []

    def note(record: dict[str, Any]) -> None:
        if "server_seconds" in record:
            server.append(record["server_seconds"])

    result = run(config, assets=assets, programs=shared, on_round=note)
    if not server:
        return result
    # The first round's step may have had to be compiled.
    seconds = {"server_seconds": statistics.median(server[1:] or server)}
    return dataclasses.replace(result, summary=result.summary | seconds)


def _score(summary: dict[str, Any]) -> str:
    name = "accuracy" if "accuracy" in summary else "perplexity"
    return f"{name} {summary[name]:.3f}"


def _tell(where: str, text: str) -> None:
    print(f"{where}: {text}", flush=True)


def main(
    studies: Sequence[Study],
    size: Size,
    data_dir: str | None,
    only: Sequence[str] = (),
    models_dir: str | None = None,
) -> int:
    """`rerun` for the command line: the exit status."""
    try:
        return 1 if rerun(studies, size, data_dir, only=only, models_dir=models_dir) else 0
    except InputError as error:
        print(error)
        return 2
    except KeyboardInterrupt:
        print("Finished runs are kept; the same command runs the others.")
        return 130
