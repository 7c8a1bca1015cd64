"""Whole comparisons on one layer of the real encoder and little text."""

import errno
import json
import logging
import re
import types

import jax
import numpy as np
import pytest

import fedjax_lora as fl
from fedjax_lora.cli import compare as compare_command
from fedjax_lora.core import atomic_io, trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.runs import build
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.config import (
    DataConfig,
    ExecutionConfig,
    FederationConfig,
    LocalConfig,
    ModelConfig,
    RunConfig,
)
from fedjax_lora.runs.sweep import record_store, runner
from fedjax_lora.runs.sweep.comparison_folder import claimed
from fedjax_lora.runs.sweep.grid import Grid
from fedjax_lora.runs.sweep.runner import compare
from fedjax_lora.runs.sweep.shared_assets import AssetCache

BASE = RunConfig(
    data=DataConfig(train_examples=60, test_examples=40, max_length=8),
    model=ModelConfig(layers=1),
    federation=FederationConfig(
        clients=4, cohort=2, rounds=2, ranks="tiers(ranks=[1, 2])", partition="dirichlet(alpha=0.3)"
    ),
    local=LocalConfig(batch=2, learning_rate=1e-2),
    execution=ExecutionConfig(eval_every=2),
)
GRID = Grid(
    base=BASE, methods=("fed_plora",), seeds=(0, 1), vary={"local.learning_rate": (0.01, 0.02)}
)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished comparison, and the names of the programs that were compiled on the way."""
    out = tmp_path_factory.mktemp("compare") / "out"
    compiled = []

    class Notes(logging.Handler):
        def emit(self, record):
            compiled.append(record.getMessage())

    notes = Notes()
    logging.getLogger("jax").addHandler(notes)
    with jax.log_compiles():
        made = compare(GRID, out=out)
    logging.getLogger("jax").removeHandler(notes)
    return made, compiled


def test_runs_with_equal_round_specs_compile_once(done):
    """Two seeds with other clients, sizes and subsets, and two rates: one round, one evaluation."""
    _, compiled = done
    for program in ("round_fn", "outputs"):
        found = [text for text in compiled if re.match(rf"Compiling jit\({program}\)", text)]
        assert len(found) == 1, "\n".join(found)
    cache = AssetCache()
    steps = {
        build.build(config, cache.assets(config)).federation.steps
        for config in (configs.from_dict(configs.to_dict(BASE) | {"seed": s}) for s in (0, 1))
    }
    assert len(steps) == 2, "the two seeds must need padding to a common number of steps"


def test_comparison_has_the_scores_of_single_runs(done):
    made, _ = done
    cell, record = made.lines[0].runs[1]
    assert cell.config.seed == 1
    alone = fl.run(cell.config)
    assert record["history"] == alone.records
    assert record["summary"]["base_sha256"] == alone.summary["base_sha256"]


def test_runs_that_are_trained_together_have_the_numbers_of_single_ones(done, tmp_path):
    """Two seeds, whose examples and steps differ, and two rates in one program."""
    compiled = []

    class Notes(logging.Handler):
        def emit(self, record):
            compiled.append(record.getMessage())

    notes = Notes()
    logging.getLogger("jax").addHandler(notes)
    with jax.log_compiles():
        made = compare(GRID, out=tmp_path / "out", together=4)
    logging.getLogger("jax").removeHandler(notes)
    assert not made.errors
    assert sum("Compiling jit(together)" in text for text in compiled) == 1
    alone = {cell.config: record for line in done[0].lines for cell, record in line.runs}
    together = {cell.config: record for line in made.lines for cell, record in line.runs}
    assert together.keys() == alone.keys()
    for config, record in together.items():
        assert record["summary"]["runs_together"] == 4
        for mine, want in zip(record["history"], alone[config]["history"], strict=True):
            assert mine.keys() == want.keys()
            for name in mine.keys() - {"clients"}:
                # Of 40 test texts one may be on the other side by a rounding.
                limit = 1 / 40 if name == "accuracy" else 2e-5
                assert mine[name] == pytest.approx(want[name], abs=limit), name
            for name, values in mine["clients"].items():
                assert values == pytest.approx(want["clients"][name], abs=2e-5), name


def test_all_outputs_are_written(done):
    made, _ = done
    assert {path.name for path in made.out.iterdir() if path.name != ".lock"} == {
        "base.json", "runs", "table.csv", "table.parquet", "table.md", "curves.png", "report.html"
    }  # fmt: skip
    assert configs.load(made.out / "base.json") == BASE
    assert len(list((made.out / "runs").iterdir())) == 4
    assert [line.labels["local.learning_rate"] for line in made.lines] == [0.01, 0.02]
    assert all(line.score.n == 2 for line in made.lines)
    assert (made.out / "table.csv").read_text().count("\n") == 1 + 4
    assert "fedjax-lora compare --config" in (made.out / "report.html").read_text()


def fake(failing: tuple[int, ...] = (), diverging: tuple[int, ...] = ()):
    """In place of a run: what it would be, and who asked for it."""
    asked = []

    def run(config, **options):
        asked.append((config.federation.method, config.local.learning_rate, config.seed))
        if config.seed in failing:
            raise FloatingPointError("lost its way\nfar from here")
        lost = config.seed in diverging
        found = {"accuracy": None if lost else 0.1 * config.seed, "loss": None if lost else 1.0}
        return types.SimpleNamespace(
            records=[{"round": 2, "train_loss": 1.0, "examples": 1, "up_bytes": 1, "down_bytes": 1,
                      "rejected": [], **found}],
            summary={**found, "python": "3", "packages": {}, "devices": "1", "base_sha256": "a"},
        )  # fmt: skip

    return asked, run


def again(done, monkeypatch, grid=GRID, failing=()):
    asked, run = fake(failing)
    monkeypatch.setattr(runner, "run", run)
    ended = []
    made = compare(grid, out=done[0].out, on_run=ended.append)
    return made, asked, ended


def test_repeated_call_loads_and_runs_nothing(done, monkeypatch):
    monkeypatch.setattr("fedjax_lora.runs.sweep.shared_assets.load_assets", None)
    made, asked, ended = again(done, monkeypatch)
    assert asked == ended == []
    assert [line.score for line in made.lines] == [line.score for line in done[0].lines]
    assert made.others == 0


def test_changed_grid_runs_only_missing_cells(done, monkeypatch):
    larger = Grid(base=BASE, methods=("fed_plora",), seeds=(0, 1, 5), vary=GRID.vary)
    made, asked, ended = again(done, monkeypatch, larger)
    assert asked == [("fed_plora", 0.01, 5), ("fed_plora", 0.02, 5)]
    assert [(x.number, x.total) for x in ended] == [(5, 6), (6, 6)]
    assert [line.score.n for line in made.lines] == [3, 3]
    made, asked, _ = again(done, monkeypatch)
    assert asked == [] and made.others == 2
    assert [line.score.n for line in made.lines] == [2, 2]


def test_failed_run_keeps_the_others_and_is_repeated(done, monkeypatch):
    larger = Grid(base=BASE, methods=("hlora",), seeds=(7, 8, 9))
    made, asked, ended = again(done, monkeypatch, larger, failing=(8,))
    assert [seed for _, _, seed in asked] == [7, 8, 9]
    assert made.errors == {"hlora, seed=8": "FloatingPointError: lost its way"}
    assert [x.record is None for x in ended] == [False, True, False]
    assert made.lines[0].score.n == 2
    assert "FloatingPointError: lost its way" in (made.out / "report.html").read_text()
    (note,) = made.out.glob("runs/*.error.txt")
    assert "far from here" in note.read_text()

    made, asked, _ = again(done, monkeypatch, larger)
    assert asked == [("hlora", 0.01, 8)]
    assert made.errors == {} and not note.exists()


def test_diverged_run_keeps_the_others_and_is_reported(tmp_path, monkeypatch, capsys):
    asked, run = fake(diverging=(2,))
    monkeypatch.setattr(runner, "run", run)
    chosen, out = Grid(base=BASE, methods=("hlora", "flora"), seeds=(1, 2)), tmp_path / "out"
    assert compare_command.execute(chosen, out) == 0
    assert len(asked) == 4
    printed = capsys.readouterr().out
    assert "hlora, seed=1: accuracy 0.1000 in" in printed
    assert "hlora, seed=2: accuracy not finite in" in printed
    assert "| hlora | - | - | - | 2 |" in (out / "table.md").read_text()
    assert "<td>-</td>" in (out / "report.html").read_text()
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert compare_command.execute(chosen, out) == 0
    assert len(asked) == 4, "a diverged run is finished"


def full(monkeypatch, names):
    """A disk that has no room for files whose names end so."""
    real = atomic_io.write

    def write(path, text):
        if path.name.endswith(names):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, text)

    monkeypatch.setattr(atomic_io, "write", write)


@pytest.mark.parametrize("names", [(".json", ".error.txt"), ("report.html",), ("base.json",)])
def test_full_disk_is_reported_in_one_sentence(names, tmp_path, monkeypatch, capsys):
    """While runs are kept, while the report is written, and before anything runs."""
    asked, run = fake()
    monkeypatch.setattr(runner, "run", run)
    chosen, out = Grid(base=BASE, methods=("hlora",), seeds=(0, 1)), tmp_path / "out"
    runner._write_base(out, chosen)
    runs_at = out / "runs" if ".json" in names else out
    with monkeypatch.context() as patch:
        if ".json" in names:
            patch.setattr(runner, "_write_base", lambda folder, grid: None)
        full(patch, names)
        with pytest.raises(InputError) as error:
            compare_command.execute(chosen, out)
    assert str(error.value) == (
        f"Output folder {runs_at} cannot be written (No space left on device)."
    )
    assert len(asked) == {".json": 1, "report.html": 2, "base.json": 0}[names[0]]
    assert compare_command.execute(chosen, out) == 0
    assert (out / "report.html").is_file()


def test_interruption_keeps_finished_runs(tmp_path, monkeypatch):
    asked, run = fake()

    def interrupted(config, **options):
        if config.seed == 1:
            raise KeyboardInterrupt
        return run(config)

    chosen = Grid(base=BASE, methods=("hlora",), seeds=(0, 1))
    monkeypatch.setattr(runner, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(chosen, out=tmp_path / "out")
    assert [config.seed for config in record_store.finished(tmp_path / "out" / "runs")] == [0]
    monkeypatch.setattr(runner, "run", run)
    compare(chosen, out=tmp_path / "out")
    assert [seed for _, _, seed in asked] == [0, 1]


def test_without_finished_runs_no_tables_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "run", fake(failing=(0,))[1])
    made = compare(Grid(base=BASE, methods=("hlora",), seeds=(0,)), out=tmp_path / "out")
    assert made.lines == [] and len(made.errors) == 1
    assert not (tmp_path / "out" / "report.html").exists()


def test_all_problems_are_reported_before_any_run(tmp_path, monkeypatch):
    asked, run = fake()
    monkeypatch.setattr(runner, "run", run)
    chosen = Grid(
        base=BASE,
        methods=("fedit", "nope", "hlora"),
        seeds=(0, 1),
        vary={"federation.partition": ("iid", "dirchlet(alpha=1)"), "local.batch": (8, 0)},
    )
    with pytest.raises(InputError) as error:
        compare(chosen, out=tmp_path / "out")
    text = str(error.value)
    for part in ("'fedit' needs clients of one rank", "Unknown method 'nope'",
                 "did you mean 'dirichlet'", "batch must be at least 1"):  # fmt: skip
        assert text.count(part) == 1
    assert asked == [] and not (tmp_path / "out").exists()


def test_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds other files \(config.json\) and no comparison"):
        compare(GRID, out=tmp_path)
    with pytest.raises(InputError, match="is a file"):
        compare(GRID, out=tmp_path / "config.json")


@pytest.mark.parametrize("known", [True, False])
def test_second_comparison_in_a_folder_is_refused(known, tmp_path, monkeypatch):
    """Whether the first has finished or both start at the same time."""
    _, run = fake()
    chosen, out = Grid(base=BASE, methods=("hlora",), seeds=(0,)), tmp_path / "out"
    refused = []

    def refuse(*given, **options):
        with pytest.raises(InputError, match=f"Another run is writing to {out}; wait for its end"):
            compare(chosen, out=out)
        refused.append(True)

    monkeypatch.setattr(runner, "run", lambda *x, **options: refuse() or run(*x, **options))
    if known:
        compare(chosen, out=out)
    else:
        with claimed(out) as start:  # the other has looked at the folder, and not begun
            start()
            refuse()
    assert refused
    monkeypatch.setattr(runner, "run", run)
    compare(chosen, out=out)  # the lock is released


def test_command_of_a_grid_parses_to_the_same_grid(tmp_path, monkeypatch):
    """Quotes, brackets, lists and nothing survive the shell."""
    import shlex

    from fedjax_lora.cli import main

    vary = {"federation.partition": ("iid", "dirichlet(alpha=0.1)"), "local.clip": (None, 1.0),
            "lora.lora_layers": ([0], [0, 1])}  # fmt: skip
    methods = ("hlora", "zero_padding(weights='uniform')")
    chosen = Grid(base=BASE, methods=methods, seeds=(0, 3), vary=vary)
    (tmp_path / "base.json").write_text(json.dumps(configs.to_dict(BASE)))
    seen = []
    monkeypatch.setattr("fedjax_lora.cli.compare.execute", lambda *given: seen.append(given) or 0)
    assert main.main(shlex.split(runner.command(chosen, tmp_path))[1:]) == 0
    assert seen == [(chosen, tmp_path, 1)]


def test_seeds_share_one_base(done):
    """Only the head differs, and it is the one that loading with that seed draws."""
    cache = AssetCache()
    one, other = (
        cache.assets(configs.from_dict(configs.to_dict(BASE) | {"seed": seed})).model
        for seed in (0, 1)
    )
    alone = build.load_assets(configs.from_dict(configs.to_dict(BASE) | {"seed": 1})).model
    assert other.fingerprint == alone.fingerprint
    first, second, third = (trees.flat(model.params) for model in (one, other, alone))
    assert first.keys() == second.keys() == third.keys()
    for path in first:
        assert (first[path] is second[path]) == (path not in one.new_params)
        np.testing.assert_array_equal(second[path], third[path])
    assert "head/classifier/kernel" in one.new_params
    assert not np.array_equal(first["head/classifier/kernel"], second["head/classifier/kernel"])
