"""Notes about labels that are probably not as they were meant."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from fedjax_lora.core.errors import first_names
from fedjax_lora.core.safe_text import printable

SHOWN = 3
"""Names that a note lists; it counts the others."""

_HYPHENS = re.compile(r"(?<=\w)[-_\u2010-\u2015](?=\w)")
"""What joins words: ``non-toxic`` and ``non_toxic`` are probably one class."""


def label_notes(classes: Sequence[str], train: np.ndarray, test: np.ndarray) -> list[str]:
    """Return a sentence for each peculiarity of the labels of a classification task.

    Args:
      classes: class names in label order.
      train: `int[E]` labels of the training set.
      test: `int[E']` labels of the test set.
    """
    counts = np.bincount(train, minlength=len(classes))
    tested = np.bincount(test, minlength=len(classes))
    notes = [
        f"the classes {_listed(names)} differ only in white space, hyphens, case or spelling of a "
        "number; if one is meant, correct the labels"
        for names in alike(classes)
    ]
    return notes + _count_notes(classes, counts, tested) + _name_notes(classes)


def _count_notes(classes: Sequence[str], counts: np.ndarray, tested: np.ndarray) -> list[str]:
    """Return notes on numbers of examples; ``counts`` and ``tested``: `int[C]` of each class."""
    notes = []
    if np.count_nonzero(counts) == 1:
        notes.append(
            f"all {counts.sum()} training examples have the label "
            f"{classes[int(counts.argmax())]!r}, so there is nothing to learn and an accuracy of 1 "
            "says nothing"
        )
    if unseen := [classes[c] for c in np.flatnonzero((counts == 0) & (tested > 0)).tolist()]:
        notes.append(
            f"the test set has the {_classes(unseen)}, of which there is no training example"
        )
    if empty := [classes[c] for c in np.flatnonzero((counts == 0) & (tested == 0)).tolist()]:
        notes.append(f"there is no example at all of the {_classes(empty)}")
    if single := [classes[c] for c in np.flatnonzero(counts == 1).tolist()]:
        notes.append(f"there is only one training example of the {_classes(single)}")
    return notes


def _name_notes(classes: Sequence[str]) -> list[str]:
    """Return notes on names: numbers, and what cannot be printed."""
    notes = []
    if are_scores(classes):
        notes.append(
            f"the labels are numbers such as {_listed(classes)} and are taken for "
            f"{len(classes)} classes; scores need metric='pearson'"
        )
    odd = [name for name in classes if printable(name) != name]
    return notes + [f"the {_classes(odd)} cannot be printed as it is: correct the labels"] * (
        len(odd) > 0
    )


def alike(classes: Iterable[str]) -> list[list[str]]:
    """Return the groups of classes whose names are easily taken for each other."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        groups[_key(name)].append(name)
    return [names for names in groups.values() if len(names) > 1]


def are_scores(names: Sequence[str]) -> bool:
    """Whether labels are numbers, of which some are not whole.

    >>> are_scores(["0.5", "2"]), are_scores(["0.0", "1.0"]), are_scores(["1", "a"])
    (True, False, False)
    """
    values = [_number(name) for name in names]
    return None not in values and any(value % 1 for value in values if value is not None)


def _key(name: str) -> str:
    """What is left of a name without case, white space, hyphens, what is invisible and decimals."""
    number = _number(name)
    if number is not None:
        return repr(number)
    text = _HYPHENS.sub(" ", unicodedata.normalize("NFKC", name).casefold())
    return " ".join("".join(c for c in text if unicodedata.category(c) != "Cf").split())


def _number(name: str) -> float | None:
    """Value of a name that is a finite number, written with digits alone."""
    if not name.strip().lstrip("+-")[:1].isdigit() and not name.strip().lstrip("+-").startswith(
        "."
    ):
        return None
    try:
        value = float(name)
    except ValueError:
        return None
    return value if abs(value) < 1e300 else None


def _classes(names: Sequence[str]) -> str:
    return f"class{'es' if len(names) > 1 else ''} {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    quoted = [repr(name) if name.isprintable() else ascii(name) for name in names]
    return first_names(quoted, SHOWN)
