"""``fedjax-lora export``: write the model of a run, or of one client, for other programs."""

import contextlib
import dataclasses
import pathlib
import re
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import tyro

from fedjax_lora.cli import push
from fedjax_lora.cli.folders import check_base, model_folder, need_run
from fedjax_lora.cli.terminal import make_console
from fedjax_lora.core import atomic_io
from fedjax_lora.core.errors import InputError
from fedjax_lora.runs.choices import check_model

if TYPE_CHECKING:
    from fedjax_lora.interop import TrainedModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write the model of a run for PyTorch: a PEFT adapter, or with --merged a plain checkpoint.

    If the run is not finished, the model is that of its newest checkpoint.
    """

    run: tyro.conf.Positional[pathlib.Path]
    """Folder of the run."""
    out: pathlib.Path | None = None
    """New or empty folder for the model; not needed with --push."""
    push: str | None = None
    """Upload the model with its card to this repository of the Hugging Face hub, USER/NAME. It is
    created if there is none; the token is that of `hf auth login` or HF_TOKEN."""
    private: bool = False
    """With --push: a repository that is created is private."""
    client: int | None = None
    """Write the model of this client (from 0) at its own rank, not the global model."""
    best: bool = False
    """Write the model of the checkpoint with the best score, not the last one; the score is that on
    validation data if the run has some, else on test data."""
    merged: bool = False
    """A checkpoint that transformers loads without PEFT: weights, config, tokenizer, model card."""
    pad_ranks: bool = True
    """Pad the adapter's layers with zeros to one rank and one scale, as llama.cpp and vLLM read it;
    --no-pad-ranks keeps the rank of each layer, which only PEFT reads right."""
    shard_size: str = "5GB"
    """Largest size of a file of merged weights."""
    data_dir: str | None = None
    """Present folder of the run's data, if it has moved (for --client, --best, unfinished runs)."""
    model: Annotated[str | None, tyro.conf.arg(name="model")] = None
    """Present folder of the run's base model, if it has moved."""


def main(args: Sequence[str]) -> None:
    """Write a model of a run into a folder, or upload it.

    Raises:
      InputError: no run, no such client, a folder that holds something or cannot be written, or
        the hub refuses.
    """
    options = tyro.cli(ExportOptions, args=args, prog="fedjax-lora export")
    _check_words(options)
    model = _open(options)
    what = "merged model" if options.merged else "adapter"
    with contextlib.ExitStack() as stack:
        out = options.out
        if out is None:
            out = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model"
        _write(options, model, out)
        if options.out is not None:
            make_console().print(f"{what} in {out}")
        if options.push is not None:
            make_console().print(
                f"{what} at {push.push(out, options.push, private=options.private)}"
            )


def _write(options: ExportOptions, model: "TrainedModel", out: pathlib.Path) -> None:
    # Imported here: --help and wrong options should not wait for JAX.
    from fedjax_lora import interop

    if options.push is not None and not options.merged:
        push.check_base(interop.public_base(model.metadata), options.push)
    if options.merged:
        size = options.shard_size
        write = lambda path: interop.save_merged(path, model, shard_size=size)  # noqa: E731
    else:
        pad = options.pad_ranks
        write = lambda path: interop.save_adapter(path, model, pad_ranks=pad)  # noqa: E731
    with atomic_io.reporting_write_errors(out):
        atomic_io.write_folder(out, write)


def _check_words(options: ExportOptions) -> None:
    """Check folders, names and sizes before JAX is imported.

    Raises:
      InputError: the first that is wrong.
    """
    need_run(options.run)
    if options.out is not None:
        _check_out(options.out)
    elif options.push is None:
        raise InputError("Say where the model is to go: a new folder --out, or --push USER/NAME.")
    if options.model is not None:
        check_model(options.model)
    size = options.shard_size
    if not re.fullmatch(r"\s*\d+(\.\d+)?\s*[KMGT]B\s*", size, re.IGNORECASE):
        raise InputError(f"Shard size {size!r} is not a size such as 500MB or 5GB.")
    if options.private and options.push is None:
        raise InputError("--private is about the repository of --push, which is not given.")
    if options.push is not None:
        push.check(options.push)


def _check_out(out: pathlib.Path) -> None:
    """Check that a folder can be written as a whole.

    Raises:
      InputError: it holds something, or is the current one.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"Output {out} is a file or holds files; choose a new folder with --out.")
    if out.exists() and out.samefile(pathlib.Path.cwd()):
        # It would be replaced as a whole, and the shell be left in a folder that is gone.
        raise InputError(f"Output {out} is the folder you are in; choose a new folder with --out.")


def _open(options: ExportOptions) -> "TrainedModel":
    """Open the model: from the run's adapter folder where that suffices, else a checkpoint."""
    from fedjax_lora.cli.run_or_model import open_folder
    from fedjax_lora.core.cache import cache_dir
    from fedjax_lora.runs import outputs
    from fedjax_lora.runs.resume import read_config, reopen

    folder = model_folder(options.run)
    is_last = options.client is None and not options.best
    if is_last and folder is not None and folder.name == outputs.ADAPTER:
        return open_folder(options.run, model=options.model)
    config = read_config(options.run, data_dir=options.data_dir, model=options.model)
    if options.model is None:
        check_base(options.run, config.model.model)
    cache = str(cache_dir() / "tokens")
    run, progress, history = reopen(options.run, config, best=options.best, cache_dir=cache)
    if options.client is None:
        return outputs.server_model(run, progress.state, history[-1])
    return outputs.client_model(run, progress, options.client)
