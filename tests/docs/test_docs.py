"""The code, commands, links and generated blocks of the README and the documentation are valid."""

import importlib
import importlib.util
import pathlib
import re
import shlex

import pytest
import tyro

import fedjax_lora as fl
from experiments.tools.markdown import text_of
from experiments.tools.write_docs import BLOCKS
from fedjax_lora.cli import chat_demo, deploy, evaluate, export, inspect, main, predict
from fedjax_lora.methods import METHODS
from fedjax_lora.runs.choices import check_choices
from fedjax_lora.runs.config import load
from tests._helpers.pages import DOCS, ROOT, blocks, name, pages

OPTIONS = {
    "evaluate": evaluate.EvaluateOptions,
    "predict": predict.PredictOptions,
    "export": export.ExportOptions,
    "inspect": inspect.InspectOptions,
}
DEPLOY = {
    "try": deploy.TryOptions,
    "new": deploy.NewOptions,
    "serve": deploy.ServeOptions,
    "run": deploy.PlayOptions,
}
COMMANDS = sorted(
    {
        line
        for page in pages()
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if line.startswith("fedjax-lora")
    }
)
MODULES = sorted(
    {
        found
        for page in [*pages(), *ROOT.glob("experiments/*/*/README.md")]
        for found in re.findall(r"python -m (experiments[\w.]+)", page.read_text("utf-8"))
    }
)
EXECUTED = [page for page in pages() if blocks(page, "python")]
SLOW = {"README.md", "docs/getting_started.md"}  # they train a pretrained model


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if name(page) in SLOW else [], id=name(page))
        for page in EXECUTED
    ],
)
def test_code_blocks_run(page: pathlib.Path):
    """The blocks of a page share one namespace, as the reader's session does."""
    registered = dict(METHODS)
    namespace = {}
    try:
        for number, block in enumerate(blocks(page, "python")):
            exec(compile(block, f"{name(page)}, block {number}", "exec"), namespace)
    finally:
        for added in set(METHODS) - set(registered):
            del METHODS[added]


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_commands_parse(command: str, monkeypatch):
    """Options parse and the config is possible; the run itself is replaced."""
    _, verb, *args = shlex.split(command, comments=True)
    monkeypatch.setattr("fedjax_lora.runs.tracking.session.is_installed", lambda module: True)
    execute = {"run": "cli.run.execute", "compare": "cli.compare.execute"}
    if verb in execute and "--help" not in args:
        args = [a for a in args if not a.endswith("config.json") and a != "--config"]
        args = [a for a in args if not a.startswith("--resume=")]
        calls = []
        monkeypatch.setattr(f"fedjax_lora.{execute[verb]}", lambda *given: calls.append(given))
        assert main.main([verb, *args]) == 0
        assert len(calls) == 1
    elif verb == "chat-demo":
        assert tyro.cli(chat_demo.ChatDemoOptions, args=args).rounds > 0
    elif verb in ("deploy", "client"):
        kind = deploy.ClientOptions if verb == "client" else DEPLOY[args.pop(0)]
        assert tyro.cli(kind, args=args)
    elif verb in OPTIONS:
        options = vars(tyro.cli(OPTIONS[verb], args=args)).values()
        assert {pathlib.Path("runs/hlora"), pathlib.Path("runs/tuned")} & {
            x for x in options if isinstance(x, pathlib.Path)
        }
    elif "--help" in args:
        with pytest.raises(SystemExit) as exit_info:
            main.main([verb, *args])
        assert exit_info.value.code == 0
    else:
        assert main.main([verb, *args]) == 0


CONFIGS = [block for page in pages() for block in blocks(page, "yaml")]


@pytest.mark.parametrize("text", CONFIGS)
def test_config_files_of_the_pages_load(text: str, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    check_choices(load(file))


@pytest.mark.parametrize("module", MODULES)
def test_commands_of_experiments_exist(module: str):
    assert importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_generated_blocks_are_up_to_date(block: str):
    """Every number comes from its result file: run `python -m experiments.tools.write_docs`."""
    text = BLOCKS[block]()
    assert text.endswith("\n")
    written = text_of(block)
    assert written and set(written) == {text}


def test_every_marker_has_a_generator():
    markers = {
        found
        for page in pages()
        if page.name != "CONTRIBUTING.md"  # it explains the markers
        for found in re.findall(r"<!-- (\w+):begin -->", page.read_text("utf-8"))
    }
    assert markers == set(BLOCKS)


@pytest.mark.parametrize("page", pages(), ids=name)
def test_relative_links_resolve(page: pathlib.Path):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#\s]+)[^)\s]*\)", text)
    written_by_the_build = [DOCS / "methods" / "pages", DOCS / "papers" / "pages"]
    copied_by_the_build = DOCS / "howto" / "notebook.ipynb"
    start = page.parent
    if page.parent == DOCS / "methods" / "notes":
        start = DOCS / "methods" / "pages"  # where the notes are read
    for link in links:
        target = (start / link).resolve()
        if "://" in link or target == copied_by_the_build:
            continue
        if target.parent in written_by_the_build:
            continue
        assert target.exists(), f"{name(page)} links to {link}"


def test_every_method_has_notes():
    notes = {path.stem for path in (DOCS / "methods" / "notes").glob("*.md")}
    assert notes == set(METHODS)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_notes_have_the_three_sections(method: str):
    text = (DOCS / "methods" / "notes" / f"{method}.md").read_text("utf-8")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        "Formula",
        "What differs from the paper",
        "Why your numbers may differ",
    ]


def test_contributing_lists_every_folder_of_the_package():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    listed = re.findall(r"^  (\w+)/ +\S", text, re.MULTILINE)
    folders = {path.parent.name for path in (ROOT / "fedjax_lora").glob("*/__init__.py")}
    assert set(listed) == folders


def test_every_namespace_has_its_reference():
    """Members follow from ``__all__``."""
    pages_of_api = [page.read_text("utf-8") for page in (DOCS / "api").glob("*.md")]
    found = {m for text in pages_of_api for m in re.findall(r"automodule:: (\S+)\n   :mem", text)}
    namespaces = {path.parent.name for path in (ROOT / "fedjax_lora").glob("*/__init__.py")}
    public = {f"fedjax_lora.{public}" for public in namespaces & set(fl.__all__)}
    parts = {f"fedjax_lora.runs.{part}" for part in fl.runs.__all__}
    assert public | parts <= found | {"fedjax_lora.runs", "fedjax_lora.runs.run"}
    for module in found:
        importlib.import_module(module)
