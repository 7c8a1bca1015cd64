"""The command line ``fedjax-lora``: the commands in `COMMANDS`, errors and exit status."""

import contextlib
import dataclasses
import os
import pathlib
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated

import tyro
from rich.console import Console

from fedjax_lora import __version__
from fedjax_lora.cli import compare, completion, evaluate, export, inspect, predict, tasks
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
    print_table,
    row_printer,
)
from fedjax_lora.core.errors import InputError, Stopped, unknown
from fedjax_lora.core.json_values import Record
from fedjax_lora.runs.choices import check_choices
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.method_description import describe
from fedjax_lora.runs.registry_source import read_methods, read_models
from fedjax_lora.runs.tracking import Log, check_trackers, track

USAGE = """usage: fedjax-lora COMMAND [OPTIONS]

Federated LoRA fine-tuning of one language model with clients of different ranks.

commands:
  run       run a config; without options the demo on the standard library
  compare   run methods x seeds x any options, and write tables, a figure and a report
  evaluate  evaluate the model of a run, an adapter or a checkpoint; also per client and rank
  predict   predict labels and probabilities of texts, or generate answers
  export    write the model of a run, or of one client, as a PEFT adapter or merged checkpoint
  inspect   show the config, progress and files of a run folder
  methods   list the federated methods, with their papers; methods NAME describes one
  models    list the pretrained models that have a name
  tasks     list the tasks that have a name; with a name, its options and three examples
  completion  print a script for tab completion: source <(fedjax-lora completion bash)

fedjax-lora COMMAND --help lists a command's options; run --help those of a first day, and
run --help-all every one."""


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


def run_command(args: Sequence[str]) -> int:
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
                f"{config.federation.stop}"
            )
    print_summary(console, result.summary, metric, out)
    return 0


def _check_resume(options: RunOptions) -> None:
    others = {"--out": options.out, "--config": options.config_file}
    given = [name for name, value in others.items() if value is not None]
    if options.resume and (given or options.overwrite):
        raise InputError(
            f"--resume takes the folder and its config; leave out {(given or ['--overwrite'])[0]}."
        )


def compare_command(args: Sequence[str]) -> int:
    """``fedjax-lora compare``; returns the exit status, 1 if a run failed."""
    refuse_renamed(args)
    return compare.main(args, base_config(args))


def methods_command(args: Sequence[str]) -> None:
    """``fedjax-lora methods [NAME]``."""
    names = [word for word in args if not word.startswith("-")]
    if names:
        make_console().print("\n\n".join("\n".join(describe(name)) for name in names))
        return
    rows = [(name, summary, paper) for name, (summary, paper) in read_methods().items()]
    print_table("Federated methods", ("name", "what it does", "paper"), rows)


def models_command(args: Sequence[str]) -> None:
    """``fedjax-lora models``."""
    rows = [(name, model["summary"], model["url"]) for name, model in read_models().items()]
    print_table("Models; also any checkpoint folder or hub id", ("name", "what", "source"), rows)


def completion_command(args: Sequence[str]) -> None:
    """``fedjax-lora completion SHELL``."""
    from fedjax_lora.data import TASKS

    shell = completion.check_shell(args)
    methods, models = " ".join(read_methods()), " ".join(read_models())
    names = " ".join(TASKS)
    values = {"--method|--methods|methods": methods, "--model": models, "--task|tasks": names}
    options = dict.fromkeys(COMMANDS) | {
        "run": RunOptions,
        "compare": compare.CompareOptions,
        "evaluate": evaluate.EvaluateOptions,
        "predict": predict.PredictOptions,
        "export": export.ExportOptions,
        "inspect": inspect.InspectOptions,
    }
    print(completion.script(shell, options, values))


COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "run": run_command,
    "compare": compare_command,
    "evaluate": evaluate.main,
    "predict": predict.main,
    "export": export.main,
    "inspect": inspect.main,
    "methods": methods_command,
    "models": models_command,
    "tasks": tasks.main,
    "completion": completion_command,
}


_SMALLER_RUN = (
    "give a smaller --clients-per-step, --batch or --eval-batch, or --remat; "
    "fedjax-lora run --explain estimates what a run needs"
)
LESS_MEMORY = {
    "run": _SMALLER_RUN,
    "compare": _SMALLER_RUN,
    "evaluate": "give a smaller --batch",
    "predict": "give a smaller --batch",
}
"""What to do where the memory of a device or of the machine is too small, by command."""


def _out_of_memory(error: Exception) -> str | None:
    """Say which memory is too small according to an error; None for any other error."""
    line = str(error).partition("\n")[0]
    if isinstance(error, MemoryError):
        return f"This machine's memory is too small ({line or 'no allocation is named'})"
    if not re.search(r"RESOURCE_EXHAUSTED|out of memory", str(error), re.IGNORECASE):
        return None
    from jax.errors import JaxRuntimeError  # here: what raised it has loaded JAX

    of_device = isinstance(error, JaxRuntimeError)
    return f"The device's memory is too small ({line})" if of_device else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    It is 2 for bad input, and 1 if some of its runs failed or memory is too small.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            status = _answer(words)
        except SystemExit:  # of a parser that has printed its help
            print(end="", flush=True)
            raise
        print(end="", flush=True)  # a closed pipe is noticed here, not at exit
        return status
    except BrokenPipeError:
        # Who read the output has enough, as `head` does; nothing is left to be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _answer(words: Sequence[str]) -> int:
    """Print the version or the usage, or run a command; returns the exit status."""
    if words in (["--version"], ["-V"]):
        print(__version__)
        return 0
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if words else 2
    # datasets and transformers warn about things no user of a command line can act on.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    warnings.filterwarnings("ignore", category=UserWarning)
    return _run_command(words[0], words[1:])


def _run_command(name: str, args: Sequence[str]) -> int:
    """Run a command and print its expected errors as one sentence; returns the exit status."""
    try:
        if name not in COMMANDS:
            raise unknown("command", name, COMMANDS)
        return COMMANDS[name](args) or 0
    except InputError as error:
        print(f"fedjax-lora: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        too_small = _out_of_memory(error)
        if too_small is None:
            raise
        advice = LESS_MEMORY.get(name, "use one with more")
        print(f"fedjax-lora: {too_small}; {advice}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fedjax-lora: stopped", file=sys.stderr)
        return 130
