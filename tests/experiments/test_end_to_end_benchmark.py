"""The benchmark of whole experiments, in its smallest form."""

import json
import pathlib

import numpy as np
import pytest

from experiments.benchmarks.end_to_end import RECORDS, federated, report
from experiments.benchmarks.end_to_end.run import main
from experiments.benchmarks.end_to_end.setting import Setting
from experiments.benchmarks.end_to_end.work import Rounds
from experiments.tools import json_lines

pytestmark = pytest.mark.slow

TINY = Setting(
    clients=4, cohort=2, rounds=2, train=40, test=20, tokens=16, batch=4, ranks=(2, 4), every=1
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("whole")
    main(repeats=1, setting=TINY, results=folder)
    return folder


def test_both_programs_train_and_evaluate_equally(results: pathlib.Path):
    found = report.records(results)
    assert list(found) == ["ours-warm", "ours-cold", "peft"]
    (ours,), (cold,), (peft,) = found.values()
    assert ours["history"] == cold["history"]
    assert [sorted(h) for h in ours["history"]] == [["accuracy", "loss", "train_loss"]] * 2
    for mine, other in zip(ours["history"], peft["history"], strict=True):
        assert mine["accuracy"] == other["accuracy"]
        for name in ("train_loss", "loss"):
            np.testing.assert_allclose(mine[name], other[name], rtol=1e-4)
    first, second = report.losses(ours)
    assert abs(first - second) > 1e-3  # the second round begins with another model


def test_memory_of_every_process_is_measured(results: pathlib.Path):
    for made in report.records(results).values():
        assert 1 < made[0]["seconds"] < 300
        assert 300 < made[0]["peak_megabytes"] < 5000
    assert json.loads((results / "machine.json").read_text())["setting"]["rounds"] == 2


def test_table_has_medians(results: pathlib.Path, tmp_path: pathlib.Path):
    record = json_lines.by_name(results / RECORDS)["peft-0"]
    for name, times in {"ours-warm": [2.0, 1.0, 9.0], "peft": [4.0, 5.0, 6.0]}.items():
        for repetition, seconds in enumerate(times):
            changed = {"seconds": seconds, "peak_megabytes": 1000 * seconds}
            changed["name"] = f"{name}-{repetition}"
            json_lines.append(tmp_path / RECORDS, record | changed)
    ours, peft = (line.strip("| ").split(" | ") for line in report.table(tmp_path).splitlines()[2:])
    assert (ours[1], ours[2], ours[4], ours[5]) == ("1.00", "2,000", "0", "3")
    assert (peft[1], peft[2], peft[5]) == ("2.50", "5,000", "3")


def test_server_average_is_that_of_zero_padded_factors():
    rng = np.random.default_rng(0)
    most = [np.zeros((4, 3), "f4"), np.zeros((5, 4), "f4"), np.zeros((2,), "f4")]
    sent = [[rng.normal(size=s).astype("f4") for s in ((r, 3), (5, r), (2,))] for r in (1, 4, 2)]
    weight = np.array([1.0, 2.0, 5.0])
    got = federated.mean(sent, weight, most)
    for at, x in enumerate(most):
        want = np.zeros(x.shape)
        for arrays, w in zip(sent, weight, strict=True):
            ends = [(0, n - m) for n, m in zip(x.shape, arrays[at].shape, strict=True)]
            want += w / 8 * np.pad(arrays[at], ends)
        np.testing.assert_allclose(got[at], want, rtol=1e-6, atol=1e-7)


def test_client_receives_the_first_components():
    a, b, head = np.arange(12).reshape(4, 3), np.arange(20).reshape(5, 4), np.arange(2)
    cut = federated.cut([a, b, head], 2, 1)
    np.testing.assert_array_equal(cut[0], a[:2])
    np.testing.assert_array_equal(cut[1], b[:, :2])
    np.testing.assert_array_equal(cut[2], head)


def test_round_loss_is_weighted_by_examples():
    valid = np.array([[[[True, True], [True, False]], [[True, False], [False, False]]]])
    rounds = Rounds(
        id=np.array([[3, 1]]),
        rank=np.array([[4, 2]]),
        weight=np.array([[3.0, 1.0]]),
        steps=np.array([[2, 1]]),
        index=np.arange(8).reshape(1, 2, 2, 2),
        valid=valid,
        rate=np.ones(1),
        tested=np.ones(1, bool),
    )
    assert [rows.tolist() for rows in rounds.batches(0, 0)] == [[0, 1], [2]]
    assert [rows.tolist() for rows in rounds.batches(0, 1)] == [[4]]
    assert rounds.mean_loss(0, [1.0, 5.0]) == pytest.approx((3 * 1 + 5) / 4)
