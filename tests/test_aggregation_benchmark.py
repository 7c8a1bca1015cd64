"""The benchmark of the server's step, on matrices as small as they get."""

import json
import pathlib

import numpy as np
import pytest

from experiments.benchmarks.aggregation import report
from experiments.benchmarks.aggregation.contenders import CONTENDERS
from experiments.benchmarks.aggregation.problem import PROBLEMS, Problem, clients, exact
from experiments.benchmarks.aggregation.run import measure

TINY = Problem(
    name="tiny",
    sites={"layers/query": (20, 24), "layers/value": (20, 12)},
    layers=3,
    ranks=(1, 2, 4, 2),
    dense_layers=2,
)


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads(json.dumps(measure(TINY, 2)))


def test_all_contenders_find_the_same_product(record: dict):
    assert record["contenders"].keys() == CONTENDERS.keys()
    for made in record["contenders"].values():
        assert made["errors"].keys() == TINY.sites.keys()
        assert all(0 < error < 1e-5 for error in made["errors"].values())


def test_every_turn_is_written_down(record: dict):
    counted = {
        name: {method: len(turns) for method, turns in made["seconds"].items()}
        for name, made in record["contenders"].items()
    }
    assert counted == {  # ranks are mixed: no FedIT
        "ours": {"hlora": 2, "masked_mean": 2, "flora": 2},
        "numpy": {"hlora": 2},
        "torch": {"hlora": 2},
    }
    assert [made["layers"] for made in record["contenders"].values()] == [3, 2, 2]


def test_the_table_counts_all_layers(record: dict, tmp_path: pathlib.Path):
    for made in record["contenders"].values():
        for method in made["seconds"]:
            made["seconds"][method] = [5.0, 1.0, 2.0]
    (tmp_path / "tiny.json").write_text(json.dumps(record))
    lines = report.table(tmp_path).splitlines()
    assert len(lines) == 2 + 5
    ours, dense = (line.split(" | ") for line in (lines[2], lines[5]))
    assert ours[1:5] == ["hlora", "fedjax_lora", "2", "1.0"]
    assert dense[1:5] == ["hlora", "NumPy, dense SVD", "3", "1.5"]  # two of three layers took 2 s


def test_clients_are_the_same_for_everybody_and_have_their_own_ranks():
    first, again = (clients(TINY, "layers/value", 1) for _ in range(2))
    assert [x.a.shape for x in first] == [(20, r) for r in TINY.ranks]
    assert [x.b.shape for x in first] == [(r, 12) for r in TINY.ranks]
    for x, y in zip(first, again, strict=True):
        np.testing.assert_array_equal(x.a, y.a)
    other = clients(TINY, "layers/value", 2)
    assert not np.array_equal(first[0].a, other[0].a)
    assert np.linalg.matrix_rank(exact(TINY, "layers/value", 1)) == TINY.rank


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_the_adapter_sets_are_those_of_the_models(problem: Problem):
    count, layers, sizes, ranks = {
        "RoBERTa-large": (100, 24, [(1024, 1024)] * 2, {4, 8, 16, 32, 64}),
        "Llama-8B": (20, 32, [(4096, 4096), (4096, 1024)], {16}),
    }[problem.name]
    assert (len(problem.ranks), problem.layers, set(problem.ranks)) == (count, layers, ranks)
    assert list(problem.sites.values()) == sizes
    np.testing.assert_allclose(problem.shares.sum(), 1)
