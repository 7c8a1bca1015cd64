"""What the README says is what the project does."""

import pathlib
import re
import shlex

import pytest

import experiments.ag_news.report
import experiments.demo.report
import experiments.instruction_tuning.report
import experiments.noise.report
import experiments.server_aggregation.report
import experiments.storage.report
from experiments import methods_table
from fedjax_lora import cli

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def generated(name: str) -> str:
    return re.search(rf"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", README, re.DOTALL)[1]


def test_the_two_set_up_commands_are_one_line_each():
    demo, tests = blocks("bash")
    assert demo.count("\n") == tests.count("\n") == 1
    assert demo.rstrip().endswith("fedjax-lora run")
    assert "[test]" in tests
    assert tests.rstrip().endswith("pytest")


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
        seen = []
        monkeypatch.setattr(f"fedjax_lora.{execute[name]}", lambda *given: seen.append(given))
        assert cli.main([name, *args]) == 0
        assert len(seen) == 1
    elif "--help" in args:
        with pytest.raises(SystemExit) as done:
            cli.main([name, *args])
        assert done.value.code == 0
    else:
        assert cli.main([name, *args]) == 0


def test_the_demo_is_told_from_its_result_folder():
    assert generated("demo") == experiments.demo.report.sentence()


@pytest.mark.parametrize(
    "name", ["ag_news", "instruction_tuning", "noise", "server_aggregation", "storage"]
)
def test_tables_are_told_from_their_result_files(name: str):
    report = getattr(experiments, name).report
    table = report.table()
    assert table.count("\n") > 5
    assert generated(name) == table
    assert (report.RESULTS / "table.md").read_text() == table


def test_the_table_of_methods_is_the_registry():
    assert generated("methods") == methods_table.table()
