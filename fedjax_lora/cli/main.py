"""The command line ``fedjax-lora``: the commands in `COMMANDS`, errors and exit status."""

import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence

from fedjax_lora import __version__
from fedjax_lora.cli import (
    chat_demo,
    compare,
    completion,
    deploy,
    evaluate,
    export,
    inspect,
    predict,
    run,
    tasks,
)
from fedjax_lora.cli.config_options import base_config, refuse_renamed
from fedjax_lora.cli.terminal import (
    make_console,
    print_table,
)
from fedjax_lora.core.errors import InputError, unknown
from fedjax_lora.runs.method_description import describe
from fedjax_lora.runs.registry_source import read_methods, read_models

USAGE = """usage: fedjax-lora COMMAND [OPTIONS]

Federated LoRA fine-tuning of one language model with clients of different ranks.

commands:
  run       run a config; without options the demo on the standard library
  chat-demo  tune a chat model of 135 million parameters: a second demo, of a few minutes
  compare   run methods x seeds x any options, and write tables, a figure and a report
  evaluate  evaluate the model of a run, an adapter or a checkpoint; also per client and rank
  predict   predict labels and probabilities of texts, or generate answers
  export    write the model of a run, or of one client, as a PEFT adapter or merged checkpoint
  inspect   show the config, progress and files of a run folder
  methods   list the federated methods, with their papers; methods NAME describes one
  models    list the pretrained models that have a name
  tasks     list the tasks that have a name; with a name, its options and three examples
  deploy    a federation of real machines: try | new | serve | run
  client    run one site of such a federation, on the machine with its data
  completion  print a script for tab completion: source <(fedjax-lora completion bash)

fedjax-lora COMMAND --help lists a command's options; run --help those of a first day, and
run --help-all every one."""


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
        "run": run.RunOptions,
        "chat-demo": chat_demo.ChatDemoOptions,
        "compare": compare.CompareOptions,
        "evaluate": evaluate.EvaluateOptions,
        "predict": predict.PredictOptions,
        "export": export.ExportOptions,
        "inspect": inspect.InspectOptions,
    }
    print(completion.script(shell, options, values))


COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "run": run.main,
    "chat-demo": chat_demo.main,
    "compare": compare_command,
    "evaluate": evaluate.main,
    "predict": predict.main,
    "export": export.main,
    "inspect": inspect.main,
    "methods": methods_command,
    "models": models_command,
    "tasks": tasks.main,
    "deploy": deploy.main,
    "client": deploy.client_command,
    "completion": completion_command,
}


_SMALLER_RUN = (
    "give a smaller --clients-per-step, --batch or --eval-batch, or --remat; "
    "fedjax-lora run --explain estimates what a run needs"
)
LESS_MEMORY = {
    "run": _SMALLER_RUN,
    "chat-demo": "use a machine with more",
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
