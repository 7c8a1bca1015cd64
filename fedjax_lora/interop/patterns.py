"""Regular expressions of untrusted files, matched with a bounded number of steps.

Python's `re` can take exponential time on a pattern such as ``(a+)+$``. Here the set of all
positions that a part of the pattern can reach is followed through the text instead, so that
nothing is tried twice. The syntax is that of `re` without backreferences, lookbehind, atomic
groups and flags, which need a backtracking search.

PEFT matches with `re`, and no library of linear time has the same language: RE2 has no lookahead
(which patterns that leave modules out need), ASCII classes and at most 1000 repetitions; `regex`
reads ``{e}`` and ``{i<=1}`` as approximate matching.
"""

import functools
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping

# The parser of `re` has no public name, so that the stubs of `re` leave out both modules.
from re import _constants as ops  # pyright: ignore[reportAttributeAccessIssue]
from re import _parser  # pyright: ignore[reportAttributeAccessIssue]
from types import MappingProxyType
from typing import Any

from fedjax_lora.core.errors import InputError

__all__ = ["is_match", "problem"]

_LONGEST = 4000  # characters of a pattern
_MOST_STEPS = 1_000_000
# Without groups and with few repetitions, `re` is fast and backtracks little.
_SIMPLE = re.compile(r"[\w.\-^$\\+*|]+")
_MOST_REPETITIONS = 3

_CATEGORIES: Mapping[Any, re.Pattern[str]] = MappingProxyType(
    {
        ops.CATEGORY_DIGIT: re.compile(r"\d"),
        ops.CATEGORY_NOT_DIGIT: re.compile(r"\D"),
        ops.CATEGORY_SPACE: re.compile(r"\s"),
        ops.CATEGORY_NOT_SPACE: re.compile(r"\S"),
        ops.CATEGORY_WORD: re.compile(r"\w"),
        ops.CATEGORY_NOT_WORD: re.compile(r"\W"),
    }
)
_PLACES: Mapping[Any, Callable[[str, int], bool]] = MappingProxyType(
    {
        ops.AT_BEGINNING: lambda text, at: at == 0,
        ops.AT_BEGINNING_STRING: lambda text, at: at == 0,
        ops.AT_END: lambda text, at: at == len(text) or text[at:] == "\n",
        ops.AT_END_STRING: lambda text, at: at == len(text),
        ops.AT_BOUNDARY: lambda text, at: _is_word(text, at - 1) != _is_word(text, at),
        ops.AT_NON_BOUNDARY: lambda text, at: _is_word(text, at - 1) == _is_word(text, at),
    }
)


def problem(pattern: object) -> str | None:
    """Say why a pattern cannot be used; None if it can.

    >>> problem("layers.[0-3]."), problem("(a")
    (None, 'is no regular expression (missing ), unterminated subpattern at position 0)')
    """
    if not isinstance(pattern, str):
        return "is no text"
    if len(pattern) > _LONGEST:
        return f"has {len(pattern)} characters, more than {_LONGEST}"
    try:
        tree = _parse(pattern)
        unsupported = next(_unsupported(tree), None)
    except (re.error, RecursionError, OverflowError) as error:
        return f"is no regular expression ({error})"
    if tree.state.flags & ~re.UNICODE.value:
        unsupported = "flags"
    return f"uses {unsupported}, which is not supported" if unsupported else None


def is_match(pattern: str, text: str, *, before: str = "", after: str = "") -> bool:
    r"""Whether a pattern between two others matches a whole text, as `re.fullmatch` finds it.

    >>> is_match(r"layers\.[0-3]\.(q|v)_proj", "model.layers.2.v_proj", before=r"(.*\.)?")
    True

    Args:
      pattern: a regular expression for which `problem` returns None.
      text: the text.
      before: trusted pattern in front of it.
      after: trusted pattern behind it.

    Raises:
      InputError: the pattern takes too many steps.
    """
    whole = f"{before}{pattern}{after}"
    if _SIMPLE.fullmatch(pattern) and sum(map(pattern.count, "*+")) <= _MOST_REPETITIONS:
        return re.fullmatch(whole, text) is not None
    return len(text) in _Matcher(_parse(whole), text).run()


@functools.cache
def _parse(pattern: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of syntax that may change
        return _parser.parse(pattern)


def _unsupported(items: Iterable[tuple[Any, Any]]) -> Iterator[str]:
    """Yield the names of operations that `_Matcher` has no step for."""
    for op, value in items:
        backwards = op in (ops.ASSERT, ops.ASSERT_NOT) and value[0] != 1
        flags = op is ops.SUBPATTERN and (value[1] or value[2])
        if op not in _OPERATIONS or backwards or flags:
            yield "flags" if flags else "lookbehind" if backwards else str(op).lower()
        parts = value[1] if op is ops.BRANCH else value if isinstance(value, tuple) else ()
        for part in parts:
            if isinstance(part, _parser.SubPattern):
                yield from _unsupported(part)  # pyright: ignore[reportArgumentType]


def _is_word(text: str, at: int) -> bool:
    return 0 <= at < len(text) and re.match(r"\w", text[at]) is not None


def _is_in(char: str, items: Iterable[tuple[Any, Any]]) -> bool:
    """Whether a character is in a set such as ``[^a-z_]``."""
    negate = found = False
    for op, value in items:
        if op is ops.NEGATE:
            negate = True
        elif op is ops.LITERAL:
            found |= ord(char) == value
        elif op is ops.RANGE:
            found |= value[0] <= ord(char) <= value[1]
        else:
            found |= _CATEGORIES[value].match(char) is not None
    return found != negate


_CHARACTERS: Mapping[Any, Callable[[str, Any], bool]] = MappingProxyType(
    {
        ops.LITERAL: lambda char, value: ord(char) == value,
        ops.NOT_LITERAL: lambda char, value: ord(char) != value,
        ops.ANY: lambda char, value: char != "\n",
        ops.IN: _is_in,
    }
)

_OPERATIONS = frozenset(
    {*_CHARACTERS, ops.AT, ops.BRANCH, ops.SUBPATTERN, ops.MAX_REPEAT, ops.MIN_REPEAT}
    | {ops.ASSERT, ops.ASSERT_NOT, ops.FAILURE}
)


class _Matcher:
    """Follows the positions that a pattern can reach in one text."""

    def __init__(self, tree: Any, text: str) -> None:
        self._tree, self._text, self._steps = tree, text, 0

    def run(self) -> set[int]:
        """Return the positions where a match from the beginning can end."""
        return self._follow(self._tree, {0})

    def _follow(self, items: Iterable[tuple[Any, Any]], starts: set[int]) -> set[int]:
        """Return the positions that a sequence of items reaches from any of the positions."""
        for op, value in items:
            self._steps += 1 + len(starts)
            if self._steps > _MOST_STEPS:
                raise InputError("A regular expression takes too many steps; write it simpler.")
            starts = self._step(op, value, starts)
        return starts

    def _step(self, op: Any, value: Any, starts: set[int]) -> set[int]:
        text = self._text
        if op in _CHARACTERS:
            fits = _CHARACTERS[op]
            return {at + 1 for at in starts if at < len(text) and fits(text[at], value)}
        if op is ops.AT:
            return {at for at in starts if _PLACES[value](text, at)}
        if op is ops.BRANCH:
            return set().union(*(self._follow(branch, starts) for branch in value[1]))
        if op is ops.SUBPATTERN:
            return self._follow(value[3], starts)
        if op in (ops.ASSERT, ops.ASSERT_NOT):
            wanted = op is ops.ASSERT
            return {at for at in starts if bool(self._follow(value[1], {at})) == wanted}
        if op is ops.FAILURE:
            return set()
        least, most, items = value
        return self._repeat(least, most, items, starts)

    def _repeat(self, least: int, most: Any, items: Any, starts: set[int]) -> set[int]:
        for _ in range(least):
            after = self._follow(items, starts)
            if after == starts:
                break
            starts = after
        reached, new, count = set(starts), starts, least
        while new and (most is ops.MAXREPEAT or count < most):
            new = self._follow(items, new) - reached
            reached |= new
            count += 1
        return reached
