"""Cases, and what comes of comparing two programs on one."""

import itertools
import pathlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_lora import InputError

EQUAL, OURS, THEIRS, BOTH = "equal", "refused by us", "refused by them", "refused by both"
DIFFERENT, CRASH, UNWRITTEN = "different", "crash", "not written"
VERDICTS = (EQUAL, OURS, THEIRS, BOTH, DIFFERENT, CRASH)
"""How a case can end; ``not written`` is an input that the other library cannot make."""

TOLERANCE = 1e-4
"""Largest difference of equal numbers, relative to the largest of them, or to 1 if that is more."""


class Case(NamedTuple):
    """A generated input.

    Attributes:
      part: the grammar that it comes from.
      number: its number there, which is the seed of what is random in it.
      options: what was drawn, as JSON values.
    """

    part: str
    number: int
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Unique name of the case."""
        return f"{self.part}-{self.number:04d}"

    @property
    def rng(self) -> np.random.Generator:
        """Random numbers of this case."""
        return np.random.default_rng([self.number, len(self.part)])


class Unwritten(Exception):
    """The other library cannot write the input, so there is nothing to compare."""


class Refused(Exception):
    """The other library reads the input only with a warning that makes its result useless."""


class Outcome(NamedTuple):
    """How a case ended.

    Attributes:
      verdict: one of `VERDICTS` or ``not written``.
      ours: our sentence or exception, if any.
      theirs: their exception, if any.
      difference: largest relative difference of numbers, if there are any.
      note: on their numbers, if they depend on something.
    """

    verdict: str
    ours: str = ""
    theirs: str = ""
    difference: float | None = None
    note: str = ""


class Answer(NamedTuple):
    """An expected result with a note on it."""

    value: Any
    note: str = ""


Answers = Iterator[tuple[str, Any]]
"""Named results: arrays are compared as numbers, everything else exactly."""


class Subject(NamedTuple):
    """Both sides of a case, whose input has been written.

    Attributes:
      theirs: the expected result.
      ours: results that all have to be equal to it, each with the name of its way.
    """

    theirs: Callable[[], Answer]
    ours: Callable[[], Answers]


Writer = Callable[[Case, pathlib.Path], Subject]
"""Writes the input of a case into a folder."""


def judge(case: Case, write: Writer, folder: pathlib.Path, *, ways: int | None = None) -> Outcome:
    """Write the input of a case and compare what both sides make of it.

    Args:
      case: the case.
      write: of the case's part.
      folder: an empty folder.
      ways: number of our results that are compared, reading before exports; all by default.
    """
    try:
        subject = write(case, folder)
    except Unwritten as error:
        return Outcome(UNWRITTEN, theirs=_line(error))
    try:
        (want, note), theirs = subject.theirs(), ""
    except Exception as error:  # whatever the other library raises is its refusal
        want, note, theirs = None, "", f"{type(error).__name__}: {_line(error)}"
    try:
        # If they cannot read the input, they cannot be asked about what we export.
        answers = dict(itertools.islice(subject.ours(), 1 if theirs else ways))
    except InputError as error:
        return Outcome(BOTH if theirs else OURS, str(error), theirs)
    except Exception as error:
        return Outcome(CRASH, _traceback(error), theirs)
    if theirs:
        return Outcome(THEIRS, "", theirs)
    apart = {name: difference(want, answer) for name, answer in answers.items()}
    worst = max(apart, key=lambda name: apart[name])
    if apart[worst] > TOLERANCE:
        return Outcome(DIFFERENT, _summary(worst, want, answers[worst]), "", apart[worst], note)
    return Outcome(EQUAL, difference=apart[worst], note=note)


def difference(want: Any, got: Any) -> float:
    """How far two results are apart, relative to the size of the first; infinite if not alike."""
    if isinstance(want, Mapping):
        if not isinstance(got, Mapping) or want.keys() != got.keys():
            return float("inf")
        return max((difference(want[name], got[name]) for name in want), default=0.0)
    if not isinstance(want, np.ndarray):
        return 0.0 if type(want) is type(got) and want == got else float("inf")
    if want.shape != np.shape(got):
        return float("inf")
    apart = np.abs(np.asarray(got, np.float64) - want).max(initial=0.0)
    return float(apart / max(1.0, np.abs(want).max(initial=0.0))) if apart == apart else np.inf


def _summary(way: str, want: Any, got: Any) -> str:
    return f"{way}: {_short(got)} instead of {_short(want)}"


def _short(value: Any) -> str:
    text = " ".join(np.array2string(value, threshold=8, precision=3).split()) if isinstance(
        value, np.ndarray
    ) else repr(value)  # fmt: skip
    return text if len(text) < 300 else f"{text[:300]} ..."


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _traceback(error: BaseException) -> str:
    frames = [f"{pathlib.Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(
        error.__traceback__
    )[-4:]]  # fmt: skip
    return f"{type(error).__name__}: {_line(error)} ({' > '.join(frames)})"
