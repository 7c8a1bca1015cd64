"""What the README says is what the project does."""

import json
import pathlib
import re
import shlex

import pytest
import tyro

import experiments.benchmarks.aggregation.report
import experiments.benchmarks.cohort.report
import experiments.benchmarks.compilation.report
import experiments.benchmarks.cost_estimates.report
import experiments.benchmarks.end_to_end.report
import experiments.benchmarks.quantized_base.report
import experiments.benchmarks.scaling.report
import experiments.robustness.huggingface_parity.report
import experiments.robustness.interruptions.report
import experiments.robustness.malformed_input.report
import experiments.studies.ag_news.report
import experiments.studies.instruction_tuning.report
import experiments.studies.noise.report
import experiments.tools.readme_demo
import experiments.tools.readme_own_model
from experiments.tools import methods_table
from fedjax_lora.cli import evaluate, export, inspect, main, predict
from fedjax_lora.methods import METHODS

README = (pathlib.Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


OPTIONS = {
    "evaluate": evaluate.EvaluateOptions,
    "predict": predict.PredictOptions,
    "export": export.ExportOptions,
    "inspect": inspect.InspectOptions,
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def generated(name: str) -> str:
    return re.search(rf"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", README, re.DOTALL)[1]


def test_the_two_set_up_commands_are_one_line_each():
    demo, tests = blocks("bash")
    assert demo.count("\n") == tests.count("\n") == 1
    assert demo.rstrip().endswith("fedjax-lora run")
    assert "[test]" in tests
    assert tests.rstrip().endswith("python -m pytest -n auto --maxprocesses=4 --dist=worksteal")


def test_the_python_example_runs(capsys):
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    assert "attention/query" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [line for line in "".join(blocks("sh")).splitlines() if line.startswith("fedjax")]
)
def test_commands_are_understood(command, monkeypatch):
    """Options parse and the config is possible; the run itself is replaced."""
    _, name, *args = shlex.split(command, comments=True)
    execute = {"run": "cli.execute", "compare": "compare.command.execute"}
    if name in execute and "--help" not in args:
        args = [a for a in args if not a.endswith("config.json") and a != "--config"]
        args = [a for a in args if not a.startswith("--resume=")]
        seen = []
        monkeypatch.setattr(f"fedjax_lora.{execute[name]}", lambda *given: seen.append(given))
        assert main.main([name, *args]) == 0
        assert len(seen) == 1
    elif name in OPTIONS:
        given = tyro.cli(OPTIONS[name], args=args)
        assert pathlib.Path("runs/hlora") in vars(given).values()
    elif "--help" in args:
        with pytest.raises(SystemExit) as done:
            main.main([name, *args])
        assert done.value.code == 0
    else:
        assert main.main([name, *args]) == 0


def test_the_demo_is_told_from_its_result_folder():
    assert generated("demo") == experiments.tools.readme_demo.sentence()


def test_broken_inputs_are_told_from_their_result_file():
    assert generated("malformed") == experiments.robustness.malformed_input.report.sentence()


def test_the_cost_of_a_checkpoint_is_told_from_its_result_file():
    assert generated("checkpoint_cost") == experiments.robustness.interruptions.report.cost()


def test_every_trial_of_a_fault_has_ended_well():
    report = experiments.robustness.interruptions.report
    trials = [t for name in ("kills", "others", "methods") for t in report.read(name).values()]
    assert all(trial.get("same", True) and trial.get("told", True) for trial in trials)
    assert set(report.read("methods")) <= set(METHODS)
    assert (report.RESULTS / "methods.md").read_text() == report.methods_table()


@pytest.mark.parametrize(
    "name",
    [
        "ag_news",
        "explain",
        "faults",
        "instruction_tuning",
        "noise",
        "parity",
        "storage",
    ],
)
def test_tables_are_told_from_their_result_files(name: str):
    report = getattr(experiments, name).report
    table = report.table()
    assert table.count("\n") > 5
    assert generated(name) == table
    assert (report.RESULTS / "table.md").read_text() == table


@pytest.mark.parametrize("name", ["aggregation", "cohort", "compilation", "scaling", "whole"])
def test_benchmarks_are_told_from_their_result_files(name: str):
    report = getattr(experiments.benchmarks, name).report
    assert report.table().count("\n") > 3
    assert generated(name) == report.table()
    assert (report.RESULTS / "table.md").read_text() == report.table()


def test_what_a_traced_round_did_is_told_from_its_result_file():
    assert generated("cohort_profile") == experiments.benchmarks.cohort.report.profile_table()


def test_the_padding_of_the_whole_experiment_is_told_from_its_result_file():
    assert generated("whole_padding") == experiments.benchmarks.end_to_end.report.padding()


def test_the_growing_server_steps_are_told_from_their_result_files():
    report = experiments.benchmarks.aggregation.report
    assert generated("aggregation_sweep") == report.sweep_table()
    assert (report.RESULTS / "sweep.md").read_text() == report.sweep_table()


def test_the_model_of_ones_own_is_told_from_its_result_file():
    assert generated("own_model") == experiments.tools.readme_own_model.sentence()


def test_logits_are_the_same_in_pytorch():
    """What the table must show."""
    found = json.loads(
        (experiments.robustness.huggingface_parity.report.RESULTS / "parity.json").read_text()
    )
    assert all(max(row["adapter"], row["merged"]) < 1e-4 < row["effect"] for row in found["rows"])
    assert len(found["rows"]) == 5


def test_the_table_of_methods_is_the_registry():
    assert generated("methods") == methods_table.table()
