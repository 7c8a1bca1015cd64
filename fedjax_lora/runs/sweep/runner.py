"""A comparison from its grid: run what is missing, then write down what came out."""

import functools
import hashlib
import json
import pathlib
import re
import shlex
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_lora.core import atomic_io
from fedjax_lora.core.errors import InputError
from fedjax_lora.data.batching import local_steps
from fedjax_lora.federated import optimizers
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.build import lay_out
from fedjax_lora.runs.compilation import programs
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.outputs import Result
from fedjax_lora.runs.run import run
from fedjax_lora.runs.sweep import figures, grid, html_report, record_store, statistics
from fedjax_lora.runs.sweep.grid import Cell, Grid, Problem
from fedjax_lora.runs.sweep.record_store import Record
from fedjax_lora.runs.sweep.shared_assets import AssetCache
from fedjax_lora.runs.sweep.statistics import Line, Run

BASE, RUNS = "base.json", "runs"


class Comparison(NamedTuple):
    """What a comparison has led to."""

    lines: list[Line]  # the summary; empty if no run is finished
    errors: dict[str, str]  # runs that failed, by name
    others: int  # finished runs in the folder that the grid does not ask for
    out: pathlib.Path


class Finished(NamedTuple):
    """A run that has just ended."""

    cell: Cell
    record: Record | None
    error: str  # why there is no record
    seconds: float
    number: int  # how many runs of the grid have ended, those of earlier calls included
    total: int


def compare(
    chosen: Grid,
    *,
    out: str | pathlib.Path,
    cache_dir: str | None = None,
    on_round: Callable[[Cell, dict[str, Any]], None] = lambda cell, record: None,
    on_run: Callable[[Finished], None] = lambda finished: None,
) -> Comparison:
    """Run all runs of a grid that ``out`` does not hold, then write tables, figure and report.

    A folder may be used with any grid: runs it holds already are taken over, and runs that the
    grid does not ask for stay, but appear in no table. A run that fails leaves its traceback
    beside the finished ones and does not stop the others.

    Args:
      chosen: the grid.
      out: the folder.
      cache_dir: folder of tokens, see `fedjax_lora.data.encode`.
      on_round: called with each round's numbers.
      on_run: called after each run.

    Raises:
      InputError: everything that is wrong with the grid, its configs, methods, data or folder,
        before anything runs; later, that the folder can no longer be written.
    """
    folder = claim(pathlib.Path(out))
    cells, problems = grid.cells(chosen)
    records = record_store.finished(folder / RUNS)
    missing = [cell for cell in cells if cell.config not in records]
    shelf = AssetCache(cache_dir)
    steps, found = check(missing, shelf)
    grid.refuse(problems + found)

    _make(folder, chosen)
    shared = programs(least_steps=steps)

    def work(cell: Cell) -> Result:
        told = functools.partial(on_round, cell)
        assets = shelf.assets(cell.config)
        return run(cell.config, assets=assets, programs=shared, on_round=told)

    records, errors = run_missing(cells, records, folder / RUNS, work, on_run)
    runs = [(cell, records[cell.config]) for cell in cells if cell.config in records]
    others = len(records.keys() - {cell.config for cell in cells})
    return Comparison(leave(folder, chosen, runs, errors), errors, others, folder)


def run_missing(
    cells: Sequence[Cell],
    records: Mapping[RunConfig, Record],
    folder: pathlib.Path,
    work: Callable[[Cell], Result],
    on_run: Callable[[Finished], None] = lambda finished: None,
) -> tuple[dict[RunConfig, Record], dict[str, str]]:
    """Run the cells that no record is of, one after another, each into a file of its own.

    Args:
      cells: what there is to be, in this order.
      records: what there is.
      folder: where the files go.
      work: runs a cell; what it raises does not stop the others.
      on_run: called after each run.

    Returns:
      The records with the new ones, and the errors by the name of the run.
    """
    found, errors = dict(records), {}
    missing = [cell for cell in cells if cell.config not in found]
    for number, cell in enumerate(missing, len(cells) - len(missing) + 1):
        clock = time.perf_counter()
        path = folder / file_name(cell.config)
        record, error = attempt(path, cell.config, functools.partial(work, cell))
        if record is None:
            errors[grid.name(cell.labels)] = error
        else:
            found[cell.config] = record
        seconds = time.perf_counter() - clock
        on_run(Finished(cell, record, error, seconds, number, len(cells)))
    return found, errors


def check(cells: Iterable[Cell], shelf: AssetCache) -> tuple[int, list[Problem]]:
    """The most local steps of any client in any of the runs, and what is wrong with them.

    Data and models are loaded, clients get their examples and ranks, methods are built; nothing
    is compiled.
    """
    steps, problems = 0, []
    for cell in cells:
        local, rounds = cell.config.local, cell.config.federation.rounds
        try:
            optimizers.optimizer(local.optimizer, clip=local.clip)
            optimizers.schedule(local.schedule, rounds=rounds)
            parts = lay_out(cell.config, shelf.assets(cell.config)).parts
        except InputError as error:
            problems.append(Problem(grid.name(cell.labels), str(error)))
        else:
            most = max(map(len, parts.indices))
            taken = local_steps(most, batch=local.batch, epochs=local.epochs, most=local.max_steps)
            steps = max(steps, taken)
    return steps, problems


def attempt(
    path: pathlib.Path, config: RunConfig, work: Callable[[], Result]
) -> tuple[Record | None, str]:
    """The record of a run, or why there is none; the traceback is then left beside the file.

    Raises:
      InputError: not even the traceback can be written: no other run could be kept either.
    """
    note = path.with_suffix(".error.txt")
    try:
        record = record_store.run_once(path, config, work)
    except Exception as failure:  # whatever it is, the other runs go on
        with atomic_io.reporting_write_errors(path.parent):
            atomic_io.write(note, traceback.format_exc())
        return None, f"{type(failure).__name__}: {failure}".split("\n", maxsplit=1)[0]
    with atomic_io.reporting_write_errors(path.parent):
        note.unlink(missing_ok=True)
    return record, ""


def claim(folder: pathlib.Path) -> pathlib.Path:
    """A folder that a comparison may write to; nothing is written yet.

    Raises:
      InputError: it is a file, or holds something else than a comparison.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"Output {folder} is a file; choose a folder with --out.")
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if present and BASE not in present:
        raise InputError(
            f"Output folder {folder} holds other files ({', '.join(present[:3])}) and no "
            "comparison; choose a new or empty folder with --out."
        )
    return folder


def _make(folder: pathlib.Path, chosen: Grid) -> None:
    with atomic_io.reporting_write_errors(folder):
        atomic_io.write(folder / BASE, json.dumps(configs.to_dict(chosen.base), indent=2) + "\n")


def file_name(config: RunConfig) -> str:
    """A name that tells a reader the method and the seed, and no other config has."""
    text = json.dumps(configs.to_dict(config), sort_keys=True)
    method = re.sub(r"\W+", "_", config.federation.method).strip("_")
    return f"{method}-seed{config.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"


def leave(
    folder: pathlib.Path, chosen: Grid, runs: Sequence[Run], errors: dict[str, str]
) -> list[Line]:
    """Write tables, figure and report, if any run is finished; returns the summary.

    Raises:
      InputError: the folder cannot be written.
    """
    if not runs:
        return []
    rows, lines = statistics.rows(runs), statistics.summarise(runs)
    figure = figures.curves(lines)
    text = html_report.page(
        lines, figure, title=title(runs), command=command(chosen, folder), errors=errors
    )
    with atomic_io.reporting_write_errors(folder):
        atomic_io.write(folder / "table.csv", statistics.as_csv(rows))
        statistics.write_parquet(rows, folder / "table.parquet")
        atomic_io.write(folder / "table.md", statistics.markdown(lines))
        (folder / "curves.png").write_bytes(figure)
        atomic_io.write(folder / "report.html", text)
    return lines


def title(runs: Sequence[Run]) -> str:
    """Tasks, and how many methods and seeds."""
    configs_of = [cell.config for cell, _ in runs]
    tasks = ", ".join(dict.fromkeys(config.data.task for config in configs_of))
    methods = len({config.federation.method for config in configs_of})
    seeds = len({config.seed for config in configs_of})
    many = lambda n, what: f"{n} {what}" + "s" * (n > 1)  # noqa: E731
    return f"{tasks}: {many(methods, 'method')}, {many(seeds, 'seed')}"


def command(chosen: Grid, folder: pathlib.Path) -> str:
    """The command line of a grid."""
    words = ["fedjax-lora", "compare", "--config", str(folder / BASE)]
    words += ["--methods", *chosen.methods, "--seeds", *map(str, chosen.seeds)]
    for field, values in chosen.vary.items():
        words += ["--vary", f"{field}={list(values)!r}"]
    return shlex.join([*words, "--out", str(folder)])
