"""The benchmark of the server's step, on matrices as small as they get."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from experiments.benchmarks.aggregation import RECORDS, report
from experiments.benchmarks.aggregation.contenders import CONTENDERS
from experiments.benchmarks.aggregation.problem import PROBLEMS, SWEEPS, Problem, clients, exact
from experiments.benchmarks.aggregation.run import measure
from experiments.tools import json_lines

pytestmark = pytest.mark.slow

TINY = Problem(
    name="tiny",
    targets={"layers/query": (20, 24), "layers/value": (20, 12)},
    layers=3,
    ranks=(1, 2, 4, 2),
    dense_layers=2,
)


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads(json.dumps(measure(TINY, 2)))


def test_all_implementations_compute_the_same_product(record: dict):
    assert record["contenders"].keys() == CONTENDERS.keys()
    for made in record["contenders"].values():
        assert made["errors"].keys() == TINY.targets.keys()
        assert all(0 < error < 1e-5 for error in made["errors"].values())


def test_all_implementations_compute_the_same_average():
    problem = dataclasses.replace(TINY, methods=("zero_padding",))
    for target, (inputs, outputs) in problem.targets.items():
        a, b = np.zeros((inputs, problem.rank)), np.zeros((problem.rank, outputs))
        for share, x in zip(problem.shares, clients(problem, target, 0), strict=True):
            a[:, : x.a.shape[1]] += share * x.a
            b[: x.b.shape[0]] += share * x.b
        for make in CONTENDERS.values():
            made = make(problem)
            assert list(made.methods) == ["zero_padding"]
            factors = made.factors(made.methods["zero_padding"](), target)
            for got, want in zip(factors, (a, b), strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_every_measurement_is_recorded(record: dict):
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


def test_table_sums_over_all_layers(record: dict, tmp_path: pathlib.Path):
    for made in record["contenders"].values():
        for method in made["seconds"]:
            made["seconds"][method] = [5.0, 1.0, 2.0]
    json_lines.append(tmp_path / RECORDS, record | {"name": PROBLEMS[0].name})
    lines = report.table(tmp_path).splitlines()
    assert len(lines) == 2 + 5
    ours, dense = (line.split(" | ") for line in (lines[2], lines[5]))
    assert ours[1:5] == ["hlora", "fedjax_lora", "2", "1.0"]
    assert dense[1:5] == ["hlora", "NumPy, dense SVD", "3", "1.5"]  # two of three layers took 2 s


def test_scaling_table_is_relative_to_this_package(tmp_path: pathlib.Path):
    problem = SWEEPS["clients"][10]
    times = {"ours": (2.0, 0.5), "numpy": (10.0, 1.0), "torch": (5.0, 0.25)}
    record = {
        "problem": dataclasses.asdict(problem),
        "contenders": {
            name: {
                "seconds": {"hlora": [svd], "zero_padding": [mean]},
                "layers": 1,
                "errors": {"layers/query": 1e-6},
            }
            for name, (svd, mean) in times.items()
        },
    }
    json_lines.append(tmp_path / RECORDS, record | {"name": problem.name})
    (line,) = report.sweep_table(tmp_path).splitlines()[2:]
    assert line == "| 10 | 16 | 1024 | 5 | 2.5 | 2 | 0.5 | 1e-06 |"


def test_scaling_varies_one_dimension_at_a_time():
    for name, cases in SWEEPS.items():
        for size, problem in cases.items():
            (width, _), *_ = problem.targets.values()
            sizes = {"clients": len(problem.ranks), "rank": problem.rank, "width": width}
            assert sizes == {"clients": 100, "rank": 16, "width": 1024} | {name: size}
            assert set(problem.ranks) == {problem.rank // 4, problem.rank // 2, problem.rank}


def test_all_methods_get_the_same_clients_of_mixed_ranks():
    first, again = (clients(TINY, "layers/value", 1) for _ in range(2))
    assert [x.a.shape for x in first] == [(20, r) for r in TINY.ranks]
    assert [x.b.shape for x in first] == [(r, 12) for r in TINY.ranks]
    for x, y in zip(first, again, strict=True):
        np.testing.assert_array_equal(x.a, y.a)
    other = clients(TINY, "layers/value", 2)
    assert not np.array_equal(first[0].a, other[0].a)
    assert np.linalg.matrix_rank(exact(TINY, "layers/value", 1)) == TINY.rank


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_adapter_shapes_match_the_models(problem: Problem):
    count, layers, sizes, ranks = {
        "RoBERTa-large": (100, 24, [(1024, 1024)] * 2, {4, 8, 16, 32, 64}),
        "Llama-8B": (20, 32, [(4096, 4096), (4096, 1024)], {16}),
    }[problem.name]
    assert (len(problem.ranks), problem.layers, set(problem.ranks)) == (count, layers, ranks)
    assert list(problem.targets.values()) == sizes
    np.testing.assert_allclose(problem.shares.sum(), 1)
