"""A small run as a real process, and operations on it."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.robustness.interruptions import ROUNDS

OUTPUTS = ("metrics.jsonl", "adapter/adapter_model.safetensors", "adapter/adapter_config.json")
"""Files whose bytes depend on the config only."""

CLASSES = ("north", "east", "south", "west")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *CLASSES, *(f"word{n}" for n in range(40)))
DEADLINE = 1200.0  # seconds; forty times what anything takes on an idle machine


class Workspace(NamedTuple):
    """A folder with a small model, text files, and its own caches; and the rounds of its runs."""

    path: pathlib.Path
    rounds: int = ROUNDS

    def command(self, *options: str) -> list[str]:
        """Return the command line of a run."""
        task = "file(train='train.csv', test='test.csv', text='text', label='label')"
        given = {
            "task": task,
            "data-dir": str(self.path),
            "model": str(self.path / "model"),
            "max-length": "8",
            "clients": "6",
            "cohort": "3",
            "rounds": str(self.rounds),
            "batch": "4",
            "ranks": "tiers(ranks=[1, 2, 4])",
            "schedule": "linear(end=0.1)",
            "step-shapes": "1",
        } | dict(option.removeprefix("--").split("=", 1) for option in options)
        return [*CLI, *(f"--{name}={value}" for name, value in given.items())]

    def start(self, command: Sequence[str]) -> "subprocess.Popen[str]":
        """Start a command and collect its output."""
        env = os.environ | {
            "FEDJAX_LORA_CACHE": str(self.path / "cache"),
            "JAX_PLATFORMS": "cpu",
            "USE_TORCH": "0",  # else the tokenizer library imports it, for seconds
        }
        return subprocess.Popen(
            command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )


CLI = [sys.executable, "-m", "fedjax_lora", "run"]


class Ended(NamedTuple):
    """Exit status and output of a process."""

    status: int
    output: str

    @property
    def sentence(self) -> str:
        """The last line of the output."""
        return self.output.strip().splitlines()[-1] if self.output.strip() else ""


def prepare(path: pathlib.Path, *, rounds: int = ROUNDS) -> Workspace:
    """Write a random two-layer encoder with a tokenizer, and texts that contain their class."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from torch import manual_seed
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    # A shell that starts this in the background lets it and its children ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    path.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, Any] = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 16,
        "num_labels": len(CLASSES),
    }
    manual_seed(0)
    BertForSequenceClassification(BertConfig(**sizes)).save_pretrained(path / "model")
    vocabulary = {word: n for n, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(path / "model")
    rng = np.random.default_rng(0)
    for name, count in (("train", 120), ("test", 40)):
        label = rng.integers(0, len(CLASSES), count)
        noise = rng.integers(0, 40, (count, 3))
        rows = [
            f"{CLASSES[k]} {' '.join(f'word{n}' for n in words)},{CLASSES[k]}"
            for k, words in zip(label, noise, strict=True)
        ]
        (path / f"{name}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return Workspace(path, rounds)


def ended(process: "subprocess.Popen[str]") -> Ended:
    """Wait for the end of a process."""
    output, _ = process.communicate(timeout=DEADLINE)
    return Ended(process.returncode, output)


def call(target: Workspace, command: Sequence[str]) -> Ended:
    """Run a command to its end."""
    return ended(target.start(command))


def resume(target: Workspace, out: pathlib.Path) -> Ended:
    """Resume a run, or start it if its config has not been written."""
    if (out / "config.json").exists():
        return call(target, [*CLI, f"--resume={out}"])
    return call(target, target.command(f"--out={out}"))


def outputs(out: pathlib.Path) -> dict[str, bytes]:
    """Read the compared outputs of a finished run."""
    return {name: (out / name).read_bytes() for name in OUTPUTS}


def rounds_done(out: pathlib.Path) -> int:
    """Number of rounds in the metrics file."""
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def phase(out: pathlib.Path, rounds: int) -> str:
    """Infer from its folder what a run was doing when it ended."""
    if not (out / "config.json").exists():
        return "loading"
    if (out / "summary.json").exists():
        return "ended"
    if list((out / "checkpoints").glob(".*.partial")):
        return "writing a checkpoint"
    done = rounds_done(out)
    if done == 0:
        return "compiling, first round"
    return "writing results" if done == rounds else "rounds"


def wait_for(
    process: "subprocess.Popen[str]", condition: Callable[[], Any], *, poll: float = 0.001
) -> None:
    """Wait until a condition holds or the process has ended."""
    end = time.monotonic() + DEADLINE
    while process.poll() is None and not condition():
        if time.monotonic() > end:
            process.kill()
            raise TimeoutError("The condition of the trial did not become true.")
        time.sleep(poll)


def kill(process: "subprocess.Popen[str]", number: int = signal.SIGKILL) -> Ended:
    """Send a signal, unless the process has ended already, and wait for the end."""
    if process.poll() is None:
        process.send_signal(number)
    return ended(process)


def damage(path: pathlib.Path, how: str, rng: np.random.Generator) -> None:
    """Truncate a file (append a byte if it is empty) or flip one of its bits."""
    content = bytearray(path.read_bytes())
    if not content:
        content = bytearray(b"\0")
    elif how == "truncated":
        content = content[: int(rng.integers(0, len(content)))]
    else:
        content[int(rng.integers(0, len(content)))] ^= 1 << int(rng.integers(0, 8))
    path.write_bytes(content)


def checkpoint_files(out: pathlib.Path) -> list[pathlib.Path]:
    """The files of the newest checkpoint, relative to it."""
    newest = newest_checkpoint(out)
    return sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())


def newest_checkpoint(out: pathlib.Path) -> pathlib.Path:
    """The folder of the newest checkpoint."""
    return max((out / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))


def fresh(out: pathlib.Path) -> pathlib.Path:
    """Remove a folder; returns its path."""
    shutil.rmtree(out, ignore_errors=True)
    return out
