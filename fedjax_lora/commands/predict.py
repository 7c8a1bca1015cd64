"""``fedjax-lora predict``: texts in, labels and probabilities out."""

import csv
import dataclasses
import io
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import tyro

from fedjax_lora.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictOptions:
    r"""Label texts with the model of a run, of an adapter folder or of a checkpoint.

    Texts come from a csv, tsv, jsonl or parquet file with named columns, from any other file with
    one text a line, or from standard input likewise; a model of pairs takes two texts separated
    by a tab. Written are one line per text: its label, and the probability of every class (of a
    regression task, the score).

    Example: echo "Opens a file" | fedjax-lora predict runs/demo
    """

    where: tyro.conf.Positional[pathlib.Path]
    """Folder of a run, an adapter or a checkpoint."""
    input: pathlib.Path | None = None
    """File with texts; by default standard input."""
    out: pathlib.Path | None = None
    """File for the predictions; by default standard output."""
    format: Literal["tsv", "jsonl"] = "tsv"
    """How predictions are written."""
    text: str = "text"
    """Column of the text, in a file with columns."""
    pair: str = "pair"
    """Column of the second text, for a model of pairs."""
    model: str | None = None
    """The base model, if it is not where the folder says."""
    pooling: Literal["family", "mean"] | None = None
    """What the classifier of an adapter reads that was not made by fedjax-lora."""
    batch: int = 64
    """Texts computed at once."""


def main(args: Sequence[str]) -> None:
    """Predict as the arguments say.

    Raises:
      InputError: no model, no texts, or a file that cannot be read or written.
    """
    options = tyro.cli(PredictOptions, args=args, prog="fedjax-lora predict")
    if options.batch < 1:
        raise InputError(f"batch must be at least 1, got {options.batch}.")
    # Imported here: --help and wrong options should not wait for JAX.
    from fedjax_lora.cache import keep_compiled_programs
    from fedjax_lora.commands.folders import open_folder
    from fedjax_lora.exchange import probabilities

    keep_compiled_programs()
    opened = open_folder(options.where, model=options.model, pooling=options.pooling)
    texts, pairs = read_texts(options, pair=opened.about.pair)
    found = probabilities(opened, texts, pairs, batch=options.batch)
    lines = _WRITERS[options.format](texts, found, opened.about.classes)
    if options.out is None:
        sys.stdout.writelines(lines)
        return
    try:
        options.out.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise InputError(f"Output {options.out} cannot be written: {error.strerror}.") from error


def read_texts(options: PredictOptions, *, pair: bool) -> tuple[list[str], list[str] | None]:
    """The texts, and the second texts of a model of pairs.

    Raises:
      InputError: a file that cannot be read, a missing column or second text.
    """
    from fedjax_lora.data.readers import columns_of

    names = [options.text, options.pair] if pair else [options.text]
    columns = None if options.input is None else columns_of(options.input, names)
    if columns is None:
        columns = dict(zip(names, _lines(options.input, len(names)), strict=True))
    texts = [str(value) for value in columns[options.text]]
    return texts, [str(value) for value in columns[options.pair]] if pair else None


def _lines(file: pathlib.Path | None, parts: int) -> list[list[str]]:
    """Columns of lines that are cut at tabs into so many parts (a single part keeps its tabs)."""
    where = "standard input" if file is None else str(file)
    if file is None:
        whole = sys.stdin.read()
    else:
        from fedjax_lora.data.readers import open_text

        with open_text(file) as stream:
            whole = stream.read()
    rows = [line.split("\t") if parts > 1 else [line] for line in whole.splitlines()]
    for number, row in enumerate(rows, start=1):
        if len(row) != parts:
            raise InputError(
                f"{where} line {number} has {len(row)} texts where this model reads {parts}, "
                "separated by a tab."
            )
    return [[row[n] for row in rows] for n in range(parts)]


def _tsv(texts: Sequence[str], found: Any, classes: Sequence[str]) -> Iterator[str]:
    """A header and rows; a class's name is quoted where it must be."""
    buffer = io.StringIO()
    rows = csv.writer(buffer, delimiter="\t", lineterminator="\n")
    if not classes:
        rows.writerow(["score"])
        rows.writerows([f"{row[0]:.6g}"] for row in found)
    else:
        rows.writerow(["label", "probability", *classes])
        for row in found:
            top = int(row.argmax())
            rows.writerow([classes[top], f"{row[top]:.6f}", *(f"{x:.6f}" for x in row)])
    yield buffer.getvalue()


def _jsonl(texts: Sequence[str], found: Any, classes: Sequence[str]) -> Iterator[str]:
    for text, row in zip(texts, found.tolist(), strict=True):
        values: dict[str, Any] = {"text": text}
        if classes:
            values["label"] = classes[max(range(len(row)), key=row.__getitem__)]
            values["probabilities"] = dict(zip(classes, row, strict=True))
        else:
            values["score"] = row[0]
        yield json.dumps(values, ensure_ascii=False) + "\n"


_WRITERS = {"tsv": _tsv, "jsonl": _jsonl}
