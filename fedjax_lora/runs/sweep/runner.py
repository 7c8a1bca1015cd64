"""Run a comparison: the runs of a grid that are missing, then tables, figure and report."""

import functools
import hashlib
import json
import pathlib
import re
import shlex
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from fedjax_lora.core import atomic_io
from fedjax_lora.core.errors import InputError
from fedjax_lora.data.batching import local_steps
from fedjax_lora.federated import optimizers
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.choices import resolve
from fedjax_lora.runs.compilation import programs
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.loading import execution_of
from fedjax_lora.runs.outputs import Result
from fedjax_lora.runs.run import run
from fedjax_lora.runs.setup import set_up
from fedjax_lora.runs.sweep import figures, html_report, record_store, statistics
from fedjax_lora.runs.sweep import grid as grids
from fedjax_lora.runs.sweep.comparison_folder import BASE, RUNS, claimed
from fedjax_lora.runs.sweep.grid import Cell, Grid, Problem
from fedjax_lora.runs.sweep.record_store import Record
from fedjax_lora.runs.sweep.shared_assets import AssetCache
from fedjax_lora.runs.sweep.statistics import Line, Run
from fedjax_lora.runs.together import Together


class Comparison(NamedTuple):
    """The results of a comparison.

    Attributes:
      lines: the summary; empty if no run is finished.
      errors: errors of the runs that failed, by name of the run.
      others: number of finished runs in the folder that are not in the grid.
      out: the folder.
    """

    lines: list[Line]
    errors: dict[str, str]
    others: int
    out: pathlib.Path


class Finished(NamedTuple):
    """A run that has just ended.

    Attributes:
      cell: the run in the grid.
      record: its record; None if it failed.
      error: the error if it failed.
      seconds: seconds that it took.
      number: number of runs of the grid that have ended, those of earlier calls included.
      total: number of runs of the grid.
    """

    cell: Cell
    record: Record | None
    error: str
    seconds: float
    number: int
    total: int


def compare(
    grid: Grid,
    *,
    out: str | pathlib.Path,
    cache_dir: str | None = None,
    together: int = 1,
    on_round: Callable[[Cell, Record], object] = lambda cell, record: None,
    on_run: Callable[[Finished], None] = lambda finished: None,
) -> Comparison:
    """Run all runs of a grid that a folder does not have yet, then write tables and a report.

    A folder may be used with any grid: its finished runs are not repeated, and those that are not
    in the grid stay, but appear in no table. The traceback of a run that fails is written beside
    the finished ones; the other runs go on.

    Args:
      grid: the grid.
      out: the folder.
      cache_dir: folder of cached tokens, see `fedjax_lora.data.encode`.
      together: runs that are trained at once, of those that differ in seed and learning rate alone;
        see `fedjax_lora.runs.together`. They are kept when all of them have ended.
      on_round: called with each round's numbers.
      on_run: called after each run.

    Raises:
      InputError: everything that is wrong with the grid, its configs, methods, data or folder,
        before anything runs, or another comparison is writing to the folder; later, that the
        folder can no longer be written.
    """
    folder, cache = pathlib.Path(out), AssetCache(cache_dir)
    cells, problems = grids.cells(grid)
    with claimed(folder) as start:
        records = record_store.finished(folder / RUNS)
        missing = [cell for cell in cells if cell.config not in records]
        steps, run_problems = check(missing, cache)
        grids.refuse(problems + run_problems)

        start()
        _write_base(folder, grid)
        shared, cell_of = programs(least_steps=steps), {cell.config: cell for cell in missing}
        report = lambda config, record: on_round(cell_of[config], record)  # noqa: E731
        groups = Together(
            cell_of, most=together, assets=cache.assets, programs=shared, on_round=report
        )

        def run_cell(cell: Cell) -> Result:
            config = cell.config
            if together > 1:
                return groups.result(config)
            own = functools.partial(report, config)
            return run(config, assets=cache.assets(config), programs=shared, on_round=own)

        records, errors = run_missing(cells, records, folder / RUNS, run_cell, on_run)
        runs = [(cell, records[cell.config]) for cell in cells if cell.config in records]
        others = len(records.keys() - {cell.config for cell in cells})
        return Comparison(write_report(folder, grid, runs, errors), errors, others, folder)


def run_missing(
    cells: Sequence[Cell],
    records: Mapping[RunConfig, Record],
    folder: pathlib.Path,
    run_cell: Callable[[Cell], Result],
    on_run: Callable[[Finished], None] = lambda finished: None,
) -> tuple[dict[RunConfig, Record], dict[str, str]]:
    """Run the cells without a record, one after another, each into a file of its own.

    Args:
      cells: all runs, in their order.
      records: records of finished runs.
      folder: folder of the files.
      run_cell: runs a cell; an exception does not stop the others.
      on_run: called after each run.

    Returns:
      The records with the new ones, and the errors by the name of the run.
    """
    records, errors = dict(records), {}
    missing = [cell for cell in cells if cell.config not in records]
    for number, cell in enumerate(missing, len(cells) - len(missing) + 1):
        clock = time.perf_counter()
        path = folder / file_name(cell.config)
        record, error = attempt(path, cell.config, functools.partial(run_cell, cell))
        if record is None:
            errors[grids.name(cell.labels)] = error
        else:
            records[cell.config] = record
        seconds = time.perf_counter() - clock
        on_run(Finished(cell, record, error, seconds, number, len(cells)))
    return records, errors


def check(cells: Iterable[Cell], cache: AssetCache) -> tuple[int, list[Problem]]:
    """Check the runs of a grid before any of them is compiled.

    Data and models are loaded, examples partitioned, ranks allocated and methods built.

    Args:
      cells: the runs.
      cache: loads data and models.

    Returns:
      The most local steps of any client in any of the runs, and what is wrong with the runs.
    """
    steps, problems = 0, []
    for cell in cells:
        local = cell.config.local
        try:
            optimizers.optimizer(local.optimizer, clip=local.clip)
            choices, execution = resolve(cell.config), execution_of(cell.config)
            assets = cache.assets(cell.config)
            partition = set_up(cell.config, choices, assets, execution).partition
        except InputError as error:
            problems.append(Problem(grids.name(cell.labels), str(error)))
        else:
            examples = max(map(len, partition.indices))
            of_run = local_steps(
                examples, batch=local.batch, epochs=local.epochs, most=local.max_steps
            )
            steps = max(steps, of_run)
    return steps, problems


def attempt(
    path: pathlib.Path, config: RunConfig, run: Callable[[], Result]
) -> tuple[Record | None, str]:
    """Run once and keep the record, or the traceback if the run fails.

    Args:
      path: file of the record; the traceback is written beside it.
      config: config of the run.
      run: runs it.

    Returns:
      The record and ``""``, or None and the error in one line.

    Raises:
      InputError: the traceback cannot be written, so no other run could be kept either.
    """
    traceback_file = path.with_suffix(".error.txt")
    try:
        record = record_store.run_once(path, config, run)
    except Exception as failure:  # whatever it is, the other runs go on
        with atomic_io.reporting_write_errors(path.parent):
            atomic_io.write(traceback_file, traceback.format_exc())
        return None, f"{type(failure).__name__}: {failure}".split("\n", maxsplit=1)[0]
    with atomic_io.reporting_write_errors(path.parent):
        traceback_file.unlink(missing_ok=True)
    return record, ""


def _write_base(folder: pathlib.Path, grid: Grid) -> None:
    """Write the config that all runs of a grid share."""
    with atomic_io.reporting_write_errors(folder):
        atomic_io.write(folder / BASE, json.dumps(configs.to_dict(grid.base), indent=2) + "\n")


def file_name(config: RunConfig) -> str:
    """Return a file name for a run: method, seed, and a digest of the config."""
    text = json.dumps(configs.to_dict(config), sort_keys=True)
    method = re.sub(r"\W+", "_", config.federation.method).strip("_")
    return f"{method}-seed{config.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"


def write_report(
    folder: pathlib.Path, grid: Grid, runs: Sequence[Run], errors: dict[str, str]
) -> list[Line]:
    """Write tables, figure and report, if any run is finished.

    Args:
      folder: folder of the comparison.
      grid: its grid.
      runs: finished runs of the grid.
      errors: errors of the runs that failed, by name of the run.

    Returns:
      The summary.

    Raises:
      InputError: the folder cannot be written.
    """
    if not runs:
        return []
    rows, lines = statistics.rows(runs), statistics.summarise(runs)
    figure = figures.curves(lines)
    text = html_report.page(
        lines, figure, title=title(runs), command=command(grid, folder), errors=errors
    )
    with atomic_io.reporting_write_errors(folder):
        atomic_io.write(folder / "table.csv", statistics.as_csv(rows))
        atomic_io.write(folder / "table.parquet", statistics.as_parquet(rows))
        atomic_io.write(folder / "table.md", statistics.markdown(lines))
        atomic_io.write(folder / "curves.png", figure)
        atomic_io.write(folder / "report.html", text)
    return lines


def title(runs: Sequence[Run]) -> str:
    """Return a title with the tasks and the numbers of methods and seeds."""
    configs_of = [cell.config for cell, _ in runs]
    tasks = ", ".join(dict.fromkeys(config.data.task for config in configs_of))
    methods = len({config.federation.method for config in configs_of})
    seeds = len({config.seed for config in configs_of})
    many = lambda n, what: f"{n} {what}" + "s" * (n > 1)  # noqa: E731
    return f"{tasks}: {many(methods, 'method')}, {many(seeds, 'seed')}"


def command(grid: Grid, folder: pathlib.Path) -> str:
    """Return the command line that runs a grid."""
    words = ["fedjax-lora", "compare", "--config", str(folder / BASE)]
    words += ["--methods", *grid.methods, "--seeds", *map(str, grid.seeds)]
    for field, values in grid.vary.items():
        words += ["--vary", f"{field}={list(values)!r}"]
    return shlex.join([*words, "--out", str(folder)])
