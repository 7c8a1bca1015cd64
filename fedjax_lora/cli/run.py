"""``fedjax-lora run``: run a config, or say what it would need."""

import contextlib
import dataclasses
import os
import pathlib
import re
import shlex
from collections.abc import Sequence
from typing import Annotated

import tyro
from rich.console import Console

from fedjax_lora.cli.config_options import base_config, refuse_renamed
from fedjax_lora.cli.explain import check_target, explain, prepare_target
from fedjax_lora.cli.folders import check_base
from fedjax_lora.cli.short_help import print_run_help
from fedjax_lora.cli.signals import after_this_round
from fedjax_lora.cli.terminal import (
    RoundsBar,
    make_console,
    print_prompt_notes,
    print_summary,
    row_printer,
)
from fedjax_lora.core.errors import InputError, Stopped
from fedjax_lora.core.json_values import Record
from fedjax_lora.runs.choices import check_choices
from fedjax_lora.runs.config import FederationConfig, RunConfig
from fedjax_lora.runs.tracking import Log, check_trackers, track


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Run one config to its end and write a result folder.

    Without --task or --config, options start from those of the demo on the built-in task.
    """

    config_file: Annotated[pathlib.Path | None, tyro.conf.arg(name="config")] = None
    """JSON, YAML or TOML file with a config, as a result folder has; other options override it."""
    out: pathlib.Path | None = None
    """Result folder; by default runs/TASK-METHOD-seedSEED."""
    overwrite: bool = False
    """Replace the run that the result folder holds."""
    resume: pathlib.Path | None = None
    """Continue the interrupted run in this result folder with its config; other options override
    the config where that does not change the numbers (--rounds, --mode, ...)."""
    explain: Annotated[bool, tyro.conf.arg(aliases=["--dry-run"])] = False
    """Print the devices, memory, traffic and time that the run would need, and do not run it."""
    track: tuple[str, ...] = ()
    """Send the numbers of each round to these trackers: tensorboard, wandb, mlflow, trackio; with
    options as calls, "wandb(project='clients')". Each is an extra: fedjax-lora[tensorboard]."""
    target: str | None = None
    """With --explain: compile the round for this target, which need not be at hand, and print what
    its compiler says. v5e, v5p or v6e with the topology of a TPU slice (v5e:4x4), h100 or h200 with
    a number (h100:4). Several chips imply --mode sharded."""
    distributed: bool = False
    """Run as one of several processes, each with its own devices; implies --mode sharded. On a TPU
    pod, under Slurm, Open MPI and Kubernetes JAX finds the other processes; elsewhere give the
    three options that follow, as to jax.distributed.initialize."""
    coordinator_address: str | None = None
    """HOST:PORT of process 0, the same on all processes."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Number of this process, from 0; process 0 writes the results."""
    run: tyro.conf.OmitArgPrefixes[RunConfig] = dataclasses.field(default_factory=RunConfig)


def default_out(config: RunConfig) -> pathlib.Path:
    """Return the result folder of a run for which none is given."""
    words = (config.data.task, config.federation.method, f"seed{config.seed}")
    return pathlib.Path("runs") / "-".join(re.sub(r"\W+", "_", word).strip("_") for word in words)


def main(args: Sequence[str]) -> int:
    """``fedjax-lora run``; returns the exit status (130 or 143 if stopped)."""
    refuse_renamed(args)
    default = RunOptions(run=base_config(args))
    if not {"-h", "--help"}.isdisjoint(args):
        print_run_help(default.run)
        raise SystemExit(0)
    args = ["--help" if word == "--help-all" else word for word in args]
    options = tyro.cli(RunOptions, args=args, prog="fedjax-lora run", default=default)
    check_choices(options.run)
    check_trackers(options.track)
    if options.target is not None:
        if not options.explain or options.distributed or options.coordinator_address:
            raise InputError(
                "--target says what to compile for, not where to run; give it with --explain, in "
                "one process."
            )
        config = check_target(options.run, options.target)
        options = dataclasses.replace(options, run=config)
    if options.resume is not None and "--model" not in {word.partition("=")[0] for word in args}:
        check_base(options.resume, options.run.model.model)
    return execute(options)


def execute(options: RunOptions) -> int:
    """Run a config and print its progress; returns the exit status."""
    if options.target is not None:
        prepare_target(options.target)
    process = (options.coordinator_address, options.num_processes, options.process_id)
    if not options.distributed and process == (None, None, None):
        _check_folder(options)
        return _execute(options)
    # Read when JAX is loaded: its service logs a lost process, of which we tell in a sentence.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Imported here: --help and wrong options should not wait for JAX.
    from fedjax_lora.core import distributed

    sharded = dataclasses.replace(options.run.execution, mode="sharded")
    options = dataclasses.replace(options, run=dataclasses.replace(options.run, execution=sharded))
    with distributed.initialized(*process, advice=_start_again(options)):
        with distributed.raise_on_all():
            if distributed.is_first():
                _check_folder(options)
        return _execute(options)


def _folder(options: RunOptions) -> pathlib.Path:
    """Return the result folder of a run."""
    return options.resume or options.out or default_out(options.run)


def _check_folder(options: RunOptions) -> None:
    """Refuse a result folder that the run could not take, before anything is loaded for it.

    Raises:
      InputError: it holds another run, no run to resume, or other files.
    """
    from fedjax_lora.runs.folder import RunFolder

    _check_resume(options)
    if not options.explain:
        RunFolder.claim(
            _folder(options),
            options.run,
            overwrite=options.overwrite,
            resume=options.resume is not None,
        ).release()


def _start_again(options: RunOptions) -> str:
    """Say how a run of several processes goes on after one of them has died."""
    out = shlex.quote(str(_folder(options)))
    return f"start all processes again, with --resume {out} if that folder holds a run"


def _execute(options: RunOptions) -> int:
    """`execute` in one process, which may be one of several that run together."""
    from fedjax_lora.core import distributed
    from fedjax_lora.core.cache import enable_compilation_cache

    enable_compilation_cache()
    console = make_console(quiet=not distributed.is_first())
    if options.explain:
        with distributed.raise_on_all():
            lines = explain(options.run, options.target)
        console.print("\n".join(lines))
        return 0
    out = _folder(options)
    trackers = options.track if distributed.is_first() else ()
    with contextlib.ExitStack() as stack:
        with distributed.raise_on_all():
            tracking = track(trackers, options.run, out, resume=options.resume is not None)
            log = stack.enter_context(tracking)
        return _run(options, out, console, log)


def _run(options: RunOptions, out: pathlib.Path, console: Console, log: Log) -> int:
    """Run a config into a folder, with a row on the terminal for each round."""
    from fedjax_lora.core import distributed
    from fedjax_lora.core.cache import cache_dir
    from fedjax_lora.runs.loading import load_assets
    from fedjax_lora.runs.run import run

    config = options.run
    with RoundsBar(console, config.federation.rounds) as bar:
        console.print(f"{config.data.task}: {config.federation.method}, loading ...")
        with distributed.raise_on_all():
            assets = load_assets(config, cache_dir=str(cache_dir() / "tokens"))
        print_prompt_notes(console, assets.task.task, assets.model.tokenizer)
        metric = assets.task.task.metric
        print_row = row_printer(console, metric)

        def on_round(record: Record) -> None:
            print_row(record)
            log(record)
            bar.count(record)

        try:
            with after_this_round() as signal:
                result = run(
                    config,
                    out=out,
                    overwrite=options.overwrite,
                    resume=options.resume is not None,
                    assets=assets,
                    on_round=on_round,
                    on_phase=bar.phase,
                    stop=signal,
                )
        except Stopped as stopped:
            command = f"fedjax-lora run --resume {shlex.quote(str(out))}"
            console.print(f"{stopped}; resume with: {command}")
            return 128 + max(distributed.gather(signal()))
        if not bar.rounds:
            console.print(f"{out} is finished; give a larger --rounds to extend it")
        elif len(result.records) < config.federation.rounds:
            console.print(
                f"ended after round {len(result.records)} of {config.federation.rounds}: "
                f"{_reason(config.federation)}"
            )
    print_summary(console, result.summary, metric, out)
    return 0


def _reason(federation: FederationConfig) -> str:
    """What may have ended a run before its last round: its stopping rule or its budget."""
    budgets = [spec for spec in federation.updates if "budget" in spec]
    return " or ".join([federation.stop] * (federation.stop != "never") + budgets)


def _check_resume(options: RunOptions) -> None:
    others = {"--out": options.out, "--config": options.config_file}
    given = [name for name, value in others.items() if value is not None]
    if options.resume and (given or options.overwrite):
        raise InputError(
            f"--resume takes the folder and its config; leave out {(given or ['--overwrite'])[0]}."
        )
