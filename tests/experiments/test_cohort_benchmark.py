"""The benchmark of a cohort's round, in its smallest form."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest

from experiments.benchmarks.cohort import RECORDS, products, profile, report
from experiments.benchmarks.cohort.run import CONTENDERS, measure
from experiments.benchmarks.cohort.work import CASES, Case, Work
from experiments.tools import json_lines
from fedjax_lora import models

pytestmark = pytest.mark.slow

TINY = Case(model="minilm", clients=2, batch=2, tokens=8, steps=1, ranks=(2, 4))


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads(json.dumps(measure(TINY, 2)))


def test_all_implementations_train_to_the_same_result(record: dict):
    losses = [record[name]["loss"] for name in ("ours", "loop", "peft")]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-4)
    assert 2 * 2 < record["tokens"] <= 2 * 2 * 8


def test_every_measurement_is_recorded(record: dict):
    assert all(len(record[name]["seconds"]) == 2 for name in CONTENDERS)
    assert all(record[name]["peak_megabytes"] > 100 for name in CONTENDERS)


def test_table_has_medians_of_adjacent_measurements(record: dict, tmp_path: pathlib.Path):
    case = CASES[0]
    times = {"ours": [1.0, 2.0, 4.0], "peft": [3.0, 4.0, 9.0], "loop": [1.0, 2.0, 4.0]}
    times["products"] = [0.5, 1.0, 2.0]
    for name, seconds in times.items():
        record[name]["seconds"] = seconds
    record["tokens"] = 1000
    json_lines.append(tmp_path / RECORDS, record | {"name": case.name})
    cells = report.table(tmp_path).splitlines()[2].split(" | ")
    assert cells[1:5] == ["500", "2.25", "1.00", "50 %"]


def test_counted_matrix_products_match_a_training_step():
    model = models.tiny(layers=3)
    config, (n, t, tokens) = model.config, (2, 8, 13)
    step = jax.jit(products._step(config, n, t, tokens))
    x = np.zeros((tokens, config.hidden), np.float32)
    counted = step.lower(products._kernels(config), x).cost_analysis()["flops"]
    h, m = config.hidden, config.intermediate
    real, whole, first = 2 * tokens, 2 * n * t, 2 * n
    linear = 4 * h * h + 2 * h * m
    attention = 2 * t * h
    forward = 2 * (real * linear + whole * attention)
    forward += real * 2 * h * h + first * (linear - 2 * h * h + attention)
    # Backwards: nothing below the first layer's query and value, two gradients a product.
    above = h * h + 2 * h * m
    backward = real * above + 2 * whole * attention
    backward += real * linear + 2 * whole * attention
    backward += first * (above + h * h) + real * 2 * h * h + 4 * first * attention // 2
    assert counted == pytest.approx(forward + backward, rel=0.05)


def test_profile_groups_operations_by_their_source(tmp_path: pathlib.Path):
    """Operations of a real program, as its text and its trace name them."""

    def work(x: jax.Array, rows: jax.Array) -> jax.Array:
        def step(_: int, x: jax.Array) -> jax.Array:
            return jax.nn.softmax(x @ x)[rows]

        return jax.lax.fori_loop(0, 3, step, x)

    given = np.ones((300, 300), np.float32), np.arange(300)[::-1].astype(np.int32)
    program = jax.jit(work).lower(*given).compile()
    kinds = profile.kinds_of(program.as_text())
    assert profile.PRODUCTS in kinds.values() and "gathers and scatters" in kinds.values()
    loop = re.search(r"%([\w.]+) = .* while\(", program.as_text())
    assert loop and loop[1] not in kinds, "the time of a loop is that of what it holds"
    with jax.profiler.trace(tmp_path):
        jax.block_until_ready(program(*given))
    found = profile.shares(profile.events_of(tmp_path, kinds))
    assert sum(found.values()) == pytest.approx(1)
    assert 0 < found[profile.PRODUCTS] < 1


def test_concurrent_threads_share_the_profiled_time():
    event = profile.Event
    events = [event("a", 0, 4), event("b", 2, 4), event("a", 6, 8), event("a", 6, 8)]
    assert profile.shares(events) == {"a": 5 / 8, "b": 1 / 8, profile.BETWEEN: 2 / 8}


def test_round_counts_tokens_without_padding():
    work = Work(
        ids=np.zeros((3, 4)),
        types=np.zeros((3, 4)),
        length=np.array([4, 3, 2]),
        label=np.zeros(3),
        rank=np.array([1]),
        index=np.array([[[0, 1], [2, 2]]]),
        valid=np.array([[[True, True], [True, False]]]),
        steps=np.array([2]),
        shape=np.array([[[2, 4, 8], [1, 4, 4]]]),
    )
    assert work.tokens == 4 + 3 + 2
    assert work._replace(steps=np.array([1])).tokens == 7
