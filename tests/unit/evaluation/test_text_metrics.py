"""Metrics of language tasks against hand computations."""

import functools
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lora import InputError
from fedjax_lora.data import Split, TaskData, Tokens, find_task
from fedjax_lora.evaluation import text_metrics
from fedjax_lora.evaluation.task_types import TASK_TYPES, EvalContext


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(0, 5), st.integers(1, 9)), min_size=1))
def test_perplexity_weighs_every_token_equally(rows):
    sums = np.array(rows, np.float32)
    got = text_metrics.language_scores(sums)
    loss, hits, count = (sum(column) for column in zip(*sums.astype(float), strict=True))
    assert got["loss"] == pytest.approx(loss / count)
    assert got["perplexity"] == pytest.approx(np.exp(loss / count))
    assert got["token_accuracy"] == pytest.approx(hits / count)


def test_perplexity_by_group_leaves_out_groups_without_examples():
    sums = np.array([[2.0, 0, 1], [6.0, 1, 3], [8.0, 2, 2]], np.float32)
    got = text_metrics.perplexity_by(np.array([0, 2, 0]), ("x", "y", "z"), sums)
    assert got == {"x": pytest.approx(np.exp(10 / 3)), "z": pytest.approx(np.exp(2))}


def test_choice_accuracy_takes_the_most_likely_choice_of_each_question():
    question = np.array([4, 4, 4, 7, 7])
    right = np.array([0, 1, 0, 1, 0])
    loss = np.array([3.0, 2.0, 2.5, 9.0, 8.0], np.float32)
    sums = np.stack([loss, 0 * loss, 1 + 0 * loss], axis=1)
    assert text_metrics.choice_accuracy(question, right, sums) == 0.5
    shuffled = np.array([3, 1, 4, 0, 2])
    assert text_metrics.choice_accuracy(question[shuffled], right[shuffled], sums[shuffled]) == 0.5


def lcs(x: list[str], y: list[str]) -> int:
    """The longest common subsequence, by the textbook."""
    table = np.zeros((len(x) + 1, len(y) + 1), int)
    for i, a in enumerate(x):
        for j, b in enumerate(y):
            table[i + 1, j + 1] = (
                table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
            )
    return int(table[-1, -1])


@given(st.lists(st.tuples(*[st.lists(st.sampled_from("abcd"), max_size=8)] * 2), min_size=1))
@settings(deadline=None, max_examples=30)
def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence(pairs):
    want = []
    for x, y in pairs:
        common = lcs(x, y)
        want.append(2 * common / (len(x) + len(y)) if common else 0.0)
    answers, references = ([" ".join(p[side]) for p in pairs] for side in (0, 1))
    assert text_metrics.rouge_l(answers, references) == pytest.approx(np.mean(want))


def test_rouge_l_without_its_package_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(InputError, match=r"install fedjax-lora\[text\]"):
        text_metrics.rouge_l(["a"], ["a"])


def test_missing_rouge_package_is_reported_before_generation(monkeypatch):
    """As soon as a run, or `evaluate`, makes its evaluator."""
    none = np.zeros((0, 8), np.int32)
    split = Split([], [], none[:, 0], None)
    task = TaskData(find_task("dolly(metric='rouge_l')"), (), split, None, split, 0)
    tools = EvalContext(
        task, predict=None, place=lambda x: x, encode=None, answer=lambda tokens: None
    )
    judge = functools.partial(
        TASK_TYPES["language"].make_eval_fn, tools, split, Tokens(*[none] * 4)
    )
    assert callable(judge())
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(InputError, match=r"install fedjax-lora\[text\]"):
        judge()


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("so 40 + 2\n#### 42", "#### 42", True),
        ("#### 1,042", "thus\n#### 1042", True),
        ("#### -3 apples", "#### -3", True),
        ("42", "#### 42", False),  # the number alone is not the form that is learned
        ("#### 42\n#### 7", "#### 7", False),  # the first counts, as in the published rule
        ("#### 4.0", "#### 4", False),
        ("  The  Answer", "the answer", True),
        ("the answers", "the answer", False),
    ],
)
def test_exact_match_compares_the_first_marked_answer(answer, reference, same):
    assert text_metrics.exact_match([answer, "x"], [reference, "y"]) == same / 2
