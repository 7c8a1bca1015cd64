"""The benchmark of compilation, in its smallest form."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks.compilation import report
from experiments.benchmarks.compilation.listen import Compiler, branches
from experiments.benchmarks.compilation.run import Setting, main

pytestmark = pytest.mark.slow

TINY = Setting(clients=8, cohort=3, rounds=3, train=80, test=10, tokens=32, batch=4, layers=1)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("compilation")
    main(repeats=1, setting=TINY, results=folder)
    return folder


def test_round_is_compiled_once_and_then_cached(results: pathlib.Path):
    (cold,), (warm,) = report.records(results).values()
    for record in (cold, warm):
        assert record["round_compilations"] == 1
        assert record["step_copies"] == len(record["shapes"]) > 2
        assert sum(record["steps_by_shape"]) > max(record["steps_by_shape"]) > 0
        assert len({tuple(sorted(ids)) for ids in record["cohorts"]}) == 3
        assert len(record["round_end_seconds"]) == 3
    assert not any(program["cached"] for program in cold["programs"])
    assert report.of_round(warm)["cached"]
    assert any("round_fn" in name for name in cold["in_cache_after"])
    assert warm["in_cache_after"] == cold["in_cache_after"]  # nothing new to keep
    assert all(
        sum(report.parts(r)) == pytest.approx(r["round_end_seconds"][0]) for r in (cold, warm)
    )
    assert all(min(report.parts(r)) > 0 for r in (cold, warm))


def test_table_is_generated_from_result_files(results: pathlib.Path):
    cold, warm = (line.strip("| ").split(" | ") for line in report.table(results).splitlines()[2:])
    assert cold[:2] == ["cold", "1"] and cold[2] == cold[3]
    assert cold[4] == "nothing"
    assert "round_fn" in warm[4]
    assert (warm[5], warm[6], warm[7]) == ("1.0", "1.00", "1")
    assert float(cold[5]) > 1


def test_compiled_programs_are_listed_with_their_branches():
    compiler = Compiler()

    @jax.jit
    def chosen_by_data(x, n):
        return jax.lax.switch(n, [jnp.sin, jnp.cos, jnp.tanh], x)

    x, n = jnp.ones(3), jnp.int32(1)
    chosen_by_data(x, n)
    chosen_by_data(x, jnp.int32(2))
    (heard,) = (p for p in compiler.programs if "chosen_by_data" in p["name"])
    assert heard["seconds"] > 0
    assert any("chosen_by_data" in name for name in compiler.traced)
    assert branches(chosen_by_data.lower(x, n).as_text("hlo")) == 3
