"""Compatibility of data and model in ``evaluate``, and the order of classes."""

from types import SimpleNamespace

import numpy as np
import pytest

from fedjax_lora import data
from fedjax_lora.cli import evaluate
from fedjax_lora.core.errors import InputError
from fedjax_lora.interop import ModelMetadata

LABELS = np.array([0, 1, 2, 2], np.int32)


def task_data(*classes):
    split = data.Split(["a", "b", "c", "d"], None, LABELS, None)
    task = SimpleNamespace(name="mood", type="classification")
    return data.TaskData(task, classes, split, None, split, 0)


def model(*classes):
    return SimpleNamespace(metadata=ModelMetadata(base="x", base_sha256="0", classes=classes))


@pytest.mark.parametrize(
    ("ours", "theirs", "labels"),
    [
        (("LABEL_0", "LABEL_1", "LABEL_2"), ("0", "1", "2"), [0, 1, 2, 2]),
        (("LABEL_0", "LABEL_1", "LABEL_2"), ("0", "2", "1"), [0, 2, 1, 1]),
        (("0", "1", "2"), ("LABEL_2", "LABEL_0", "LABEL_1"), None),
        (("LABEL_0", "LABEL_1", "LABEL_2"), ("bad", "fine", "good"), [0, 1, 2, 2]),
        (("good", "bad", "fine"), ("bad", "fine", "good"), [1, 2, 0, 0]),
        (("good", "bad", "fine"), ("bad", "fine", "best"), None),
        (("good", "bad", "fine"), ("0", "1", "2"), None),
    ],
)
def test_labels_follow_the_class_order_of_the_model(ours, theirs, labels):
    ordered = evaluate._in_model_order(task_data(*theirs), model(*ours))
    if labels is None and ours != ("0", "1", "2"):
        with pytest.raises(InputError, match="its classes are"):
            evaluate._check_task(ordered, model(*ours))
        return
    evaluate._check_task(ordered, model(*ours))
    if labels is not None:
        assert ordered.test.labels.tolist() == labels
