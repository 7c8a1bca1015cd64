"""Malformed inputs are refused in one sentence: a sample by default, all in the slow test."""

import functools
import pathlib
import subprocess
import sys

import pytest

from experiments.robustness import malformed_input
from experiments.robustness.malformed_input import damage, run
from experiments.robustness.malformed_input.case import Case, write_case
from experiments.robustness.malformed_input.judge import Verdict, judge
from fedjax_lora.cli import main

FAMILIES = (
    "PEFT config",
    "PEFT factors",
    "data files",
    "index of shards",
    "model configs",
    "pickled weights",
    "run configs",
    "safetensors",
    "tokenizers",
)
SECONDS, MEGABYTES = 20, 100  # of the worst case; measured on a busy machine: 5 and 15


@functools.cache
def all_cases() -> list[Case]:
    """All cases: they take seconds, which need not be spent while tests are collected."""
    return malformed_input.cases()


@pytest.fixture(scope="module", autouse=True)
def well_formed(tmp_path_factory):
    """What the cases change is accepted, in every format; it also imports what takes long."""
    root = tmp_path_factory.mktemp("good") / "run"
    for ending in ("csv", "tsv", "jsonl", "parquet"):
        words = write_case(Case("well-formed", ending), root / ending)
        task = f"--task=file(train='train.{ending}', test='train.{ending}')"
        assert judge([*words, task], root / "out").outcome == "accepted"


def problems(chosen: list[Case], place: pathlib.Path, *allowed: str) -> list[str]:
    """What ended otherwise than it should, in words."""
    found = []
    for case, verdict in run.verdicts(chosen, place):
        quick = verdict.seconds < SECONDS and verdict.megabytes < MEGABYTES
        clear = verdict.outcome in allowed or not run.is_unclear((case, verdict))
        if not (quick and clear):
            found.append(f"{case.family}: {case.name}: {verdict}")
    return found


def test_cases_are_many_and_uniquely_named():
    assert sorted({case.family for case in all_cases()}) == list(FAMILIES)
    assert len(all_cases()) > 900
    assert len({(case.family, case.name) for case in all_cases()}) == len(all_cases())
    assert all(case.says for case in all_cases())


def test_a_refusal_for_another_reason_is_a_wrong_one():
    (case,) = (case for case in all_cases() if case.name == "csv: an empty label")
    verdict = Verdict("refused", "a.csv row 26: column 'label' is empty", 1, False, 0.1, 1.0)
    assert not run.is_unclear((case, verdict))
    assert run.is_unclear((case, verdict._replace(sentence="a.csv row 26: check its quotes")))


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_cases_are_refused_in_one_sentence(family, tmp_path):
    chosen = [case for case in all_cases()[::9] if case.family == family]
    assert chosen and problems(chosen, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_all_cases_are_refused_in_one_sentence(family, tmp_path):
    assert problems([case for case in all_cases() if case.family == family], tmp_path) == []


@pytest.mark.parametrize("each", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_random_corruption_is_refused_or_harmless(each, tmp_path):
    assert problems(list(damage.cases(each=each)), tmp_path, "accepted") == []


@pytest.mark.parametrize("name", ["nested 200,000 deep", "federation.method of an object"])
def test_command_line_exits_as_the_library_call_does(name, tmp_path):
    """In a process of its own, as a user meets it."""
    (case,) = (case for case in all_cases() if case.family == "run configs" and case.name == name)
    words = write_case(case, tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-m", "fedjax_lora", *words, f"--out={tmp_path / 'out'}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("fedjax-lora: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("raised", [RecursionError("deep"), MemoryError(), SystemExit(3)])
def test_unexplained_failure_is_detected(raised, tmp_path, monkeypatch):
    def fail(words):
        raise raised

    monkeypatch.setitem(main.COMMANDS, "run", fail)
    assert len(problems(all_cases()[:1], tmp_path)) == 1
