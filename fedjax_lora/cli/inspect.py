"""``fedjax-lora inspect``: what is in a run's folder."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import tyro
from rich.console import Console

from fedjax_lora.runs.config import RunConfig, to_dict


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Say what a run's folder holds: config, rounds, last numbers, checkpoints, adapter, sizes."""

    run: tyro.conf.Positional[pathlib.Path]
    """Folder of the run."""
    redraw: bool = False
    """Draw figures/accuracy.png again from the numbers there are."""


def main(args: Sequence[str]) -> None:
    """Inspect as the arguments say.

    Raises:
      InputError: no run there, or a damaged one.
    """
    options = tyro.cli(InspectOptions, args=args, prog="fedjax-lora inspect")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for title, lines in report(options.run):
        console.print(title)
        for line in lines:
            console.print(f"  {line}")
    if options.redraw:
        console.print(f"drawn again: {redraw(options.run)}")


def report(run: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
    """Titles, each with its lines.

    Raises:
      InputError: no run there, or a damaged one.
    """
    # Imported here: --help and wrong options should not wait for JAX.
    from fedjax_lora.cli.run_or_model import model_folder, need_run
    from fedjax_lora.runs import checkpoints
    from fedjax_lora.runs.folder import METRICS, RunFolder, read_lines
    from fedjax_lora.runs.resume import read_config

    need_run(run)
    config = read_config(run)
    yield "config", _changed(config)
    records = read_lines(run / METRICS)
    summary = RunFolder(run).finished()
    state = "finished" if summary else "not finished"
    yield f"rounds: {len(records)} of {config.federation.rounds}, {state}", _last(records)
    found = checkpoints.whole(run)
    best = checkpoints.best(found)
    yield (
        f"checkpoints: {len(found)}",
        [
            f"{c.path.relative_to(run)}: {_size(c.path)}{', the best' if c is best else ''}"
            for c in found
        ],
    )
    model = model_folder(run)
    if model is not None:
        yield f"model: {model.relative_to(run)}, {_size(model)}", _adapter(model)
    files = sorted(p for p in run.iterdir() if not p.name.startswith("."))
    yield f"files: {_size(run)}", [f"{p.name}: {_size(p)}" for p in files]


def redraw(run: pathlib.Path) -> pathlib.Path:
    """Draw the figure of a run's history again; returns where it is.

    Raises:
      InputError: there is no round to draw, or the folder cannot be written.
    """
    from fedjax_lora.core import atomic_io
    from fedjax_lora.core.errors import InputError
    from fedjax_lora.data import find_task
    from fedjax_lora.runs import plots
    from fedjax_lora.runs.folder import METRICS, RunFolder, read_lines
    from fedjax_lora.runs.resume import read_config

    config, records = read_config(run), read_lines(run / METRICS)
    if not records:
        raise InputError(f"Run {run} has no rounds yet.")
    path = run / "figures" / "accuracy.png"
    figure = plots.history(
        records,
        metric=find_task(config.data.task).metric,
        title=f"{config.data.task}: {config.federation.method}",
        beat=plots.to_beat(RunFolder(run).finished() or {}, find_task(config.data.task).metric),
    )
    with atomic_io.reporting_write_errors(run):
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path)
    return path


def _changed(config: RunConfig) -> list[str]:
    """The choices that say what the run is, and what differs from the defaults."""
    default, here = to_dict(RunConfig()), to_dict(config)
    always = ("data.task", "model.model", "federation.method", "federation.ranks", "seed")
    flat = {
        f"{group}.{name}": (value, default[group][name])
        for group, values in here.items()
        if isinstance(values, dict)
        for name, value in values.items()
    } | {"seed": (here["seed"], None)}
    return [
        f"{name} = {value if isinstance(value, str) else json.dumps(value)}"
        for name, (value, usual) in flat.items()
        if name in always or value != usual
    ]


def _last(records: Sequence[dict[str, Any]]) -> list[str]:
    if not records:
        return []
    numbers = {k: x for k, x in records[-1].items() if x is None or isinstance(x, int | float)}
    evaluated = next((r for r in reversed(records) if "loss" in r), {})
    numbers |= {k: x for k, x in evaluated.items() if x is None or isinstance(x, float)}
    return [f"{name} = {_number(x)}" for name, x in numbers.items()]


def _number(value: float | None) -> str:
    if value is None:
        return "-"  # not finite, or nobody's update counted
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _adapter(folder: pathlib.Path) -> list[str]:
    """The rank and scale of an adapter, and the shapes of the matrices it is for."""
    from fedjax_lora.interop import peft_reader, peft_writer

    if not (folder / peft_writer.CONFIG).is_file():
        return ["merged into the base: the adapter would be larger than the matrices it is for"]
    config = peft_reader.read_config(folder)
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
