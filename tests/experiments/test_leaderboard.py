"""The leaderboard: its plan, and its table and figure from made-up runs."""

import functools

import pytest

from experiments.studies import leaderboard
from experiments.studies.leaderboard import METHODS, MIXES, RATES, SEEDS, STUDY, TASKS, report
from experiments.tools.study import Part, Results, distinct
from fedjax_lora import methods
from fedjax_lora.core import registry

SHOWN = ("HLoRA", "FedHL", "FedIT")


def test_every_method_has_the_same_budget():
    tuning, *reporting = parts_of_the_study().values()
    named = {registry.parse(spec)[0] for spec in METHODS.values()}
    assert named == set(methods.METHODS)
    assert len(distinct([tuning])) == len(METHODS) * len(RATES) * len(TASKS)
    timed = [part for part in reporting if part.name == "timing"]
    checked = [part for part in reporting if part.name.endswith("_all_layers")]
    runs = distinct(part for part in reporting if part not in timed + checked)
    assert len(runs) == len(METHODS) * len(TASKS) * len(MIXES) * len(SEEDS)
    assert {c.config.seed for c in distinct([tuning])}.isdisjoint(c.config.seed for c in runs)
    assert len(distinct(timed)) == len(METHODS)
    assert len(distinct(checked)) == 5 * len(TASKS) * 3
    federations = [cell.config.federation for cell in runs]
    mixed = {spec: methods.takes_mixed_ranks(spec) for spec in {f.method for f in federations}}
    for federation in federations:
        word = "tiers" if mixed[federation.method] else "fixed(rank="
        assert federation.ranks.startswith(word)


def test_the_rate_with_the_best_validation_accuracy_is_used():
    part = leaderboard.tuning_part()
    name = leaderboard.tuned("HLoRA", RATES[1])
    records = {
        part.config(name, "sst2", leaderboard.TUNING_SEED): {
            "history": [{"validation_accuracy": 0.8}]
        }
    }
    assert leaderboard.best_rate(records, "HLoRA", "sst2") == RATES[1]
    assert leaderboard.best_rate(records, "HLoRA", "ag_news") == RATES[0]
    sst2 = next(p for p in leaderboard.reporting("small", records) if p.name == "sst2_uniform")
    assert sst2.config("HLoRA", "sst2", 0).local.learning_rate == RATES[1]


@functools.cache
def parts_of_the_study() -> dict[str, Part]:
    return {part.name: part for stage in STUDY.stages for part in stage("small", {})}


def made_up(accuracy: dict[str, float], tmp_path) -> Results:
    """All runs of some methods, the seeds a little apart; others are not run."""
    parts = parts_of_the_study()
    records = {}
    for mix in MIXES:
        for task in TASKS:
            part = parts[f"{task}_{mix}"]
            for name, value in accuracy.items():
                for seed in SEEDS:
                    reached = value + 0.01 * (seed % 2)
                    records[part.config(name, task, seed)] = {
                        "history": [{"accuracy": 0.5}, {}, {"accuracy": reached}],
                        "summary": {"up_bytes": 2e6 * value, "down_bytes": 3e6 * value},
                    }
    return Results(parts, records, "small", tmp_path)


def test_the_table_has_the_finished_methods_in_their_order(tmp_path):
    found = made_up(dict(zip(SHOWN, (0.8, 0.9, 0.7), strict=True)), tmp_path)
    lines = report.table(found).splitlines()[2:]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == ["FedHL", "HLoRA", "FedIT"]
    assert "90.4 ± 0.5" in lines[0] and "| +10.0 [+10.0, +10.0] |" in lines[0]
    assert "| 2 | 3 | - | 3 (20 of 20 runs) |" in lines[0]
    assert "3 (10 of 20 runs)" in lines[2]  # 0.70 reaches the target of one task
    assert report.table(made_up({}, tmp_path)) == "Not yet run.\n"


def test_the_first_five_are_checked_on_all_layers(tmp_path):
    accuracy = {name: 0.5 + 0.01 * n for n, name in enumerate([*METHODS][:7])}
    found = made_up(accuracy, tmp_path)
    first = leaderboard.first_methods(found.records)
    assert list(first) == [*METHODS][6:1:-1]
    parts = {part.name: part for part in leaderboard.checking("small", found.records)}
    records = dict(found.records)
    for part in parts.values():
        assert part.backbone().startswith("all layers")
        for name in first[:2]:
            for seed in part.seeds:
                config = part.config(name, part.tasks[0], seed)
                records[config] = {"history": [{"accuracy": 0.9 if name == first[1] else 0.8}]}
    text = report.check(found._replace(parts=found.parts | parts, records=records))
    lines = [line.split(" | ")[0].strip("| ") for line in text.splitlines() if "±" in line]
    assert lines == [first[1], first[0]]
    assert report.check(made_up({}, tmp_path)) == ""


def test_the_figure_names_the_backbone_and_every_finished_method(tmp_path):
    drawn = report.figure(made_up(dict.fromkeys(SHOWN, 0.8), tmp_path))
    assert drawn is not None
    (axes,) = drawn.axes
    assert "3 layers" in axes.get_title()
    assert {line.get_label() for line in axes.lines} >= set(SHOWN)
    assert report.figure(made_up({}, tmp_path)) is None


def test_rounds_to_a_target_are_counted_from_one():
    run = {"history": [{"accuracy": 0.1}, {}, {"accuracy": 0.9}]}
    assert report.rounds_to(run, 0.9) == 3
    assert report.rounds_to(run, 0.95) is None


@pytest.mark.parametrize("mix", MIXES)
def test_methods_of_one_rank_have_the_mean_of_the_mix(mix: str):
    change = leaderboard.arm("FedIT", mix, 0.01)
    assert change["federation.ranks"] == f"fixed(rank={leaderboard.mean_rank(mix)})"
