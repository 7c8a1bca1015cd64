"""The README: one page, two set-up commands, and no table before them."""

import re

from tests._helpers.pages import DOCS, README, blocks


def test_readme_is_at_most_200_lines():
    assert len(README.read_text("utf-8").splitlines()) <= 200


def test_setup_commands_are_one_line_each():
    demo, tests = blocks(README, "bash")
    assert demo.count("\n") == tests.count("\n") == 1
    assert demo.rstrip().endswith("fedjax-lora run")
    assert "[test]" in tests
    assert tests.rstrip().endswith("python -m pytest -n auto --maxprocesses=4 --dist=worksteal")


def test_install_command_precedes_every_table():
    before, _ = README.read_text("utf-8").split("```bash", 1)
    assert not re.search(r"^\|", before, re.MULTILINE)


def test_readme_loop_learns(capsys):
    loop = blocks(README, "python")[1]
    exec(compile(loop, "README.md", "exec"), {})
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 10 and losses[-1] < losses[0]


def test_readme_loop_equals_that_of_the_first_docs_page():
    assert blocks(README, "python")[1] in blocks(DOCS / "getting_started.md", "python")
