"""``fedjax-lora compare``: parse the grid, run it, and print results as runs finish."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.status import Status

from fedjax_lora.cli.terminal import make_console, plain
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.safe_text import printable
from fedjax_lora.runs.choices import check_choices
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.sweep import comparison_folder
from fedjax_lora.runs.sweep.grid import Grid, Problem, name, parse_vary, refuse
from fedjax_lora.runs.sweep.grid import cells as grid_cells

if TYPE_CHECKING:
    from fedjax_lora.runs.sweep.runner import Comparison, Finished


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Run several methods with several seeds and compare them: tables, a figure, a report.

    Every method is run with every seed (and every value of --vary). Each finished run is kept in
    the output folder at once: the same command continues after an interruption, and a command
    with more methods, seeds or values runs only what is new. All other options are those of
    fedjax-lora run and hold for all runs; without --task or --config they start from the demo's.

    Example: fedjax-lora compare --methods fed_plora hlora --seeds 0 1 2 --out runs/two
    """

    methods: tuple[str, ...] = ()
    """Methods to compare (fedjax-lora methods lists them); differences are taken to the first."""
    seeds: tuple[int, ...] = ()
    """Seeds to run each method with; intervals need at least two."""
    vary: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Another config field and its values, for example local.learning_rate=0.003,0.01 or
    "federation.partition=['iid', 'dirichlet(alpha=0.1)']"; may be repeated."""
    together: int = 1
    """Runs that are trained at once, of those that differ in seed and learning rate alone: small
    runs fill a device better. They are kept when all of them have ended."""
    config_file: Annotated[pathlib.Path | None, tyro.conf.arg(name="config")] = None
    """JSON, YAML or TOML file with a config, as a result folder has; other options override it."""
    out: pathlib.Path = pathlib.Path("runs/compare")
    """Folder of the comparison, with any finished runs of earlier calls."""
    run: tyro.conf.OmitArgPrefixes[RunConfig] = dataclasses.field(default_factory=RunConfig)


def main(args: Sequence[str], base: RunConfig) -> int:
    """Compare as the arguments say; returns the exit status, 1 if any run failed.

    Args:
      args: the command line behind ``compare``.
      base: what the options override.
    """
    options = tyro.cli(
        CompareOptions, args=args, prog="fedjax-lora compare", default=CompareOptions(run=base)
    )
    names = {word.partition("=")[0] for word in args}
    for one, many in (("--method", "--methods"), ("--seed", "--seeds")):
        if one in names:
            raise InputError(f"A comparison takes {many}, with one or more values, not {one}.")
    config = options.run
    grid = Grid(
        base=config,
        methods=options.methods or (config.federation.method,),
        seeds=options.seeds or (config.seed,),
        vary=parse_vary(options.vary),
    )
    check_grid(grid)
    comparison_folder.check(options.out)
    if options.together < 1:
        raise InputError(f"--together is a number of runs, at least 1, got {options.together}.")
    return execute(grid, options.out, options.together)


def check_grid(grid: Grid) -> None:
    """Check the choices of all runs of a grid, before JAX is imported.

    Raises:
      InputError: what is wrong with the grid or with any of its runs.
    """
    cells, problems = grid_cells(grid)
    for cell in cells:
        try:
            check_choices(cell.config)
        except InputError as error:
            problems.append(Problem(name(cell.labels), str(error)))
    refuse(problems)


def execute(grid: Grid, out: pathlib.Path, together: int = 1) -> int:
    """Run a comparison and print each run as it finishes; returns the exit status."""
    # Imported here: --help and wrong options should not wait for JAX.
    from fedjax_lora.core.cache import cache_dir, enable_compilation_cache
    from fedjax_lora.runs.sweep.runner import compare
    from fedjax_lora.runs.sweep.statistics import metric_of

    enable_compilation_cache()
    console = make_console()
    try:
        with console.status("loading data and model ...") as status:
            done = compare(
                grid,
                out=out,
                cache_dir=str(cache_dir() / "tokens"),
                together=together,
                on_round=lambda cell, record: _show_round(status, name(cell.labels), record),
                on_run=lambda finished: console.print(_line(finished, metric_of(finished.cell))),
            )
    except KeyboardInterrupt:
        console.print("finished runs are kept; run the same command to continue")
        raise
    _print_end(console, done)
    return 1 if done.errors else 0


def _show_round(status: Status, run: str, record: dict[str, Any]) -> None:
    loss = record["train_loss"]  # None if every update was rejected
    result = "every update was rejected" if loss is None else f"loss {loss:.4f}"
    status.update(plain(f"{run}: round {record['round']} done, {result}"))


def _line(finished: "Finished", metric: str) -> str:
    start = f"[{finished.number}/{finished.total}] {name(finished.cell.labels)}:"
    end = f"in {finished.seconds:.0f} s"
    if finished.record is None:
        return f"{start} FAILED {end}: {finished.error}"
    score = finished.record["summary"][metric]
    return f"{start} {metric} {'not finite' if score is None else f'{score:.4f}'} {end}"


def _print_end(console: Console, done: "Comparison") -> None:
    """Print the table, the failed runs and the runs that the tables leave out."""
    from fedjax_lora.runs.sweep.statistics import shown

    if done.lines:
        header, rows = shown(done.lines)
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        for row in (header, *rows):
            console.print(printable("  ".join(map(str.ljust, row, widths)).rstrip()))
    for run, error in done.errors.items():
        console.print(f"failed: {run}: {error} (traceback in {done.out / 'runs'})")
    if done.others:
        console.print(
            f"note: {done.out / 'runs'} holds {done.others} more finished runs, which this "
            "command does not ask for and the tables leave out"
        )
    if done.lines:
        console.print(f"report in {done.out / 'report.html'}")
