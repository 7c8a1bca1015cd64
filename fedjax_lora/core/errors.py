"""User-facing errors and the stop signal."""

import difflib
import re
from collections.abc import Iterable, Sequence

from fedjax_lora.core.safe_text import printable

LONGEST = 2000
"""Characters of the longest message: a quoted value may be a whole file."""

SECRET = re.compile(r"\bhf_[A-Za-z0-9]{30,}|(?<=://)[^/\s@]+(?=@)")
"""Matches a token of the Hugging Face hub, and the credentials before the host of a URL."""


class InputError(Exception):
    """An error in the user's input: one sentence that says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 2. It is no `ValueError`,
    because libraries between a config and its user catch and wrap those. Tokens and passwords are
    removed from the message, characters that a terminal would act on are escaped (see
    `fedjax_lora.core.safe_text.printable`), and a very long message is cut in the middle.
    """

    def __init__(self, message: str) -> None:
        text = printable(SECRET.sub("***", message))
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]} [...] {text[-LONGEST // 2 :]}"
        super().__init__(text)


class Stopped(Exception):
    """Raised when a run stops after a round on request; its results so far are saved."""


def unknown(kind: str, name: str, choices: Iterable[str]) -> InputError:
    """Make the error for a name that is not in a registry.

    >>> print(unknown("method", "fedplora", ["fed_plora", "hlora"]))
    Unknown method 'fedplora'; did you mean 'fed_plora'? Known: fed_plora, hlora.
    """
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return InputError(f"Unknown {kind} {name!r}{hint} Known: {', '.join(choices)}.")


def first_names(names: Sequence[str], most: int = 5) -> str:
    """List the first names, and the number of the others, for a message.

    >>> first_names(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def raise_all(subject: str, problems: Iterable[str]) -> None:
    """Raise one `InputError` that lists all problems; return if there are none."""
    problems = list(problems)
    if problems:
        raise InputError(f"{subject}: " + "; ".join(problems) + ".")
