"""Text of data is shown without acting on a terminal, a table or a spreadsheet."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.safe_text import json_text, markdown_cell, printable, spreadsheet_cell

ACTING = {
    "an escape sequence": "\x1b]0;title\x07",
    "an 8-bit escape sequence": "\x9b31m",
    "a carriage return": "right\rwrong",
    "line breaks": "a\nb\x0bc\x0cd\x85e\u2028f\u2029g",
    "delete": "a\x7f",
    "reversed text": "\u202egnp.exe",
    "isolated text": "\u2066a\u2069",
    "no width": "pos\u200b",
    "a byte order mark": "\ufeffpos",
    "half a character": "\ud800",
}


@pytest.mark.parametrize("name", ACTING)
def test_control_characters_are_escaped(name):
    text = ACTING[name]
    shown = printable(text)
    assert shown.isprintable() and shown != text
    assert shown.encode().decode("unicode_escape").encode("utf-8", "surrogatepass") == (
        text.encode("utf-8", "surrogatepass")
    )


@pytest.mark.parametrize(
    "text", ["", "a b", "naïve", "新聞", "می‌روم", "👩‍👧", "a\\nb", "１\u3000２", "a\xa0b"]
)
def test_printable_characters_are_kept(text):
    assert printable(text) == text


def test_long_names_are_cut():
    assert printable("n" * 50, longest=10) == "nnnnnnn..."
    assert printable("n" * 10, longest=10) == "n" * 10


@given(st.text() | st.sampled_from(sorted(ACTING.values())))
def test_json_is_safe_and_loses_nothing(text):
    written = json_text({text: [text]}, indent=1)
    assert json.loads(written) == {text: [text]}
    assert all(printable(line) == line for line in written.split("\n"))


@pytest.mark.parametrize(
    "text",
    ["=1+1", "@SUM(A1)", "+1+cmd|' /C calc'!A0", "-2+3", " =1+1", "\t=1", "＝1+1", "-a", "+A1"],
)
def test_spreadsheet_formula_is_quoted(text):
    assert spreadsheet_cell(text) == f"'{text}"


@pytest.mark.parametrize(
    "text", ["a=1", "-", "-1", "+2.5", "-.5", "-1,000", "-1e-05", "-5%", "1-2"]
)
def test_numbers_and_words_are_not_quoted(text):
    assert spreadsheet_cell(text) == text


def test_table_cell_keeps_tabs_and_line_breaks():
    assert spreadsheet_cell("a\tb\nc\x1b") == "a\tb\nc\\x1b"


def test_markdown_cell_cannot_break_its_table_row():
    assert markdown_cell("a|b\n<script>") == r"a\|b\n&lt;script>"


def test_error_message_holds_no_control_characters():
    assert str(InputError("no class \x1b[2J\n here")) == r"no class \x1b[2J\n here"
