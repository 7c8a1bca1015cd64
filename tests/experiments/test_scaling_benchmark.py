"""The scaling benchmark, in its smallest form."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from experiments.benchmarks.scaling import RECORDS, report
from experiments.benchmarks.scaling.points import MEAN_8, POINTS, config
from experiments.benchmarks.scaling.run import measure
from experiments.tools import json_lines
from fedjax_lora.federated import ranks as rank_rules

pytestmark = pytest.mark.slow

SMALL = {"clients": 5, "layers": 1, "tokens": 8, "rounds": 2}


@pytest.fixture(scope="module")
def records() -> dict[int | None, dict]:
    """The same round without a mesh, and on two devices."""
    point = dataclasses.replace(POINTS[-1], **SMALL)
    return {
        count: json.loads(json.dumps(measure(dataclasses.replace(point, devices=count), None)))
        for count in (None, 2)
    }


def test_measurement_holds_all_its_rounds(records: dict):
    for devices, record in records.items():
        assert len(record["seconds"]) == len(record["train_loss"]) == 2
        assert record["compilations"] == 1
        assert record["devices"] == (devices or 1)
        assert 300 < record["before_megabytes"] <= record["peak_megabytes"] < 5000
        assert record["mean_rank"] == 8


def test_number_of_devices_does_not_change_the_result(records: dict):
    np.testing.assert_allclose(records[None]["train_loss"], records[2]["train_loss"], rtol=1e-5)


def test_table_is_relative_to_the_first_entry_of_a_series(tmp_path: pathlib.Path):
    rounds = ([9.0, 1.0, 3.0], [9.0, 8.0, 8.0], [9.0, 1.0, 1.0])
    for point, times in zip((*POINTS[:2], POINTS[-1]), rounds, strict=True):
        record = {"name": point.name, "point": dataclasses.asdict(point), "seconds": times}
        record |= {"train_loss": [2.0, 1.5], "compilations": 1}
        record |= {"peak_megabytes": 2000.4, "before_megabytes": 1000.0}
        json_lines.append(tmp_path / RECORDS, record)
    first, second, third = report.table(tmp_path).splitlines()[2:]
    assert first == "| 10 clients | 1.00 | 1.00 | 2,000 | 1,000 | 1 | 1.500000 |"
    assert second == "| 100 clients | 4.00 | 0.40 | 2,000 | 1,000 | 1 | 1.500000 |"
    assert third == "| 8 devices | - | - | 2,000 | 1,000 | 1 | 1.500000 |"


def test_mixed_rank_cohort_has_the_mean_of_the_equal_ranks():
    for spec in (MEAN_8, "fixed(rank=8)"):
        ranks = rank_rules.allocate(spec, clients=100, seed=0, quality=None, component_size=1).ranks
        assert ranks.mean() == 8
    assert len({point.name for point in POINTS}) == len(POINTS)
    assert all(config(point, None).federation.cohort == point.clients for point in POINTS)
