"""Reproductions of papers: configs build, parts run on tiny shapes, reports match the files."""

import dataclasses
import doctest
import json
import pathlib
import re
import shutil
from collections.abc import Mapping

import numpy as np
import pytest
import scipy.stats
import transformers

from experiments.papers import byun_lee, fed_plora_vs_flexlora
from experiments.papers.byun_lee import counts
from experiments.papers.fed_plora import small_cases
from experiments.papers.fed_plora_vs_flexlora import differences, unowned
from experiments.tools import claims, figures, full, plan, runner, small, study
from experiments.tools import report as report_lines
from experiments.tools.registry import STUDIES
from experiments.tools.study import Part, Results, Study
from experiments.tools.write_reports import REPORTS
from fedjax_lora import data, methods, models
from fedjax_lora.core.errors import InputError
from fedjax_lora.federated import optimizers, ranks
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.sweep.grid import changed
from fedjax_lora.runs.sweep.intervals import estimate

pytestmark = pytest.mark.slow

BOTH = [(one, size) for one in STUDIES for size in ("small", "full")]
EACH = pytest.mark.parametrize(
    ("chosen", "size"), BOTH, ids=[f"{one.name}-{size}" for one, size in BOTH]
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """A random one-layer checkpoint of width 64 with MiniLM's real tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    source = models.resolve("minilm").folder
    for path in source.glob("*"):
        if path.is_file() and ("token" in path.name or "vocab" in path.name):
            shutil.copy(path, folder)
    config = transformers.BertConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
    )
    transformers.BertModel(config).save_pretrained(folder)
    return str(folder)


def shrunk(part: Part, arm: str, model: str) -> Part:
    """One arm of a part with one seed, on a tiny model and the built-in task, for two rounds."""
    changes = {
        "data.task": "docstrings",
        "data.train_examples": 60,
        "data.test_examples": 20,
        "data.max_length": 8,  # one length of batches: compiles in half the time
        "model.model": model,
        "model.layers": None,
        "federation.clients": 4,
        "federation.cohort": 2,
        "federation.rounds": 2,
        "local.batch": 2,
        "local.max_steps": 1,
        "execution.eval_every": 1,
    }

    def base(task: str) -> RunConfig:
        held_out = min(part.base(task).data.validation_examples, 10)
        return changed(part.base(task), {**changes, "data.validation_examples": held_out})

    return part._replace(
        base=base, tasks=part.tasks[:1], arms={arm: part.arms[arm]}, seeds=part.seeds[:1]
    )


def shrunk_study(chosen: Study, arms: Mapping[str, str], model: str) -> Study:
    stage = lambda size, records: [  # noqa: E731
        shrunk(part, arms[part.name], model) for part in chosen.parts(size, {}) if part.name in arms
    ]
    return chosen._replace(stages=(stage,))


@EACH
def test_every_planned_config_is_valid(chosen, size):
    """Nothing is trained: methods, ranks, partitions, tasks, schedules are built."""
    cells = [cell for part in chosen.parts(size, {}) for cell in part.cells()]
    assert len({json.dumps(cell.labels, sort_keys=True) for cell in cells}) == len(cells)
    quality, labels = np.arange(100) < 10, np.arange(2000) % 4
    federations = {cell.config.federation for cell in cells}
    for fed in {(one.method, one.ranks, one.clients): one for one in federations}.values():
        allocated = ranks.allocate(
            fed.ranks,
            clients=fed.clients,
            seed=0,
            quality=quality[: fed.clients],
            component_size=1,
        )
        method = methods.make(fed.method, counts.spec())
        method.check(allocated.possible)
    for partition, clients in {(one.partition, one.clients) for one in federations}:
        data.partition(partition, labels, clients=clients, seed=0, min_examples=2)
    for config in {dataclasses.replace(cell.config, seed=0) for cell in cells}:
        data.find_task(config.data.task)
        optimizers.optimizer(config.local.optimizer, clip=config.local.clip)
        optimizers.schedule(config.local.schedule, rounds=config.federation.rounds)
        assert config.model.model in models.MODELS
        assert config.data.data_dir is None


def test_unknown_config_field_is_refused():
    part = STUDIES[0].parts("small", {})[0]
    wrong = part._replace(arms={"x": {"federation.metod": "hlora"}})
    with pytest.raises(InputError, match="metod"):
        wrong.cells()


REPRESENTATIVES = {
    ("fed_plora_vs_flexlora", "small"): {
        "tuning": "Fed-PLoRA, rate 0.003",
        "all_layers": "Fed-PLoRA",
    },
    ("fed_plora_vs_flexlora", "full"): {"qnli_heavy_tail": "raFLoRA"},
    ("byun_lee", "small"): {"fig3": "replication, 20% high"},
    ("byun_lee", "full"): {"fig2_albert": "rank 20 for all"},
    ("fed_plora", "small"): {"measured": "HetLoRA"},
    ("fed_plora", "full"): {"fig3": "PrsLoRA"},
    ("hlora", "small"): {"table": "naive, mixed ranks"},
    ("hlora", "full"): {"table": "HLoRA, mixed ranks"},
}


@pytest.mark.parametrize(("chosen", "size"), BOTH, ids=[f"{one.name}-{size}" for one, size in BOTH])
def test_parts_run_on_tiny_shapes_and_finished_runs_are_skipped(
    chosen, size, tiny_model, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(study, "ROOT", tmp_path)
    arms = REPRESENTATIVES[chosen.name, size]
    one = shrunk_study(chosen, arms, tiny_model)
    assert runner.execute([one], size, None) == 0, capsys.readouterr().out
    stored = one.runs_file(size).read_text(encoding="utf-8")
    count = len(stored.splitlines())
    assert count == len(arms)
    capsys.readouterr()
    assert runner.execute([one], size, None) == 0
    assert one.runs_file(size).read_text(encoding="utf-8") == stored
    assert f"{count} runs, {count} of them finished" in capsys.readouterr().out
    timed = ["server_seconds" in record["summary"] for record in one.records(size).values()]
    assert sum(timed) == ("measured" in arms)
    text = report_lines.cost(study.results(one, size))
    assert text.startswith(f"{count} of {count} runs are finished")


def test_aggregate_of_one_client_is_that_client(tiny_model, monkeypatch, tmp_path):
    """The diagnostic's three accuracies agree where there is nothing to aggregate with."""
    monkeypatch.setattr(study, "ROOT", tmp_path)
    part = next(p for p in byun_lee.STUDY.parts("small", {}) if p.name == "diagnostic")
    (arm,) = part.arms
    alone = {**part.arms[arm], "federation.clients": 1, "federation.cohort": 1}
    tiny = shrunk(part._replace(arms={arm: alone}), arm, tiny_model)
    one = byun_lee.STUDY._replace(stages=(lambda size, records: [tiny],))
    assert runner.execute([one], "small", None) == 0
    ((found,),) = (record["history"] for record in one.records("small").values())
    assert found["local"] == found["zero_padding"] == found["replication"]


@pytest.mark.parametrize("size", ["small", "full"])
def test_fed_plora_and_flexlora_differ_only_in_the_method(size):
    """Methods differ in nothing but themselves and a rate found with other seeds."""
    parts = {part.name: part for part in fed_plora_vs_flexlora.STUDY.parts(size, {})}
    tuning, deep = parts.pop("tuning"), parts.pop("tuning_all_layers", None)
    assert len(tuning.arms) == len(fed_plora_vs_flexlora.METHODS) * len(
        fed_plora_vs_flexlora.RATES[size]
    )
    assert deep is None or len(deep.arms) == len(fed_plora_vs_flexlora.PAIR) * len(
        fed_plora_vs_flexlora.RATES[size]
    )
    for part in parts.values():
        assert not set(part.seeds) & set(tuning.seeds)
        assert len(part.seeds) >= 5
        assert set(part.tasks) <= set(tuning.tasks)
        for seed in part.seeds:
            cells = [part.config(arm, task, seed) for arm in part.arms for task in part.tasks]
            same = {"federation.method": "fedit", "local.learning_rate": 1.0}
            assert len({changed(config, same) for config in cells}) == 1
            assert len({config.federation.method for config in cells}) == len(cells)
    judged = tuning.cells()[0].config
    reported = next(iter(parts.values())).cells()[0].config
    assert judged.data.validation_examples > 0 == reported.data.validation_examples
    assert judged.federation.rounds == reported.federation.rounds


def test_learning_rate_is_tuned_on_validation_examples(monkeypatch):
    (part, _) = fed_plora_vs_flexlora.tuning("small", {})
    part = part._replace(seeds=(100, 101))
    monkeypatch.setattr(fed_plora_vs_flexlora, "TUNING_SEEDS", part.seeds)
    scores = {3e-3: (0.5, 0.7), 8e-3: (0.8, 0.5), 2e-2: (0.9, 0.1)}  # test scores say otherwise
    scores |= dict.fromkeys(set(fed_plora_vs_flexlora.RATES["small"]) - set(scores), (0.1, 0.1))
    records = {}
    for rate, values in scores.items():
        for seed, value in zip(part.seeds, values, strict=True):
            config = part.config(fed_plora_vs_flexlora.tuned("HLoRA", rate), "sst2", seed)
            record = {"validation_accuracy": value, "accuracy": 1 - value}
            records[config] = {"history": [record]}
    best = lambda: fed_plora_vs_flexlora.best_rate("small", records, "HLoRA", "sst2")  # noqa: E731
    assert best() == 8e-3
    del records[next(iter(records))]  # an unfinished rate is not chosen
    assert best() == 8e-3
    assert fed_plora_vs_flexlora.best_rate("small", {}, "HLoRA", "sst2") == 3e-3
    (reported,) = (
        p for p in fed_plora_vs_flexlora.reporting("small", records) if p.name == "sst2_uniform"
    )
    assert reported.config("HLoRA", "sst2", 0).local.learning_rate == 8e-3


def made_up(scores: dict[str, list[float]], majority: float = 0.25) -> Results:
    """A part with one arm per entry, and a score per seed; None is a run that is not there."""
    part = Part(
        "p",
        "title",
        lambda task: changed(RunConfig(), {"data.task": task}),
        ("ag_news",),
        {arm: {"local.batch": n + 1} for n, arm in enumerate(scores)},
        tuple(range(max(map(len, scores.values())))),
    )
    records = {
        part.config(arm, "ag_news", seed): {
            "history": [{"accuracy": 0.0}, {"accuracy": score}],
            "summary": {"majority_accuracy": majority, "up_bytes": 1e6, "down_bytes": 2e6},
        }
        for arm, values in scores.items()
        for seed, score in enumerate(values)
        if score is not None
    }
    return Results({"p": part}, records, "small", pathlib.Path())


GOOD, POOR = [0.80, 0.83, 0.81], [0.70, 0.74, 0.70]


@pytest.mark.parametrize(
    ("first", "second", "options", "verdict"),
    [
        (GOOD, POOR, {}, claims.REPRODUCED),
        (POOR, GOOD, {}, claims.NOT_REPRODUCED),
        (GOOD, [0.78, 0.86, 0.79], {}, claims.UNTESTABLE),  # 2 points or more are not excluded
        (GOOD, [0.801, 0.828, 0.811], {}, claims.NOT_REPRODUCED),  # they are
        (GOOD, POOR, {"majority": 0.78}, claims.UNTESTABLE),
        (GOOD, POOR, {"majority": 0.76}, claims.REPRODUCED),
        (GOOD, [0.70, 0.74, None], {}, claims.NOT_RUN),
    ],
)
def test_claims_of_a_higher_score_are_judged_by_intervals(first, second, options, verdict):
    results = made_up({"a": first, "b": second}, **options)
    found = claims.higher("p", "a", "b", tasks=["ag_news"])(results)
    assert found.verdict == verdict
    if verdict != claims.NOT_RUN and "majority" not in options:
        bounds = scipy.stats.ttest_rel(first, second).confidence_interval()
        shown = re.findall(r"[+-]\d+\.\d", found.ours)[-2:]
        assert shown == [f"{100 * x:+.1f}" for x in bounds]
    if verdict == claims.NOT_RUN:
        assert found.ours == "5 of 6 runs"


@pytest.mark.parametrize(
    ("second", "verdict"),
    [
        ([0.805, 0.832, 0.815], claims.REPRODUCED),
        ([0.78, 0.86, 0.79], claims.UNTESTABLE),  # no difference seen, but none excluded
        (POOR, claims.NOT_REPRODUCED),
    ],
)
def test_claims_of_closeness_are_judged_by_intervals(second, verdict):
    results = made_up({"a": GOOD, "b": second})
    assert claims.close("p", "a", "b", tasks=["ag_news"])(results).verdict == verdict


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ([0.25, 0.26, 0.27], claims.REPRODUCED),  # surely more than half of it
        ([0.05, 0.06, 0.07], claims.NOT_REPRODUCED),
        ([0.05, 0.30, 0.20], claims.UNTESTABLE),
    ],
)
def test_claims_of_a_published_magnitude_are_judged_by_intervals(effects, verdict):
    assert claims.is_as_large(estimate(effects), 0.39) == verdict


def test_claim_about_missing_runs_is_not_tested():
    found = claims.higher("other", "a", "b")(made_up({"a": GOOD, "b": POOR}))
    assert found == ("not among the runs of this size", claims.UNTESTABLE)


def test_measured_claims_are_paired_by_seed():
    results = made_up({"a": GOOD, "b": POOR})
    ratio = lambda a, b: a[-1]["accuracy"] / b[-1]["accuracy"]  # noqa: E731
    judged = [
        claims.measured("p", ["a", "b"], ratio, holds, "{0:.4f} ± {1:.4f}", task="ag_news")
        for holds in (lambda x: x > 1, lambda x: x < 1)
    ]
    each = np.divide(GOOD, POOR)
    ours = f"{np.mean(each):.4f} ± {np.std(each, ddof=1):.4f}"
    assert judged[0](results) == (ours, claims.REPRODUCED)
    assert judged[1](results) == (ours, claims.NOT_REPRODUCED)
    missing = made_up({"a": GOOD, "b": [0.7, 0.7, None]})
    assert judged[0](missing) == ("5 of 6 runs", claims.NOT_RUN)


def test_readme_states_the_rounds_without_a_client_of_the_highest_rank():
    counts = [unowned.rounds_without_the_highest_rank(s) for s in fed_plora_vs_flexlora.SEEDS]
    readme = pathlib.Path(fed_plora_vs_flexlora.__file__).with_name("README.md")
    text = " ".join(readme.read_text(encoding="utf-8").split())
    assert f"no owner, in {min(counts)} to {max(counts)} of the 20 rounds" in text


def test_small_cases_of_fed_plora_refute_the_published_bound():
    """Two clients whose factors are 3 and -3: the covariance is 9, the distances add up to 6."""
    assert small_cases.bound(NOTHING).ours.endswith("noise 9, bound 6")
    assert small_cases.bound(NOTHING).verdict == claims.NOT_REPRODUCED
    assert small_cases.equal_ranks(NOTHING).verdict == claims.REPRODUCED


NOTHING = Results({}, {}, "small", pathlib.Path())


@pytest.mark.parametrize("module", [claims, differences])
def test_docstring_examples_run(module):
    failures, tried = doctest.testmod(module)
    assert failures == 0 < tried


def test_learning_curve_uses_all_rounds_and_best_is_the_maximum():
    record = {"history": [{"accuracy": 0.9}, {"loss": 1.0}, {"accuracy": 0.5}]}
    assert claims.course(record) == pytest.approx(0.7)
    assert (claims.last(record), claims.best(record)) == (0.5, 0.9)


def test_table_has_the_means_of_the_finished_runs():
    results = made_up({"a": GOOD, "b": [0.5, None, 0.7]})
    text = report_lines.part_table(results, results.parts["p"])
    assert text.startswith("**p**: title; all layers of minilm, ")
    rows = [line for line in text.splitlines() if line.startswith("| ag_news")]
    assert rows[0] == "| ag_news | a | 81.3 ± 1.5 | 40.7 ± 0.8 | 25.0 | 3 of 3 | 1 | 2 |"
    assert rows[1].startswith("| ag_news | b | 60.0 ± 14.1 |")
    assert "| 2 of 3 |" in rows[1]


def test_figure_has_the_means_and_the_finished_runs():
    results = made_up({"a": GOOD, "b": [0.5, None, 0.7], "c": [None] * 3})
    for record in results.records.values():
        record["history"] = [h | {"round": 4 * n} for n, h in enumerate(record["history"])]
    (axes,) = figures.accuracy_figure(results, results.parts["p"]).axes
    lines = {x.get_label(): x for x in axes.get_lines() if x.get_marker() != "None"}
    assert [*lines] == ["a", "b"], "nothing of what has not been run"
    assert lines["a"].get_xdata().tolist() == [0, 4]
    np.testing.assert_allclose(lines["b"].get_ydata(), [0, 60])
    single = [x.get_ydata()[-1] for x in axes.get_lines() if x.get_linewidth() < 0.9]
    np.testing.assert_allclose(single, [100 * x for x in (*GOOD, 0.5, 0.7)])
    assert not axes.collections, "no interval of three seeds"
    nothing = made_up({"a": [None]})
    assert figures.accuracy_figure(nothing, nothing.parts["p"]) is None


EVERY = pytest.mark.parametrize("report", REPORTS, ids=[one.study.name for one in REPORTS])


def test_every_study_has_a_report():
    assert [report.study for report in REPORTS] == [*STUDIES]


@EVERY
@pytest.mark.parametrize("size", ["small", "full"])
def test_readmes_are_generated_from_result_files(report, size):
    readme = report.study.home() / "README.md"
    text = readme.read_text(encoding="utf-8")
    begin, end = f"<!-- {size}:begin -->\n", f"<!-- {size}:end -->"
    assert text.split(begin)[1].split(end)[0] == report_lines.page(
        report, study.results(report.study, size)
    )


@EVERY
def test_every_figure_exists_and_is_referenced(report):
    folder = report.study.home()
    text = (folder / "README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"!\[[^]]*\]\((results/[^)]*\.png)\)", text))
    names = [*report_lines.all_figures(report, study.results(report.study, "small"))]
    assert shown >= {f"results/small/{name}.png" for name in names}
    there = {str(path.relative_to(folder)) for path in folder.glob("results/*/*.png")}
    assert shown == there


@EVERY
def test_reports_work_without_results(report, monkeypatch, tmp_path):
    monkeypatch.setattr(study, "ROOT", tmp_path)
    text = report_lines.page(report, study.results(report.study, "small"))
    assert text.startswith("Not yet run: 0 of ")
    results = study.results(report.study, "small")
    for claim in report.claims:
        verdict = claim.find(results).verdict
        decided = claim.part not in results.parts or verdict == claims.UNTESTABLE
        assert decided or verdict == claims.NOT_RUN


def test_conclusion_is_a_paired_interval_over_settings(monkeypatch):
    """Against SciPy, on made-up scores in which one method is 3 points better on average."""
    rng = np.random.default_rng(0)
    parts = {part.name: part for part in fed_plora_vs_flexlora.STUDY.parts("small", {})}
    records, gaps = {}, {seed: [] for seed in fed_plora_vs_flexlora.SEEDS}
    for part in parts.values():
        for cell in part.cells():
            ahead = 0.03 * (cell.labels["method"] == "Fed-PLoRA")
            score = 0.7 + ahead + 0.004 * rng.standard_normal()
            records[cell.config] = {
                "history": [{"accuracy": score, "validation_accuracy": 0.5}],
                "summary": {"majority_accuracy": 0.25},
            }
    results = Results(parts, records, "small", pathlib.Path())
    for name in differences.settings(results):
        (task,) = parts[name].tasks
        ours, theirs = (results.runs(name, arm, task) for arm in fed_plora_vs_flexlora.PAIR)
        for seed in gaps:
            gaps[seed].append(claims.last(ours[seed]) - claims.last(theirs[seed]))
    assert all(len(values) == 4 for values in gaps.values())
    mean = [np.mean(values) for values in gaps.values()]
    low, high = scipy.stats.ttest_1samp(mean, 0.0).confidence_interval()
    text = differences.outcome(results)
    assert f"[{100 * low:+.1f}, {100 * high:+.1f}] points at 95 %." in text
    assert "Fed-PLoRA is above FlexLoRA: " in text
    assert "replication and masked mean: no difference beyond " in text
    assert "not yet run" not in text
    assert "the two agree" in text, "both are 3 points"
    panels = {a.get_title(): a for a in differences.figures(results)["differences"].axes}
    assert [*panels] == [" minus ".join(pair) for pair in differences.PAIRS]
    axes = panels[" minus ".join(fed_plora_vs_flexlora.PAIR)]
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    bars = {names[int(bar.lines[0].get_ydata()[0])]: bar.lines[0] for bar in axes.containers}
    assert bars[differences.MEAN].get_xdata()[0] == pytest.approx(100 * np.mean(mean))


def test_parameter_counts_match_the_paper():
    """18 matrices of 768 x 768, by hand; and against the published numbers."""
    for rank, published in counts.PUBLISHED.items():
        assert counts.count(rank) == published == 18 * rank * (768 + 768)
    assert counts.mean_count() == 179_712


@pytest.mark.shared
def test_synthetic_shapes_match_distilbert(shared):
    config = models.read_config(shared / "models" / "distilbert-base-uncased")
    assert counts.spec(config).targets == counts.spec().targets


def test_plan_counts_every_run_once(monkeypatch, tmp_path):
    monkeypatch.setattr(study, "ROOT", tmp_path)
    rows = [line.strip("| ").split(" | ") for line in plan.table().splitlines()[2:]]
    planned = {row[0]: int(row[1]) for row in rows}
    assert planned.pop("all") == sum(planned.values())
    cells = [c for part in byun_lee.STUDY.parts("small", {}) for c in part.cells()]
    assert planned["byun_lee"] == len({c.config for c in cells}) < len(cells)  # two are shared


def test_invalid_arguments_are_refused_in_one_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(study, "ROOT", tmp_path)  # no run is finished there
    assert small.small(str(tmp_path), ("nonsense",)) == 2
    assert "nonsense" in capsys.readouterr().out
    assert small.small(str(tmp_path / "absent"), ("hlora",)) == 2
    assert "absent" in capsys.readouterr().out
    assert full.full(only=("nonsense",)) == 2


def test_result_files_hold_no_data_path():
    config = runner.located(RunConfig(), "somewhere")
    assert config.data.data_dir == "somewhere"
    for one in STUDIES:
        for record in one.records("small").values():
            assert configs.from_dict(record["config"]).data.data_dir is None
