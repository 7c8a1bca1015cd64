"""The direction of dependence: who may import whom, read from the source.

A row says what the modules of a part may import from the rest of the package. A module that is in
no row makes a test fail: decide where it belongs.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import fedjax_lora

PACKAGE = Path(fedjax_lora.__file__).parent
ROOT = PACKAGE.parent

FOUNDATION = {"types", "errors", "untrusted", "trees", "specs"}

MAY_IMPORT: dict[str, set[str]] = {
    # No federated idea, no model.
    "types": set(),
    "errors": set(),
    "files": {"errors", "untrusted"},
    "untrusted": {"errors"},
    "trees": {"types"},
    "specs": {"errors"},
    "storage": {"errors"},
    "flops": set(),
    "structure": {"errors"},
    "layerwise": set(),
    "lowrank": {"types", "layerwise"},
    "metrics": {"errors"},
    "processes": {"errors"},
    "cache": set(),
    "plots": set(),
    "interrupts": set(),
    "terminal": set(),
    # Leaves: know nothing of each other.
    "adapters": {"types", "errors", "trees", "storage", "untrusted"},
    "models": {"types", "errors", "trees", "storage", "untrusted"},
    "data": {"types", "errors", "specs", "untrusted"},
    "config": {"errors", "specs", "untrusted"},
    "allocation": {"errors", "specs"},
    "optimizers": {"errors", "specs"},
    "faults": {"errors", "specs"},
    # How clients train, and what a server does: neither knows the other, nor models, nor data.
    "clients": {"types", "errors", "trees", "adapters"},
    "methods": {"types", "errors", "trees", "specs", "adapters", "layerwise", "lowrank"},
    "measure": {"types", "errors", "trees", "storage", "adapters", "lowrank", "methods"},
    # What goes around a method: it knows what a method is, but none of them.
    "around": {"types", "errors", "trees", "specs", "adapters", "methods"},
    # One round, and the host's side of it.
    "rounds": {
        "types", "errors", "trees", "storage", "structure", "layerwise", "adapters", "around",
        "clients", "methods",
    },
    "federation": {"errors", "data", "faults", "rounds"},
    "scoring": {"types", "adapters", "clients", "rounds"},
    "reallocation": {"types", "adapters", "allocation", "federation", "rounds", "scoring"},
    "evaluation": {"types", "clients"},
    "checkpoints": {"errors", "structure", "allocation", "clients", "files", "rounds"},
    "results": {"errors", "checkpoints", "config", "files", "untrusted"},
    "kinds": {"types", "data", "evaluation", "metrics"},
    "answers": {"errors", "data", "generation", "kinds", "models"},
    # Text from a language model, with adapters.
    "generation": {"types", "errors", "adapters", "models", "untrusted"},
    # Those who put it together know everything below them.
    # Models in and out, without a run.
    "exchange": FOUNDATION | {"adapters", "clients", "data", "evaluation", "models", "storage"},
    "programs": {
        "types", "adapters", "around", "clients", "evaluation", "measure", "methods", "models",
        "optimizers", "rounds",
    },
    "promotion": {
        "types", "errors", "adapters", "allocation", "federation", "programs", "reallocation",
        "rounds", "scoring",
    },
    "assets": {"types", "errors", "clients", "config", "data", "exchange", "kinds", "models"},
    "global_model": {
        "types", "adapters", "answers", "assets", "config", "evaluation", "kinds", "rounds",
    },
    "experiment": FOUNDATION | {
        "adapters", "allocation", "around", "assets", "clients", "config", "data", "exchange",
        "faults", "federation", "global_model", "kinds", "methods", "models", "programs",
        "promotion", "reallocation", "rounds",
    },
    "handover": FOUNDATION | {
        "adapters", "assets", "checkpoints", "config", "exchange", "experiment", "files",
        "global_model", "methods", "rounds",
    },
    "resuming": {
        "errors", "checkpoints", "config", "experiment", "optimizers", "processes", "results",
    },
    "journal": {"checkpoints", "data", "experiment", "results", "resuming"},
    "playing": {
        "trees", "allocation", "around", "checkpoints", "experiment", "reallocation", "rounds",
    },
    "runs": FOUNDATION | {
        "adapters", "allocation", "assets", "checkpoints", "config", "data", "experiment",
        "exchange", "files", "handover", "journal", "optimizers", "playing", "plots", "processes",
        "programs", "results", "resuming", "rounds",
    },
    "workload": {"types", "data", "rounds"},
    "explain": {
        "types", "trees", "around", "assets", "clients", "config", "data", "experiment",
        "federation", "flops", "methods", "models", "optimizers", "programs", "rounds", "workload",
    },
    "compare": {
        "assets", "cache", "config", "data", "errors", "experiment", "files", "models",
        "optimizers", "plots", "programs", "runs",
    },
    "reopening": {
        "errors", "assets", "checkpoints", "config", "experiment", "results", "resuming", "runs",
    },
    "assessment": {
        "types", "checkpoints", "data", "exchange", "experiment", "handover", "kinds",
        "metrics",
    },
    "writing": {
        "types", "errors", "answers", "assessment", "data", "exchange", "kinds", "programs",
    },
    "commands": FOUNDATION | {
        "adapters", "assessment", "cache", "checkpoints", "config", "data", "exchange", "files",
        "handover", "plots", "reopening", "results", "writing",
    },
    "cli": FOUNDATION | {
        "__init__", "assets", "cache", "commands", "compare", "config", "data", "explain",
        "interrupts", "methods", "models", "processes", "runs", "terminal", "workload",
    },
    "__init__": {"config", "errors", "runs"},
    "__main__": {"cli"},
}  # fmt: skip

FROM_OUTSIDE: dict[str, set[str]] = {
    "data": {"numpy", "datasets", "pyarrow", "matplotlib"},
    "config": set(),
    "errors": set(),
    "files": {"filelock", "safetensors"},
    "untrusted": set(),
    "specs": set(),
    "metrics": {"numpy", "jaxtyping", "rouge_score"},
    "allocation": {"numpy"},
    "methods": {"jax", "jaxtyping", "numpy"},
    "adapters": {"flax", "jax", "jaxtyping", "numpy", "safetensors"},
    "clients": {"flax", "jax", "jaxtyping", "numpy", "optax"},
    "measure": {"jax", "jaxtyping", "numpy", "optax"},
    "around": {"dp_accounting", "jax", "jaxtyping", "numpy", "optax"},
    "rounds": {"jax", "jaxtyping"},
    "federation": {"numpy"},
    "faults": {"numpy"},
    "structure": {"jax"},
    "scoring": {"jax", "numpy"},
    "reallocation": {"jax", "numpy"},
}
"""Packages a part may use; a part without a row may use any."""


class Import(NamedTuple):
    where: str  # file:line
    part: str  # of the importing module
    target: str  # dotted


def part_of(module: str) -> str:
    """``fedjax_lora.methods.base`` is of the part ``methods``, ``fedjax_lora`` of ``__init__``."""
    return [*module.split("."), "__init__"][1]


def targets(node: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """The modules that an import statement asks for, dotted and absolute."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            anchor = module.split(".")
            anchor = anchor[: len(anchor) - node.level + is_package]
            base = ".".join([*anchor, *([base] if base else [])])
        if base == "fedjax_lora":  # from fedjax_lora import trees
            for alias in node.names:
                a_part = alias.name in MAY_IMPORT or (PACKAGE / alias.name).exists()
                yield f"fedjax_lora.{alias.name}" if a_part else "fedjax_lora"
        else:
            yield base


def imports_in(text: str, module: str, path: str, *, is_package: bool = False) -> list[Import]:
    return [
        Import(f"{path}:{node.lineno}", part_of(module), target)
        for node in ast.walk(ast.parse(text))
        for target in targets(node, module, is_package)
    ]


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def every_import() -> list[Import]:
    found = []
    for file in files():
        package = file.name == "__init__.py"
        module, path = module_of(file), str(file.relative_to(ROOT))
        found += imports_in(file.read_text("utf-8"), module, path, is_package=package)
    return found


def inside(found: Import) -> bool:
    return found.target.split(".")[0] == "fedjax_lora"


def offences(found: list[Import]) -> list[str]:
    """Imports against the direction of dependence, as ``file:line imports target``."""
    wrong = []
    for one in found:
        package = one.target.split(".")[0]
        if inside(one):
            target = part_of(one.target)
            allowed = target == one.part or target in MAY_IMPORT[one.part]
        elif package in sys.stdlib_module_names:
            allowed = True
        elif package in ("experiments", "tests"):
            allowed = False
        else:
            allowed = one.part not in FROM_OUTSIDE or package in FROM_OUTSIDE[one.part]
        if not allowed:
            wrong.append(f"{one.where} imports {one.target}")
    return wrong


def test_dependences_point_one_way():
    assert offences(every_import()) == []


def test_every_module_is_in_a_row():
    parts = {part_of(module_of(file)) for file in files()}
    assert parts - set(MAY_IMPORT) == set()
    assert set(MAY_IMPORT) - parts == set()


def test_the_rows_have_no_cycle():
    """But for the package itself, which imports a run when it is asked for one."""
    left = {part: set(of) - {"__init__"} for part, of in MAY_IMPORT.items() if part != "__init__"}
    while left:
        free = {part for part, of in left.items() if not of & set(left)}
        assert free, f"a cycle among {sorted(left)}"
        left = {part: of for part, of in left.items() if part not in free}


def test_the_rows_allow_nothing_that_is_not_used():
    """Or a part could grow a dependence that nobody decided on."""
    used = {(one.part, part_of(one.target)) for one in every_import() if inside(one)}
    foundation = FOUNDATION
    unused = {
        (part, of)
        for part, row in MAY_IMPORT.items()
        for of in row - foundation
        if (part, of) not in used
    }
    assert unused == set()


@pytest.mark.parametrize("folder", ["methods", "models"])
def test_no_vocabulary_of_others(folder):
    """A method names no model, no data set and no client code; a model knows nothing federated."""
    words = {
        "methods": r"fedjax_lora\.(models|data|clients)|datasets|transformers|tokeni[sz]er|encoder|"
        r"roberta|distilbert|albert|ag_news|glue",
        "models": r"lora|adapter|federat|fedjax_lora\.(clients|methods|data)|datasets\b",
    }[folder]
    wrong = []
    for file in sorted((PACKAGE / folder).glob("*.py")):
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
            text = line.replace("fedjax_lora.models", "").replace("from fedjax_lora import", "")
            text = re.sub(r"fedjax_lora\.(errors|storage|trees|types|untrusted)", "", text)
            if re.search(words, text, re.IGNORECASE):
                wrong.append(f"{file.relative_to(ROOT)}:{number} {line.strip()}")
    assert wrong == []


def test_nothing_but_methods_branches_on_a_methods_name():
    from fedjax_lora.methods import METHODS

    names = "|".join(METHODS)
    wrong = []
    for file in files():
        if file.parent.name != "methods":
            for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
                if re.search(rf"(==|!=|\bin\b)\s*[(\[{{]?\s*[\"']({names})[\"']", line):
                    wrong.append(f"{file.relative_to(ROOT)}:{number} {line.strip()}")
    assert wrong == []


@pytest.mark.parametrize(
    ("module", "text", "wrong"),
    [
        ("methods.x", "from fedjax_lora import clients", "imports fedjax_lora.federated"),
        ("methods.x", "from fedjax_lora.federated import local", "imports fedjax_lora.federated"),
        ("methods.x", "import fedjax_lora.models.tiny as t", "imports fedjax_lora.models.tiny"),
        (
            "methods.x",
            "def f():\n    from fedjax_lora.data import load",
            "imports fedjax_lora.data",
        ),
        ("methods.x", "from ..rounds import Plan", "imports fedjax_lora.federated"),
        ("methods.x", "from .. import clients", "imports fedjax_lora.federated"),
        ("methods.x", "import optax", "imports optax"),
        ("models.x", "from fedjax_lora import adapters", "imports fedjax_lora.lora"),
        ("data.x", "import jax", "imports jax"),
        ("clients.x", "from fedjax_lora.methods.base import Method", "fedjax_lora.methods.base"),
        ("rounds", "from fedjax_lora.data import batches", "imports fedjax_lora.data"),
        ("trees", "from experiments import plots", "imports experiments"),
        ("trees", "from fedjax_lora import __version__", "imports fedjax_lora"),
        ("cli", "import tests.problems", "imports tests.problems"),
    ],
)
def test_an_offence_is_found_and_shown_with_its_line(module, text, wrong):
    found = imports_in(f"import os\n{text}\n", f"fedjax_lora.{module}", "a.py")
    shown = offences(found)
    assert len(shown) == 1
    assert shown[0].startswith("a.py:") and shown[0].endswith(wrong)
    assert int(shown[0].split(":")[1].split()[0]) == 1 + len(text.splitlines())


def test_what_is_allowed_passes():
    text = (
        "from . import base\nfrom .base import Method\nimport json\nfrom fedjax_lora import trees"
    )
    assert offences(imports_in(text, "fedjax_lora.methods.x", "a.py")) == []
    text = "from .base import Method\nfrom fedjax_lora.methods.averaging import shares"
    assert offences(imports_in(text, "fedjax_lora.methods", "a.py", is_package=True)) == []
