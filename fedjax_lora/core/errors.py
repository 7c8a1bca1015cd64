"""What ends a run early: everything a user can get wrong, and the wish to stop."""

import difflib
import re
from collections.abc import Iterable

LONGEST = 2000
"""Characters of a message; what is quoted in it may be a whole file."""

SECRET = re.compile(r"\bhf_[A-Za-z0-9]{30,}|(?<=://)[^/\s@]+(?=@)")
"""A token of the Hugging Face hub, or what stands before the host in a URL."""


class InputError(Exception):
    """Bad input: one sentence that says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 2. (Not a `ValueError`,
    which libraries between a config and its user catch and wrap.) Tokens and passwords that are
    part of what is quoted are left out, and so is the middle of a very long message.
    """

    def __init__(self, message: str) -> None:
        text = SECRET.sub("***", message)
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]} [...] {text[-LONGEST // 2 :]}"
        super().__init__(text)


class Stopped(Exception):
    """A run that was asked to stop has done so after a round; what it has done is saved."""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not in a registry.

    >>> print(unknown("method", "fedplora", ["fed_plora", "hlora"]))
    Unknown method 'fedplora'; did you mean 'fed_plora'? Known: fed_plora, hlora.
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return InputError(f"Unknown {kind} {name!r}{hint} Known: {', '.join(known)}.")


def raise_all(what: str, problems: Iterable[str]) -> None:
    """Raise one `InputError` that lists every problem found; return if there is none."""
    problems = list(problems)
    if problems:
        raise InputError(f"{what}: " + "; ".join(problems) + ".")
