"""Patterns of untrusted files match as `re` has it, in little time."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lora.interop import patterns

PIECES = st.sampled_from(
    ["a", "b", ".", r"\.", "[ab]", "[^a.]", r"\d", r"[0-3]", r"\w", "^", "$", r"\b", "", r"[^\W1]"]
)
REPEATS = st.sampled_from(["*", "+", "?", "*?", "+?", "{2}", "{1,3}", "{0,2}?", "{2,}"])


def combined(parts):
    return st.one_of(
        st.tuples(parts, parts).map("".join),
        st.tuples(parts, parts).map("({0[0]}|{0[1]})".format),
        st.tuples(parts, REPEATS).map(lambda x: f"(?:{x[0]}){x[1]}"),
        parts.map("(?={})".format),
        parts.map("(?!{})".format),
    )


@settings(max_examples=600, deadline=None)
@given(st.recursive(PIECES, combined, max_leaves=8), st.text("ab1.", max_size=8))
def test_pattern_matches_as_python_re(pattern, text):
    assert patterns.problem(pattern) is None
    whole = rf"(.*\.)?({pattern})"
    assert patterns.is_match(pattern, text, before=r"(.*\.)?(", after=")") == bool(
        re.fullmatch(whole, text)
    )


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "(a|aa)+b",
        "((a{1000}){1000}){1000}",
        "((((a?){99}){99}){99}){99}b",
        ".*" * 9 + "x",
    ],
)
def test_matching_time_is_bounded(pattern):
    begin = time.process_time()
    assert not patterns.is_match(pattern, "a" * 80)
    assert time.process_time() - begin < 2


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("(?i)a", "uses flags"),
        ("(?i:a)", "uses flags"),
        (r"(a)\1", "uses groupref"),
        ("(?<=a)b", "uses lookbehind"),
        ("(?>a)", "uses atomic_group"),
        ("(" * 1500 + ")" * 1500, "recursion"),
        ("a{99999999999}", "is no regular expression"),
        ("(a", "is no regular expression"),
        (3, "is no text"),
    ],
)
def test_unsupported_syntax_is_named(pattern, sentence):
    assert sentence in patterns.problem(pattern)
