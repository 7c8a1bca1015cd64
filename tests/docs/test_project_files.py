"""Versions and commands that stand in several files of the project agree."""

import re
import tomllib

import fedjax_lora as fl
from tests._helpers import alike
from tests._helpers.pages import README, ROOT, blocks

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
WORKFLOW = (ROOT / ".github" / "workflows" / "tests.yml").read_text("utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


def test_workflow_tests_the_lower_bounds():
    pinned = dict(re.findall(r"\b(jax|flax|optax)==([\d.]+)", WORKFLOW))
    bounds = dict(
        re.findall(r"^(jax|flax|optax)>=([\d.]+)", "\n".join(PROJECT["dependencies"]), re.M)
    )
    assert pinned == bounds
    assert len(bounds) == 3


def test_workflow_tests_the_supported_pythons():
    (matrix,) = re.findall(r"python: \[(.*)\]", WORKFLOW)
    tested = re.findall(r"[\d.]+", matrix)
    classifiers = [c.split(" :: ")[-1] for c in PROJECT["classifiers"] if " :: Python :: " in c]
    assert tested == classifiers
    assert PROJECT["requires-python"] == f">={tested[0]}"


def test_makefile_runs_the_test_command_of_the_readme():
    command = blocks(README, "bash")[1].strip().rsplit(" && ", 1)[1]
    assert f"test:\n\t{command.replace('python', '$(PYTHON)', 1)}\n" in MAKEFILE


def test_tests_named_in_the_documentation_exist():
    pattern = re.compile(r"`((?:unit|integration|experiments|docs)/[\w/]+\.py)`")
    named = {x for page in ROOT.glob("docs/design/*.md") for x in pattern.findall(page.read_text())}
    assert len(named) > 20
    assert [name for name in sorted(named) if not (ROOT / "tests" / name).is_file()] == []


def test_makefile_has_its_targets():
    targets = set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))
    assert {"install", "test", "test-all", "lint", "docs"} <= targets


def test_citation_and_changelog_have_the_version_of_the_package():
    citation = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)
    newest = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert citation and newest and citation[1] == newest[1] == fl.__version__


def test_tests_that_the_default_run_keeps_exist():
    texts = "\n".join(path.read_text("utf-8") for path in ROOT.glob("tests/unit/**/test_*.py"))
    assert [name for name in sorted(alike.OWN) if f"def {name}(" not in texts] == []
