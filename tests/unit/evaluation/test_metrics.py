"""Metrics against scikit-learn and SciPy."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lora.data import Split, TaskData, Tokens, find_task
from fedjax_lora.evaluation import metrics
from fedjax_lora.evaluation.metrics import METRICS
from fedjax_lora.evaluation.predict import AdaptedParams
from fedjax_lora.evaluation.task_types import TASK_TYPES, EvalContext

CLASSES = {"accuracy": 4, "f1": 4, "macro_f1": 4, "micro_f1": 4, "matthews": 5}
ORACLE = {
    "accuracy": sklearn.metrics.accuracy_score,
    "f1": lambda y, x: sklearn.metrics.f1_score(y, x, zero_division=0.0),
    "macro_f1": lambda y, x: sklearn.metrics.f1_score(y, x, average="macro", zero_division=0.0),
    "micro_f1": lambda y, x: sklearn.metrics.f1_score(y, x, average="micro"),
    "matthews": sklearn.metrics.matthews_corrcoef,
}


def logits_of(guess: np.ndarray, classes: int, seed: int = 0) -> np.ndarray:
    """Random logits whose largest is the guess."""
    output = np.random.default_rng(seed).normal(size=(len(guess), classes)).astype(np.float32)
    output[np.arange(len(guess)), guess] = output.max(axis=1) + 1
    return output


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("name", ORACLE)
@given(data=st.data())
@settings(deadline=None)
def test_classification_metrics_equal_scikit_learn(name, data):
    classes = data.draw(st.integers(2, CLASSES[name]))
    pairs = data.draw(
        st.lists(st.tuples(*[st.integers(0, classes - 1)] * 2), min_size=1, max_size=40)
    )
    label, guess = np.array(pairs, np.int32).T
    got = METRICS[name](label, logits_of(guess, classes))
    assert isinstance(got, float)
    oracle = ORACLE["macro_f1" if name == "f1" and classes > 2 else name]
    assert got == pytest.approx(oracle(label, guess), abs=1e-12)


def test_f1_of_three_classes_is_recorded_as_macro_f1():
    label, output = np.array([0, 1, 2, 2]), logits_of(np.array([0, 2, 2, 1]), 3)
    assert metrics.f1(label, output) == metrics.macro_f1(label, output) == pytest.approx(0.5)
    assert metrics.recorded_names("f1", 3) == ("f1", "macro_f1")
    assert metrics.recorded_names("f1", 2) == ("f1",)
    assert metrics.recorded_names("accuracy", 3) == ("accuracy",)


@pytest.mark.parametrize("name", ORACLE)
@pytest.mark.parametrize("constant", [0, 1])
def test_constant_prediction_has_finite_metrics(name, constant):
    """As an untrained model predicts; there is no division by zero and no warning."""
    label = np.array([0, 1, 1, 0, 1], np.int32)
    guess = np.full(5, constant)
    expected = {
        "accuracy": (0.4, 0.6),
        "f1": (0.0, 0.75),
        "macro_f1": (2 / 7, 0.375),
        "micro_f1": (0.4, 0.6),
        "matthews": (0.0, 0.0),
    }
    assert METRICS[name](label, logits_of(guess, 2)) == pytest.approx(expected[name][constant])


def test_constant_label_has_finite_metrics():
    label = np.ones(6, np.int32)
    output = logits_of(np.array([0, 1, 0, 1, 0, 1]), 3)
    assert metrics.matthews(label, output) == 0.0
    assert metrics.accuracy(label, output) == 0.5


@pytest.mark.parametrize(("sign", "size"), [(1, 50), (-1, 50), (0, 50), (1, 2)])
def test_pearson_equals_scipy(sign, size):
    rng = np.random.default_rng(size + sign)
    label = rng.uniform(0, 5, size).astype(np.float32)
    output = (sign * label + rng.normal(size=size)).astype(np.float32)[:, None]
    want = scipy.stats.pearsonr(label.astype(float), output[:, 0].astype(float)).statistic
    assert metrics.pearson(label, output) == pytest.approx(want, abs=1e-12)


@pytest.mark.filterwarnings("ignore:An input array is constant")
@given(
    pairs=st.lists(st.tuples(*[st.integers(-3, 3)] * 2), min_size=2, max_size=30),
    scale=st.sampled_from([1.0, 1e-30, 1e30]),
)
@settings(deadline=None)
def test_spearman_with_ties_equals_scipy(pairs, scale):
    label, output = np.array(pairs, np.float32).T
    got = metrics.spearman(label, output[:, None] * np.float32(scale))
    want = scipy.stats.spearmanr(label, output).statistic
    assert got == pytest.approx(0.0 if np.isnan(want) else want, abs=1e-12)


def test_spearman_of_non_finite_outputs_is_zero():
    label = np.array([1.0, 2.0, 3.0], np.float32)
    assert metrics.spearman(label, np.array([[1.0], [np.inf], [3.0]], np.float32)) == 0.0


def test_either_correlation_is_recorded_with_the_other():
    assert metrics.recorded_names("spearman", 1) == ("spearman", "pearson")
    assert find_task("stsb").metric == "pearson"
    assert find_task("file(train='a.csv', metric='spearman')").type == "regression"


def test_pearson_is_computed_in_float64():
    """A common offset eats float32's digits."""
    rng = np.random.default_rng(0)
    label = (1000 + rng.normal(size=20_000)).astype(np.float32)
    want = scipy.stats.pearsonr(label.astype(float), label.astype(float) ** 2).statistic
    got = metrics.pearson(label, (label.astype(float) ** 2)[:, None])
    assert got == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 11, 49])
def test_pearson_of_a_constant_is_zero(size, dtype):
    """0.1 has no exact sum, so that its mean may be off by a bit."""
    constant, other = np.full(size, 0.1, dtype), np.arange(size, dtype=dtype)
    assert metrics.pearson(other, constant[:, None]) == 0.0
    assert metrics.pearson(constant, other[:, None]) == 0.0
    assert metrics.pearson(constant, constant[:, None]) == 0.0


def test_mean_cross_entropy_equals_scikit_learn():
    rng = np.random.default_rng(0)
    output = (5 * rng.normal(size=(30, 4))).astype(np.float32)
    label = rng.integers(0, 4, 30).astype(np.int32)
    probability = np.exp(output.astype(float))
    probability /= probability.sum(axis=1, keepdims=True)
    want = sklearn.metrics.log_loss(label, probability, labels=range(4))
    assert metrics.mean_loss(label, output) == pytest.approx(want, rel=1e-9)


def test_cross_entropy_of_huge_logits_is_finite():
    output = np.array([[1000.0, 0.0], [-1000.0, 0.0]], np.float32)
    assert metrics.mean_loss(np.array([0, 0]), output) == 500.0


def test_mean_squared_error_equals_scikit_learn():
    rng = np.random.default_rng(0)
    label, output = rng.normal(size=9), rng.normal(size=(9, 1))
    want = sklearn.metrics.mean_squared_error(label, output[:, 0])
    assert metrics.mean_loss(label, output, regression=True) == pytest.approx(want, rel=1e-12)


def evaluated(task, label, output, groups, names):
    """The scores of a task type on outputs that are given."""
    split = Split(["x"] * len(label), None, label, groups)
    found = TaskData(find_task(task), ("a", "b", "c"), split, None, split, 0, groups=names)
    tools = EvalContext(found, lambda params, tokens: output, lambda x: x, None, None)
    tokens = Tokens(*[None] * 3, label)
    return TASK_TYPES[found.task.type].make_eval_fn(tools, split, tokens)(
        AdaptedParams(*[None] * 3)
    )


def test_natural_clients_are_scored_on_their_own_examples():
    rng = np.random.default_rng(0)
    label, groups = rng.integers(0, 3, 200).astype(np.int32), rng.integers(0, 25, 200)
    guess = np.where(rng.random(200) < 0.6, label, 0)
    output, names = logits_of(guess, 3), tuple(f"c{n}" for n in range(26))
    scores = evaluated("file(train='a.csv')", label, output, groups.astype(np.int32), names)
    want = {
        f"c{n}": sklearn.metrics.accuracy_score(label[groups == n], guess[groups == n])
        for n in range(25)
    }  # without c25, which has no test example
    assert scores["accuracy_by_client"] == pytest.approx(want)
    ordered = sorted(want.values())
    assert scores["accuracy_over_clients"] == pytest.approx({
        "mean": np.mean(ordered), "std": np.std(ordered), "worst_tenth": np.mean(ordered[:3]),
        "lowest": ordered[0], "highest": ordered[-1],
    })  # fmt: skip
    alone = evaluated("file(train='a.csv')", label, output, None, ())
    assert not [name for name in alone if "client" in name]


def test_regression_clients_are_scored_by_squared_error():
    label, output = np.array([0.0, 1.0, 2.0], np.float32), np.array([[0.0], [3.0], [2.5]])
    groups = np.array([0, 0, 1], np.int32)
    spec = "file(train='a.csv', metric='spearman')"
    scores = evaluated(spec, label, output.astype(np.float32), groups, ("x", "y"))
    assert scores["loss_by_client"] == {"x": 2.0, "y": 0.25}
    assert scores["loss_over_clients"]["worst_tenth"] == 2.0  # the highest error is the worst


def test_every_metric_is_listed_by_its_name():
    assert set(METRICS) == {*ORACLE, "pearson", "spearman"}
    assert all(fn.__name__ == name for name, fn in METRICS.items())
