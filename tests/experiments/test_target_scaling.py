"""The table of rounds that were compiled for accelerators, and the command that fills it."""

import math
import pathlib

import jax
import pytest

from experiments.benchmarks.backbones import BACKBONES, assets, run_config
from experiments.benchmarks.targets import report, scaling
from experiments.benchmarks.targets.points import CLIENTS_PER_CHIP, POINTS, SIZES
from experiments.tools import json_lines
from fedjax_lora.core.chips import parse_target
from fedjax_lora.methods import METHODS


def test_points_grow_with_the_chips_and_name_what_there_is():
    assert len({point.name for point in POINTS}) == len(POINTS)
    assert {p.backbone for p in POINTS} == set(SIZES) < set(BACKBONES)
    assert {p.method for p in POINTS} < set(METHODS)
    counts = {parse_target(point.target).count for point in POINTS}
    assert {1, 16, 256} <= counts
    for count in counts:
        work = POINTS[0].work(count)
        assert work.clients == CLIENTS_PER_CHIP * count
        assert run_config(work).federation.cohort == work.clients


@pytest.mark.parametrize(
    ("backbone", "millions"), [("bert-base", 110), ("roberta-large", 355), ("llama-1b", 1236)]
)
def test_backbones_have_the_parameters_of_their_checkpoints(backbone: str, millions: int):
    """As their model cards count them; the encoders' have no head of four classes."""
    point = next(p for p in POINTS if p.backbone == backbone)
    params = assets(point.work(1), weights=False).model.params
    body = {name: part for name, part in params.items() if name != "head"}
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(body)) == pytest.approx(
        millions * 1e6, rel=0.01
    )


def test_command_goes_on_where_it_stopped(tmp_path: pathlib.Path):
    file, asked = tmp_path / "scaling.jsonl", []

    def measure(point, limit: float) -> dict:
        asked.append((point.name, limit))
        return {"error": "not compiled in time"} if point.target == "v5e:4x4" else {"chips": 1}

    only = "minilm fed_plora v5e:"
    scaling.fill(file, minutes=1, limit=5, only=only, measure=measure)
    count = len(asked)
    assert count == sum(only in point.name for point in POINTS) > 2
    scaling.fill(file, minutes=1, limit=5, only=only, measure=measure)  # nothing is left to try
    scaling.fill(file, minutes=0, limit=9, only=only, measure=measure)  # nothing in no time
    assert len(asked) == count
    scaling.fill(file, minutes=1, limit=9, only=only, measure=measure)
    assert asked[count:] == [("minilm fed_plora v5e:4x4", 9)]


def test_table_tells_what_fits_what_does_not_and_what_is_missing(tmp_path: pathlib.Path):
    file = tmp_path / "scaling.jsonl"
    about = {"chips": 4, "clients_at_once": 4, "estimated_bytes": 2e9, "processor_seconds": 61.2}
    fits = {
        "flops": 1.97e12, "total_bytes": 3e9, "collectives": {"all-reduce": [2, 5e6]},
        "round_seconds": 0.02,
    }  # fmt: skip
    names = ["minilm fed_plora v5e:1x1", "minilm fed_plora v5e:4x4", "bert-base flora v5e:4x4"]
    json_lines.append(file, {"name": names[1], **about, **fits})
    json_lines.append(file, {"name": names[0], **about, "needed": 2e10, "available": 1e10})
    json_lines.append(file, {"name": names[2], "error": "not compiled in 5 s"})
    lines = report.table(file).splitlines()
    assert lines[2].endswith("| 4; 4 of 4 | does not fit: 20.00 of 10.00 (2.00) | - | - | - | 61 |")
    assert lines[3].endswith(
        "| 4; 4 of 4 | 3.00 (2.00) | 20.0 | 50.0 | 2 x all-reduce, 5.00 MB | 61 |"
    )
    assert lines[-1] == (
        f"Of {len(POINTS)} rounds 2 were compiled so far; not in their time, or not at all: "
        f"{names[2]}."
    )
