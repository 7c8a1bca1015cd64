"""``fedjax-lora predict``: predict labels and probabilities of texts, or generate answers."""

import csv
import dataclasses
import io
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import tyro

from fedjax_lora.cli.folders import check_input, check_output, need_model, need_run
from fedjax_lora.cli.terminal import write_output
from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.core.safe_text import json_text, spreadsheet_cell
from fedjax_lora.runs.choices import check_model

if TYPE_CHECKING:
    from fedjax_lora.interop import TrainedModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictOptions:
    r"""Label or answer texts with the model of a run, of an adapter folder or of a checkpoint.

    Texts come from a csv, tsv, jsonl, json, parquet or arrow file with named columns, or from any
    other file or standard input with one text per line (an empty line is an empty text); a model of
    pairs reads two texts separated by a tab. The output has one line per text: its label and the
    probability of every class, or the score in a regression task. In tsv, names and answers are
    safe to show: control characters are escaped, and an apostrophe precedes what a spreadsheet
    would compute; jsonl keeps every text as it is.

    For a language model, texts are instructions: they are prompted as in its training, and answers
    are generated greedily, as one column in tsv (quoted if necessary) or one object per line in
    jsonl.

    Example: echo "Opens a file" | fedjax-lora predict runs/demo
    """

    where: tyro.conf.Positional[pathlib.Path]
    """Folder of a run, an adapter or a checkpoint."""
    input: pathlib.Path | None = None
    """File with texts; by default standard input."""
    out: pathlib.Path | None = None
    """File for the predictions; by default standard output."""
    format: Literal["tsv", "jsonl"] = "tsv"
    """Format of the predictions."""
    text: str | None = None
    """Column of the text, in a file with columns: "text", or "instruction" for a language model."""
    pair: str | None = None
    """Column of the second text, for a model of pairs: "pair". For a language model, the column of
    an instruction's context; by default there is none."""
    best: bool = False
    """Use the model of a run's checkpoint with the best score, as `export --best` writes it; it is
    opened with the run's data."""
    model: str | None = None
    """Base model of an adapter, if it is not the one that the folder names."""
    pooling: Literal["family", "mean"] | None = None
    """Pooling of the classifier, for an adapter that fedjax-lora has not written."""
    prompt_format: Literal["auto", "chat", "alpaca", "plain", "raw"] | None = None
    """Prompt format of a language model; by default that of its training. If an adapter or a
    checkpoint does not name one, it is the tokenizer's chat template, or else Alpaca's prompts."""
    answer_tokens: int | None = None
    """Largest number of tokens of an answer; by default that of the language model's task."""
    batch: int = 64
    """Texts computed at the same time."""
    precision: Literal["default", "highest"] | None = None
    """Precision of float32 products: a TPU rounds their factors to bfloat16 and a GPU to TF32,
    unless this is highest. By default that of the run; for other folders, default."""


def main(args: Sequence[str]) -> None:
    """Predict texts and write the predictions.

    Raises:
      InputError: no model, no texts, or a file that cannot be read or written.
    """
    options = tyro.cli(PredictOptions, args=args, prog="fedjax-lora predict")
    counts = (("batch", options.batch), ("answer_tokens", options.answer_tokens))
    low = [f"{n} must be at least 1, got {x}" for n, x in counts if x is not None and x < 1]
    raise_all("Options", low)
    (need_run if options.best else need_model)(options.where)
    check_input(options.input)
    check_output(options.out)
    if options.model is not None:
        check_model(options.model)
    # Imported here: --help and wrong options should not wait for JAX.
    from fedjax_lora.cli.run_or_model import (
        check_options,
        open_best,
        open_folder,
        with_precision,
    )
    from fedjax_lora.core.cache import enable_compilation_cache

    enable_compilation_cache()
    if options.best:
        model = open_best(options.where, model=options.model)
    else:
        model = open_folder(options.where, model=options.model, pooling=options.pooling)
    check_options(
        options.where,
        model,
        model=options.model,
        pooling=options.pooling,
        pair=options.pair,
        prompt_format=options.prompt_format,
        answer_tokens=options.answer_tokens,
    )
    with with_precision(options.where, options.precision):
        lines = (_answered if model.metadata.language else _labelled)(options, model)
    if options.out is None:
        sys.stdout.writelines(lines)
        return
    write_output(options.out, "".join(lines))


def _labelled(options: PredictOptions, model: "TrainedModel") -> Iterator[str]:
    """Return the output lines of a classifier or regression model."""
    from fedjax_lora.interop import probabilities

    names = [options.text or "text", *([options.pair or "pair"] if model.metadata.pair else [])]
    texts, *pairs = read_texts(options.input, names)
    outputs = probabilities(model, texts, pairs[0] if pairs else None, batch=options.batch)
    return _WRITERS[options.format](texts, outputs, model.metadata.classes)


def _answered(options: PredictOptions, model: "TrainedModel") -> Iterator[str]:
    """Return the output lines of a language model."""
    from fedjax_lora.interop import answers

    names = [options.text or "instruction", *([options.pair] if options.pair else [])]
    texts, *contexts = read_texts(options.input, names)
    generated = answers(
        model,
        texts,
        contexts[0] if contexts else None,
        prompt_format=options.prompt_format,
        answer_tokens=options.answer_tokens,
        batch=options.batch,
    )
    if options.format == "tsv":
        return _table([["answer"], *([answer] for answer in generated)])
    rows = ({"text": x, "answer": y} for x, y in zip(texts, generated, strict=True))
    return (json_text(row) + "\n" for row in rows)


def read_texts(file: pathlib.Path | None, names: Sequence[str]) -> list[list[str]]:
    """Read columns of texts.

    Args:
      file: a table, or a file with one text per line; None for standard input.
      names: names of the columns; in a file without columns, the number of texts per line.

    Returns:
      For each name the texts of the column.

    Raises:
      InputError: a file that cannot be read, a missing column or second text; no texts at all.
    """
    from fedjax_lora.data.datasets.table_readers import columns_of

    columns = None if file is None else columns_of(file, names)
    if columns is None:
        columns = dict(zip(names, _lines(file, len(names)), strict=True))
    texts = [[str(value) for value in columns[name]] for name in names]
    if not texts[0]:
        raise InputError(f"{_name(file)} holds no texts; write one a line.")
    return texts


def split_lines(text: str) -> list[str]:
    r"""Split at ``\n`` and ``\r\n`` alone, as other programs count lines.

    An empty line is an empty text, so that output and input have the same numbers of lines; the
    line break at the end of the last line begins no text.

    >>> split_lines("a\u2028b\r\n\nc\n")
    ['a\u2028b', '', 'c']
    """
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _name(file: pathlib.Path | None) -> str:
    return "standard input" if file is None else str(file)


def _standard_input() -> str:
    """Read standard input as UTF-8, whatever the encoding of the terminal.

    Raises:
      InputError: it is not UTF-8.
    """
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{_name(None)} is not UTF-8 text ({error}); convert it to UTF-8."
        ) from error


def _lines(file: pathlib.Path | None, parts: int) -> list[list[str]]:
    """Read lines as columns, split at tabs into ``parts`` (a single part keeps its tabs)."""
    if file is None:
        whole = _standard_input()
    else:
        from fedjax_lora.data.datasets.text_files import open_text

        with open_text(file) as stream:
            whole = stream.read()
    rows = [line.split("\t") if parts > 1 else [line] for line in split_lines(whole)]
    for number, row in enumerate(rows, start=1):
        if len(row) != parts:
            raise InputError(
                f"{_name(file)} line {number} has {len(row)} texts where this model reads {parts}, "
                "separated by a tab."
            )
    return [[row[n] for row in rows] for n in range(parts)]


def _tsv(texts: Sequence[str], outputs: Any, classes: Sequence[str]) -> Iterator[str]:
    if not classes:
        return _table([["score"], *([f"{row[0]:.6g}"] for row in outputs)])
    rows = [["label", "probability", *classes]]
    for row in outputs:
        top = int(row.argmax())
        rows.append([classes[top], f"{row[top]:.6f}", *(f"{x:.6f}" for x in row)])
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Format rows, the header first; cells with a tab or a line break are quoted."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="\t", lineterminator="\n")
    writer.writerows([spreadsheet_cell(cell) for cell in row] for row in rows)
    yield buffer.getvalue()


def _jsonl(texts: Sequence[str], outputs: Any, classes: Sequence[str]) -> Iterator[str]:
    for text, row in zip(texts, outputs.tolist(), strict=True):
        values: dict[str, Any] = {"text": text}
        if classes:
            values["label"] = classes[max(range(len(row)), key=row.__getitem__)]
            values["probabilities"] = dict(zip(classes, row, strict=True))
        else:
            values["score"] = row[0]
        yield json_text(values) + "\n"


_WRITERS = {"tsv": _tsv, "jsonl": _jsonl}
