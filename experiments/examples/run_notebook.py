"""Execute the example notebook and keep what it shows.

Run it with ``python -m experiments.examples.run_notebook``.
"""

import hashlib
import pathlib
import tempfile

import nbformat
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).parent
NOTEBOOK = FOLDER / "federated_lora.ipynb"


def code(notebook: nbformat.NotebookNode) -> list[str]:
    """The sources of the code cells, in order."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def digest(notebook: nbformat.NotebookNode) -> str:
    """Of the code: what was executed is what is there."""
    return hashlib.sha256("\n\n".join(code(notebook)).encode()).hexdigest()


def execute(path: pathlib.Path = NOTEBOOK) -> None:
    """Run all cells in a fresh kernel, in an empty folder, and write the outputs into the file."""
    notebook = nbformat.read(path, as_version=4)
    root = FOLDER.parents[1]
    with tempfile.TemporaryDirectory() as folder:
        first = nbformat.v4.new_code_cell(f"import sys; sys.path.insert(0, {str(root)!r})")
        notebook.cells.insert(0, first)
        NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": folder}}).execute()
    notebook.cells.pop(0)
    for cell in notebook.cells:
        cell.metadata = {}  # times of this execution
        if cell.cell_type == "code":
            cell.execution_count -= 1
            # Warnings name places of this machine.
            cell.outputs = [x for x in cell.outputs if x.get("name") != "stderr"]
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = cell.execution_count
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "executed_sha256": digest(notebook),
    }
    nbformat.write(notebook, path)


if __name__ == "__main__":
    execute()
