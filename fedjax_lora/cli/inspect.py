"""``fedjax-lora inspect``: show the config, progress and files of a run folder."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tyro

from fedjax_lora.cli.folders import model_folder, need_run
from fedjax_lora.cli.terminal import make_console
from fedjax_lora.core.safe_text import printable
from fedjax_lora.runs.config import RunConfig, to_dict


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Show a run folder: config, rounds, last numbers, checkpoints, adapter and sizes."""

    run: tyro.conf.Positional[pathlib.Path]
    """Folder of the run."""
    redraw: bool = False
    """Draw figures/accuracy.png again from the numbers in the folder."""


def main(args: Sequence[str]) -> None:
    """Print what a run folder holds.

    Raises:
      InputError: no run there, or a damaged one.
    """
    options = tyro.cli(InspectOptions, args=args, prog="fedjax-lora inspect")
    need_run(options.run)
    console = make_console()
    for title, lines in report(options.run):
        console.print(printable(title))
        for line in lines:
            console.print(f"  {printable(line)}")
    if options.redraw:
        console.print(f"redrawn: {redraw(options.run)}")


def report(run: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the sections of the report: a title and its lines.

    Raises:
      InputError: no run there, or a damaged one.
    """
    # Imported here: --help and wrong options should not wait for JAX.
    from fedjax_lora.runs import checkpoints
    from fedjax_lora.runs.folder import RunFolder, read_lines
    from fedjax_lora.runs.folder_names import METRICS
    from fedjax_lora.runs.resume import read_config

    config = read_config(run)
    yield "config", _changed(config)
    records = read_lines(run / METRICS)
    summary = RunFolder(run).finished()
    state = "finished" if summary else "not finished"
    yield f"rounds: {len(records)} of {config.federation.rounds}, {state}", _last(records)
    complete = checkpoints.whole(run)
    best = checkpoints.best(complete)
    yield (
        f"checkpoints: {len(complete)}",
        [
            f"{c.path.relative_to(run)}: {_size(c.path)}{', the best' if c is best else ''}"
            for c in complete
        ],
    )
    model = model_folder(run)
    if model is not None:
        yield f"model: {model.relative_to(run)}, {_size(model)}", _adapter(model)
    files = sorted(p for p in run.iterdir() if not p.name.startswith("."))
    yield f"files: {_size(run)}", [f"{p.name}: {_size(p)}" for p in files]


def redraw(run: pathlib.Path) -> pathlib.Path:
    """Draw the figure of a run's history again; returns its path.

    Raises:
      InputError: there is no round to draw, or the folder cannot be written.
    """
    from fedjax_lora.core import atomic_io
    from fedjax_lora.core.errors import InputError
    from fedjax_lora.data import find_task
    from fedjax_lora.runs import plots
    from fedjax_lora.runs.folder import RunFolder, read_lines
    from fedjax_lora.runs.folder_names import METRICS
    from fedjax_lora.runs.resume import read_config

    config, records = read_config(run), read_lines(run / METRICS)
    if not records:
        raise InputError(f"Run {run} has no rounds yet.")
    path = run / "figures" / "accuracy.png"
    metric = find_task(config.data.task).metric
    figure = plots.history(config, metric, records, RunFolder(run).finished() or {})
    with atomic_io.reporting_write_errors(run):
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path)
    return path


def _changed(config: RunConfig) -> list[str]:
    """Format the fields that identify the run, and those that differ from the defaults."""
    defaults, values_by_group = to_dict(RunConfig()), to_dict(config)
    always = ("data.task", "model.model", "federation.method", "federation.ranks", "seed")
    flat = {
        f"{group}.{name}": (value, defaults[group][name])
        for group, values in values_by_group.items()
        if isinstance(values, dict)
        for name, value in values.items()
    } | {"seed": (values_by_group["seed"], None)}
    return [
        f"{name} = {value if isinstance(value, str) else json.dumps(value)}"
        for name, (value, default) in flat.items()
        if name in always or value != default
    ]


def _last(records: Sequence[dict[str, Any]]) -> list[str]:
    """Format the numbers of the last round and of the last evaluation."""
    if not records:
        return []
    evaluated = next((record for record in reversed(records) if "loss" in record), {})
    numbers = _numbers(records[-1], int | float) | _numbers(evaluated, float)
    return [f"{name} = {_number(x)}" for name, x in numbers.items()]


def _numbers(record: Mapping[str, Any], types: Any) -> dict[str, Any]:
    """Return the fields of a record that are numbers of these types, or missing numbers."""
    return {name: x for name, x in record.items() if x is None or isinstance(x, types)}


def _number(value: float | None) -> str:
    if value is None:
        return "-"  # not finite, or every update was rejected
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _adapter(folder: pathlib.Path) -> list[str]:
    """Format the base of an adapter, its rank, and the shapes of the adapted matrices."""
    from fedjax_lora.interop import peft_config, peft_reader, peft_writer

    if not (folder / peft_writer.CONFIG).is_file():
        return ["merged into the base: the adapter would be larger than the matrices it is for"]
    config = peft_config.read_config(folder)
    shapes = peft_reader.shapes(folder / peft_writer.WEIGHTS)
    pairs: dict[str, int] = {}
    for name, a in shapes.items():
        if name.endswith(".lora_A.weight"):
            b = shapes.get(name.replace(".lora_A.", ".lora_B."), (0, 0))
            text = f"{a[1]} x {b[0]} at rank {a[0]}"
            pairs[text] = pairs.get(text, 0) + 1
    base = config.get("base_model_name_or_path")
    return [f"for {base}", *(f"{count} matrices {text}" for text, count in pairs.items())]


def _size(path: pathlib.Path) -> str:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    size = sum(p.stat().st_size for p in files)
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
