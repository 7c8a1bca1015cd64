"""``fedjax-lora predict``: texts in, labels and probabilities or a language model's answers out."""

import csv
import dataclasses
import io
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import tyro

from fedjax_lora.core.errors import InputError, raise_all

if TYPE_CHECKING:
    from fedjax_lora.interop import TrainedModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictOptions:
    r"""Label or answer texts with the model of a run, of an adapter folder or of a checkpoint.

    Texts come from a csv, tsv, jsonl or parquet file with named columns, from any other file with
    one text a line, or from standard input likewise; a model of pairs takes two texts separated
    by a tab. Written are one line per text: its label, and the probability of every class (of a
    regression task, the score).

    A language model takes texts as instructions, puts them as in its training, and writes its
    answers greedily: one column in tsv, quoted where it must be, or one object a line in jsonl.

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
    text: str | None = None
    """Column of the text, in a file with columns: "text", or "instruction" for a language model."""
    pair: str | None = None
    """Column of the second text, for a model of pairs: "pair". For a language model, the column of
    what an instruction is about; by default there is none."""
    model: str | None = None
    """The base model of an adapter, if it is not where the folder says."""
    pooling: Literal["family", "mean"] | None = None
    """What the classifier of an adapter reads that was not made by fedjax-lora."""
    prompt_format: Literal["auto", "chat", "alpaca", "plain"] | None = None
    """How a language model is prompted; as in its training by default, and for an adapter or a
    checkpoint that does not say it the tokenizer's chat template, or Alpaca's prompts."""
    answer_tokens: int | None = None
    """The most tokens of an answer; by default those of the language model's task."""
    batch: int = 64
    """Texts computed at once."""


def main(args: Sequence[str]) -> None:
    """Predict as the arguments say.

    Raises:
      InputError: no model, no texts, or a file that cannot be read or written.
    """
    options = tyro.cli(PredictOptions, args=args, prog="fedjax-lora predict")
    given = (("batch", options.batch), ("answer_tokens", options.answer_tokens))
    low = [f"{n} must be at least 1, got {x}" for n, x in given if x is not None and x < 1]
    raise_all("Options", low)
    # Imported here: --help and wrong options should not wait for JAX.
    from fedjax_lora.cli.run_or_model import check_options, open_folder
    from fedjax_lora.core.cache import enable_compilation_cache

    enable_compilation_cache()
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
    lines = (_answered if model.metadata.language else _labelled)(options, model)
    if options.out is None:
        sys.stdout.writelines(lines)
        return
    try:
        options.out.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise InputError(f"Output {options.out} cannot be written: {error.strerror}.") from error


def _labelled(options: PredictOptions, model: "TrainedModel") -> Iterator[str]:
    """What is written of a classifier."""
    from fedjax_lora.interop import probabilities

    names = [options.text or "text", *([options.pair or "pair"] if model.metadata.pair else [])]
    texts, *pairs = read_texts(options.input, names)
    found = probabilities(model, texts, pairs[0] if pairs else None, batch=options.batch)
    return _WRITERS[options.format](texts, found, model.metadata.classes)


def _answered(options: PredictOptions, model: "TrainedModel") -> Iterator[str]:
    """What is written of a language model."""
    from fedjax_lora.interop import answers

    names = [options.text or "instruction", *([options.pair] if options.pair else [])]
    texts, *contexts = read_texts(options.input, names)
    found = answers(
        model,
        texts,
        contexts[0] if contexts else None,
        prompt_format=options.prompt_format,
        answer_tokens=options.answer_tokens,
        batch=options.batch,
    )
    if options.format == "tsv":
        return _table([["answer"], *([answer] for answer in found)])
    rows = ({"text": x, "answer": y} for x, y in zip(texts, found, strict=True))
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_texts(file: pathlib.Path | None, names: Sequence[str]) -> list[list[str]]:
    """Texts of a file, or of standard input if None, and with a second name second texts.

    Raises:
      InputError: a file that cannot be read, a missing column or second text; no texts at all.
    """
    from fedjax_lora.data.datasets.table_readers import columns_of

    columns = None if file is None else columns_of(file, names)
    if columns is None:
        columns = dict(zip(names, _lines(file, len(names)), strict=True))
    found = [[str(value) for value in columns[name]] for name in names]
    if not found[0]:
        raise InputError(f"{_name(file)} holds no texts; write one a line.")
    return found


def _name(file: pathlib.Path | None) -> str:
    return "standard input" if file is None else str(file)


def _standard_input() -> str:
    """All of it, as the text of a file is read; what the terminal is set to does not matter.

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
    """Columns of lines that are cut at tabs into so many parts (a single part keeps its tabs)."""
    if file is None:
        whole = _standard_input()
    else:
        from fedjax_lora.data.datasets.table_readers import open_text

        with open_text(file) as stream:
            whole = stream.read()
    rows = [line.split("\t") if parts > 1 else [line] for line in whole.splitlines()]
    for number, row in enumerate(rows, start=1):
        if len(row) != parts:
            raise InputError(
                f"{_name(file)} line {number} has {len(row)} texts where this model reads {parts}, "
                "separated by a tab."
            )
    return [[row[n] for row in rows] for n in range(parts)]


def _tsv(texts: Sequence[str], found: Any, classes: Sequence[str]) -> Iterator[str]:
    if not classes:
        return _table([["score"], *([f"{row[0]:.6g}"] for row in found)])
    rows = [["label", "probability", *classes]]
    for row in found:
        top = int(row.argmax())
        rows.append([classes[top], f"{row[top]:.6f}", *(f"{x:.6f}" for x in row)])
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows, the header first; what holds a tab or a line break is quoted."""
    buffer = io.StringIO()
    csv.writer(buffer, delimiter="\t", lineterminator="\n").writerows(rows)
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
