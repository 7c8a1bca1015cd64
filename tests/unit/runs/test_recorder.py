"""The score by which the best checkpoint is chosen."""

import pytest

from fedjax_lora.data import Task
from fedjax_lora.runs.recorder import score

CLASSES = Task("classes", "", "", metric="accuracy")
WRITING = Task("writing", "", "", metric="perplexity")


def test_higher_recorded_score_is_better_for_every_metric():
    assert score({"accuracy": 0.5}, CLASSES) > score({"accuracy": 0.4}, CLASSES)
    assert score({"perplexity": 4.0}, WRITING) > score({"perplexity": 9.0}, WRITING)
    said = Task("saying", "", "", metric="rouge_l")
    assert score({"rouge_l": 0.4, "perplexity": 9.0}, said) == 0.4


def test_validation_score_is_preferred_to_the_test_score():
    assert score({"accuracy": 0.5, "validation_accuracy": 0.4}, CLASSES) == 0.4
    assert score({"perplexity": 5.0, "validation_perplexity": 4.0}, WRITING) == -4.0


@pytest.mark.parametrize("task", [CLASSES, WRITING])
def test_unevaluated_and_diverged_rounds_have_no_score(task):
    assert score({"train_loss": 1.0}, task) is None
    assert score({task.metric: None}, task) is None
    assert score({task.metric: 1.0, f"validation_{task.metric}": None}, task) is None
