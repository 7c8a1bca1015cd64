"""What a plain classifier reaches on the task of the demo.

Logistic regression on TF-IDF features of words and of pairs of words, of all training texts in one
place, which are not cut to the tokens that the demo's model reads. Run it with
``python -m experiments.studies.demo.ceiling``.
"""

import json
import pathlib

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from fedjax_lora import data
from fedjax_lora.runs.config import demo

FILE = pathlib.Path(__file__).parent / "results" / "ceiling.json"


def accuracy(task: data.TaskData) -> float:
    """Test accuracy."""
    features = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"[A-Za-z]+|\S")
    train = features.fit_transform(task.train.texts)
    model = LogisticRegression(C=30, max_iter=500).fit(train, task.train.labels)
    return float(model.score(features.transform(task.test.texts), task.test.labels))


if __name__ == "__main__":
    name = demo().data.task
    found = {"task": name, "accuracy": accuracy(data.load(name))}
    FILE.write_text(json.dumps(found) + "\n", encoding="utf-8")
