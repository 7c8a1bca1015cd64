"""Text of data, made safe to show on a terminal, in a table, a spreadsheet or a figure.

Class names, texts and answers come from files of others. They may hold sequences that move a
terminal's cursor, marks that reverse the order of reading, line breaks that forge a row, or a
formula that a spreadsheet computes.
"""

import json
import re
import unicodedata

_JOINERS = "\u200c\u200d"  # part of the spelling of Persian, of Indic scripts and of emoji
_UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_SPACES = {"Cc", "Cf", "Zl", "Zp", "Zs"}
# Letters and signs without a shape, and the selectors of a shape.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u2800\u3164\uffa0\ufe0e\ufe0f")
_FORMULA = re.compile(
    r"[=@\uff1d\uff20]|[+\uff0b\uff0d-](?=.)(?!\.?\d[\d.,]*(e[+-]?\d+)?%?\s*$)", re.IGNORECASE
)


def printable(text: str, *, keep: str = "", longest: int | None = None) -> str:
    r"""Escape characters that are acted on instead of shown, as Python writes them.

    These are control characters (line breaks and escape sequences too), marks that change the
    direction of text or have no width, line and paragraph separators, and lone surrogates. All
    others stay; a text without them is returned as it is.

    >>> print(printable("a\tb \x1b[31mred\u202e"))
    a\tb \x1b[31mred\u202e

    Args:
      text: any text.
      keep: characters that are not escaped.
      longest: characters of the longest result; a longer one ends in ``...``.
    """
    if longest is not None and len(text) > longest:
        text = text[: longest - 3] + "..."
    if text.isprintable():
        return text
    return "".join(c if c in keep or not _is_unsafe(c) else _escape(c) for c in text)


def json_text(value: object, *, indent: int | None = None) -> str:
    r"""Write a value as JSON that is safe to print and is read back as the same value.

    >>> print(json_text({"é": "\x9b31m"}))
    {"é": "\u009b31m"}

    Args:
      value: a JSON value.
      indent: spaces for each level; everything is in one line without it.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    if text.isprintable():
        return text
    # What is unsafe and not escaped yet is inside a string; line breaks are between the values.
    return "".join(c if c == "\n" or not _is_unsafe(c) else json.dumps(c)[1:-1] for c in text)


def spreadsheet_cell(text: str) -> str:
    r"""Return a text as a cell that is neither computed by a spreadsheet nor acts on a terminal.

    A cell that begins like a formula (``=``, ``@``, and ``+`` or ``-`` unless it is a number) gets
    an apostrophe in front, with which spreadsheets mark text. Line breaks and tabs stay, for the
    writer of the table to quote.

    >>> [spreadsheet_cell(text) for text in ("=1+1", "-2.5", "-2+3", "a=b")]
    ["'=1+1", '-2.5', "'-2+3", 'a=b']
    """
    text = printable(text, keep="\n\t")
    return f"'{text}" if _FORMULA.match(text.lstrip()) else text


def markdown_cell(text: str) -> str:
    r"""Return a text as a cell of a Markdown table that holds neither columns nor HTML of its own.

    >>> print(markdown_cell("a|b <img src=x>"))
    a\|b &lt;img src=x>
    """
    return printable(text).replace("|", r"\|").replace("<", "&lt;")


def is_blank(text: str) -> bool:
    r"""Whether nothing of a text can be seen: it is empty, or white space and invisible characters.

    >>> is_blank(" \u00a0\u200b"), is_blank("\ufeff"), is_blank("-")
    (True, True, False)
    """
    return all(c in _INVISIBLE or unicodedata.category(c) in _SPACES for c in text)


def _is_unsafe(character: str) -> bool:
    return unicodedata.category(character) in _UNSAFE and character not in _JOINERS


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
