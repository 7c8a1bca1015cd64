"""Judge cases and record them; every part with its grammar, its writer and its size."""

import contextlib
import functools
import io
import itertools
import os
import pathlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from experiments.robustness.fuzz import (
    adapter_files,
    adapters,
    checkpoint_files,
    checkpoints,
    configs,
    conversations,
    grammar,
    tables,
    templates,
)
from experiments.robustness.fuzz.case import UNWRITTEN, Case, Outcome, Writer, judge
from experiments.tools import json_lines


class Part(NamedTuple):
    """A grammar with its oracle.

    Attributes:
      cases: generates endlessly many cases.
      writer: makes the writer of the cases, given a folder that they share.
      size: number of comparisons of a full run.
    """

    cases: Callable[[], Iterator[Case]]
    writer: Callable[[pathlib.Path], Writer]
    size: int


PARTS = {
    adapters.PART: Part(
        adapters.cases, lambda shared: functools.partial(adapter_files.write, shared=shared), 300
    ),
    checkpoints.PART: Part(checkpoints.cases, lambda _: checkpoint_files.write, 160),
    tables.PART: Part(tables.cases, lambda _: tables.write, 200),
    templates.PART: Part(templates.cases, lambda _: templates.write, 150),
    conversations.PART: Part(conversations.cases, lambda _: conversations.write, 150),
    configs.PART: Part(configs.cases, lambda _: configs.write, 150),
}


def compare(
    case: Case, writer: Writer, folder: pathlib.Path, *, ways: int | None = None
) -> tuple[Case, Outcome]:
    """Judge a case in an empty folder, see `judge`.

    Options can exclude each other, so that the other library cannot write the input; the case is
    then judged with only the option that it is about.
    """
    outcome = _judge_quietly(case, writer, folder, ways)
    if outcome.verdict == UNWRITTEN and "about" in case.options:
        case = grammar.simplified(case)
        outcome = _judge_quietly(case, writer, folder, ways)
    return case, outcome


def _judge_quietly(case: Case, writer: Writer, folder: pathlib.Path, ways: int | None) -> Outcome:
    place = folder / case.name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            outcome = judge(case, writer, place, ways=ways)
    finally:
        shutil.rmtree(place)
    # Paths differ from run to run.
    prefix = f"{folder}{os.sep}"
    return outcome._replace(
        ours=outcome.ours.replace(prefix, ""), theirs=outcome.theirs.replace(prefix, "")
    )


def run(
    part: str, file: pathlib.Path, *, size: int | None = None, again: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Judge cases of a part until there are enough, and append them to a file.

    Cases that the file holds are not judged again; those that cannot be written do not count.

    Args:
      part: a name in `PARTS`.
      file: JSON-lines file of records.
      size: number of comparisons; the part's own by default.
      again: verdicts of recorded cases that are judged again.

    Returns:
      The records of the part.
    """
    chosen, known = PARTS[part], json_lines.by_name(file)
    records: list[dict[str, Any]] = []
    compared = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        writer = chosen.writer(pathlib.Path(folder))
        for case in chosen.cases():
            record = known.get(case.name)
            if record is None or record["verdict"] in again:
                record = as_record(*compare(case, writer, pathlib.Path(folder)))
                json_lines.append(file, record)
                print(f"{case.name}: {record['verdict']}", flush=True)
            records.append(record)
            compared += record["verdict"] != UNWRITTEN
            if compared == (chosen.size if size is None else size):
                return records
    raise AssertionError("the cases of a part do not end")


def sample(
    part: str, numbers: Collection[int], folder: pathlib.Path, *, ways: int | None = None
) -> dict[str, Outcome]:
    """Judge some cases of a part, for a test; outcomes by name and options."""
    writer = PARTS[part].writer(folder)
    cases = itertools.islice(PARTS[part].cases(), max(numbers) + 1)
    judged = (compare(case, writer, folder, ways=ways) for case in cases if case.number in numbers)
    return {f"{case.name} {dict(case.options)}": outcome for case, outcome in judged}


def as_record(case: Case, outcome: Outcome) -> dict[str, Any]:
    """A case and its outcome as JSON values, without empty fields."""
    fields = {name: value for name, value in outcome._asdict().items() if value not in ("", None)}
    if outcome.difference is not None:
        fields["difference"] = float(f"{outcome.difference:.1e}")
    return {"name": case.name, "part": case.part, "options": dict(case.options), **fields}
