"""The code of the example notebook runs, and its committed outputs match the code."""

import pathlib

import nbformat
import pytest

from experiments.examples import run_notebook

pytestmark = pytest.mark.slow

NOTEBOOK = nbformat.read(run_notebook.NOTEBOOK, as_version=4)


def test_notebook_outputs_match_its_code():
    assert NOTEBOOK.metadata["executed_sha256"] == run_notebook.digest(NOTEBOOK)
    cells = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"execute_result"}
    assert any("image/png" in output.data for output in outputs), "the figure is shown"
    text = run_notebook.NOTEBOOK.read_text(encoding="utf-8")
    assert "/tmp/" not in text and str(pathlib.Path.home()) not in text


def test_notebook_code_runs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """Cell by cell, small."""
    monkeypatch.chdir(tmp_path)
    settings = "ROUNDS, LAYERS, EXAMPLES = 12, 6, 5000"
    sources = run_notebook.code(NOTEBOOK)
    assert settings in sources[0]
    sources[0] = sources[0].replace(settings, "ROUNDS, LAYERS, EXAMPLES = 1, 1, 150")
    names: dict = {}
    for number, source in enumerate(sources):
        exec(compile(source, f"cell {number}", "exec"), names)
    assert len(names["result"].history) == 1
    assert names["result"].history.index.name == "round"
    assert names["result"].plot()._repr_png_().startswith(b"\x89PNG")
    assert names["table"].shape == (3, 8)
    assert len(names["clients"]) == 50
