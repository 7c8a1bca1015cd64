"""Execution of studies: runs everything that has no record yet, in one process."""

import dataclasses
import functools
import json
import pathlib
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tyro

from experiments.tools import alternate, run_store
from experiments.tools.json_lines import Record
from experiments.tools.study import Experiment, Size, Stage, Study, distinct
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
from fedjax_lora.runs.sweep.runner import check
from fedjax_lora.runs.sweep.shared_assets import AssetCache
from fedjax_lora.runs.together import Together

Log = Callable[[str], Any]
Locate = Callable[[RunConfig], RunConfig]


def execute(
    studies: Sequence[Study],
    size: Size,
    data_dir: str | None,
    *,
    only: Sequence[str] = (),
    models_dir: str | None = None,
    together: int = 1,
    most: int | None = None,
) -> int:
    """Run what has no record yet, study by study; returns the number of failed runs.

    Interrupting is safe at any time: finished runs are kept, and the same call continues. After a
    failure in a stage, the later stages of the study are left for the next call.

    Args:
      studies: the studies, in order.
      size: size of the runs.
      data_dir: folder with the tasks' files; None loads them from the hub.
      only: names of the studies to run; all by default.
      models_dir: folder with the models' folders; None resolves models by name.
      together: runs that are trained at once, see `fedjax_lora.runs.together`.
      most: runs of this call, by default all: a few tell what the others will take. The stage with
        the last of them is the last of its study.

    Raises:
      InputError: an unknown study, an invalid config or missing data, before any run of the stage.
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
            log = functools.partial(_log, f"{name}, stage {number}")
            failures, done = execute_stage(known[name], stage, size, locate, log, together, most)
            failed += failures
            if failures or not done:
                break
    return failed


def execute_stage(
    study: Study,
    stage: Stage,
    size: Size,
    locate: Locate,
    log: Log,
    together: int = 1,
    most: int | None = None,
) -> tuple[int, bool]:
    """Run the cells of a stage that have no record, at most so many.

    Returns:
      The number of failed runs, and whether none has been left for another call.
    """
    records = study.records(size)
    cells = distinct(stage(size, records))
    missing = [cell for cell in cells if cell.config not in records]
    log(f"{len(cells)} runs, {len(cells) - len(missing)} of them finished")
    everything = len(missing)
    missing = missing[:most]
    if not missing:
        return 0, not everything
    assets = AssetCache(str(cache_dir() / "tokens"))
    steps, problems = check([c._replace(config=locate(c.config)) for c in missing], assets)
    grid.refuse(problems)
    atomic_io.write(study.folder(size) / "machine.json", json.dumps(alternate.machine()) + "\n")
    compiled = programs(least_steps=steps)
    plain = [locate(c.config) for c in missing if _is_plain(study, c)]
    groups = Together(plain, most=together, assets=assets.assets, programs=compiled)
    pending = _Pending(study, size, locate, assets, compiled, groups)
    seconds: list[float] = []
    failures = 0
    for number, cell in enumerate(missing, len(cells) - everything + 1):
        clock = time.perf_counter()
        record, error = pending.attempt(cell)
        failures += record is None
        seconds.append(time.perf_counter() - clock)
        left = (len(cells) - number) * statistics.median(seconds) / 60
        outcome = error if record is None else score(record["summary"])
        log(
            f"[{number}/{len(cells)}] {grid.name(cell.labels)}: {outcome} in "
            f"{seconds[-1]:.0f} s, about {left:.0f} min left"
        )
    return failures, len(missing) == everything


class _Pending(NamedTuple):
    """Shared inputs of the runs of a stage."""

    study: Study
    size: Size
    locate: Locate
    assets: AssetCache
    compiled: CompiledFunctions
    groups: Together

    def attempt(self, cell: Cell) -> tuple[Record | None, str]:
        """Run a cell and store its record; returns None and the error's first line on failure.

        The traceback of a failed run is written to ``errors/`` beside the runs until a later
        attempt succeeds.
        """
        note = self.study.folder(self.size) / "errors" / f"{_slug(cell)}.txt"
        try:
            result = self._result(cell)
        except Exception as failure:  # any failure: the other runs continue
            atomic_io.write(note, traceback.format_exc())
            return None, f"{type(failure).__name__}: {failure}".split("\n", maxsplit=1)[0]
        record = run_store.add(self.study.runs_file(self.size), cell.config, result)
        note.unlink(missing_ok=True)
        return record, ""

    def _result(self, cell: Cell) -> run_store.RunResult:
        config = self.locate(cell.config)
        if _is_plain(self.study, cell):
            return self.groups.result(config)
        run_cell: Experiment = self.study.replacements.get(cell.labels["part"], training_run)
        return run_cell(config, self.assets.assets(config), self.compiled)


def _is_plain(study: Study, cell: Cell) -> bool:
    """Whether a cell is a training run of which nothing is measured."""
    return cell.labels["part"] not in study.replacements and not cell.config.execution.measure


def _slug(cell: Cell) -> str:
    """A file name from a cell's labels."""
    text = "-".join(str(value) for value in cell.labels.values())
    return "".join(char if char.isalnum() or char in "-." else "_" for char in text)


def located(config: RunConfig, data_dir: str | None, models_dir: str | None = None) -> RunConfig:
    """Add the local folders to a config; records are stored without them."""
    data, model = dataclasses.replace(config.data, data_dir=data_dir), config.model
    if models_dir is not None:
        model = dataclasses.replace(model, model=str(pathlib.Path(models_dir) / model.model))
    return dataclasses.replace(config, data=data, model=model)


def training_run(config: RunConfig, assets: Assets, compiled: CompiledFunctions) -> Result:
    """Run a config; a measured run's summary gets the median time of the server's step."""
    server: list[float] = []

    def note(record: dict[str, Any]) -> None:
        if "server_seconds" in record:
            server.append(record["server_seconds"])

    result = run(config, assets=assets, programs=compiled, on_round=note)
    if not server:
        return result
    # The first round's step may include compilation.
    seconds = {"server_seconds": statistics.median(server[1:] or server)}
    return dataclasses.replace(result, summary=result.summary | seconds)


def score(summary: dict[str, Any]) -> str:
    """Format the final metric of a run."""
    name = "accuracy" if "accuracy" in summary else "perplexity"
    return f"{name} {summary[name]:.3f}"


def _log(where: str, text: str) -> None:
    print(f"{where}: {text}", flush=True)


def main(
    studies: Sequence[Study],
    size: Size,
    data_dir: str | None,
    only: Sequence[str] = (),
    models_dir: str | None = None,
    together: int = 1,
    most: int | None = None,
) -> int:
    """Run `execute` as a command; returns the exit status."""
    try:
        options = {"only": only, "models_dir": models_dir, "together": together, "most": most}
        return 1 if execute(studies, size, data_dir, **options) else 0
    except InputError as error:
        print(error)
        return 2
    except KeyboardInterrupt:
        print("Finished runs are kept; run the same command again to continue.")
        return 130


def command(study: Study, *, together: int) -> int:
    """Run a study as a command with options of its own; returns the exit status.

    Args:
      study: the study; its module says what it compares.
      together: default of the option of this name.
    """

    def run(data_dir: str, together: int = together, most: int | None = None) -> int:
        """Tune and run every arm; what has a record is not run again.

        Args:
          data_dir: folder with the tasks' official files.
          together: runs that are trained at once, of those that differ in seed and learning rate
            alone.
          most: runs of this call, by default all.
        """
        return main((study,), "small", data_dir, together=together, most=most)

    return tyro.cli(run)
