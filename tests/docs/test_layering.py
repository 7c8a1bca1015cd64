"""The allowed imports between folders, checked in the source.

A row says what the modules of a part may import from the rest of the package. A module that is in
no row makes a test fail: decide where it belongs.
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

import fedjax_lora

PACKAGE = Path(fedjax_lora.__file__).parent
ROOT = PACKAGE.parent

MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    # What LoRA, a model and data are: none of them knows another.
    "lora": {"core"},
    "models": {"core"},
    "data": {"core"},
    # A method knows adapters, but no model, data or client code.
    "methods": {"core", "lora"},
    "federated": {"core", "data", "lora", "methods"},
    "evaluation": {"core", "data", "federated", "lora", "models"},
    "interop": {"core", "data", "evaluation", "federated", "lora", "models"},
    "runs": {
        "core", "data", "evaluation", "federated", "interop", "lora", "methods", "models",
    },
    "deploy": {
        "core", "data", "federated", "lora", "methods", "models", "runs",
    },
    "cli": {
        "__init__", "core", "data", "deploy", "interop", "runs",
    },
    "__init__": {
        "core", "data", "evaluation", "federated", "interop", "lora", "methods", "models", "runs",
    },
    "__main__": {"cli"},
}  # fmt: skip
"""One row per folder: what its modules may import from the rest of the package."""

INSIDE: dict[str, set[str]] = {
    "core.types": set(),
    "core.errors": {"core.safe_text"},
    "core.safe_text": set(),
    "federated.objectives": {"core", "lora"},
    "federated.training": {"core", "lora", "methods", "federated.objectives"},
    "runs.config": {"core"},
    # Messages know no run, no model and no engine.
    "deploy.message": {"core"},
    "deploy.encodings": {"deploy.message"},
    "deploy.wire": {"core", "deploy.encodings", "deploy.message", "lora"},
}
"""Rows of single modules or inner folders whose independence matters."""

FROM_OUTSIDE: dict[str, set[str]] = {
    "data": {"numpy", "datasets", "jinja2", "pyarrow"},
    "runs.config": {"yaml"},
    "core.errors": set(),
    "core.safe_text": set(),
    "core.registry": set(),
    "core.atomic_io": {"filelock", "safetensors"},
    "evaluation.metrics": {"numpy", "jaxtyping"},
    "evaluation.text_metrics": {"numpy", "jaxtyping", "rouge_score"},
    "methods": {"jax", "jaxtyping", "numpy"},
    "lora": {"flax", "jax", "jaxtyping", "numpy"},
    "federated": {"dp_accounting", "flax", "jax", "jaxtyping", "numpy", "optax"},
    "federated.planning": {"numpy"},
    "federated.faults": {"numpy"},
    "deploy.message": {"numpy", "safetensors"},
    "deploy.encodings": {"ml_dtypes", "numpy"},
    "deploy.wire": {"numpy"},
    "deploy.exchange": {"jax", "numpy"},
    "deploy.site": {"jax", "numpy"},
    "deploy.server": {"numpy"},
}
"""Packages a folder or module may use; one without a row may use any."""


class Import(NamedTuple):
    where: str  # file:line
    module: str  # that imports
    target: str  # dotted


def part_of(module: str) -> str:
    """The folder of a module: ``methods`` for ``fedjax_lora.methods.base``."""
    return [*module.split("."), "__init__"][1]


def row_of(module: str, rows: Mapping[str, set[str]]) -> str | None:
    """The most specific row that covers a module (without the package's name), if any."""
    names = module.split(".")[1:]
    prefixes = (".".join(names[:k]) for k in range(len(names), 0, -1))
    return next((name for name in prefixes if name in rows), None)


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
        Import(f"{path}:{node.lineno}", module, target)
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


def is_allowed(one: Import) -> bool:
    package = one.target.split(".")[0]
    if package in ("experiments", "tests"):
        return False
    if inside(one):
        part, target = part_of(one.module), part_of(one.target)
        row = row_of(one.module, INSIDE)
        if row is not None:
            name = one.target.removeprefix("fedjax_lora.")
            return any(f"{name}.".startswith(f"{x}.") for x in {row, *INSIDE[row]})
        return target == part or target in MAY_IMPORT[part]
    row = row_of(one.module, FROM_OUTSIDE)
    return row is None or package in sys.stdlib_module_names or package in FROM_OUTSIDE[row]


def offences(found: list[Import]) -> list[str]:
    """Imports against the direction of dependence, as ``file:line imports target``."""
    return [f"{one.where} imports {one.target}" for one in found if not is_allowed(one)]


def test_imports_follow_the_layers():
    assert offences(every_import()) == []


def test_every_module_is_in_a_row():
    assert {part_of(module_of(file)) for file in files()} == set(MAY_IMPORT)


def levels() -> dict[str, int]:
    """The level of each folder: one more than the highest that it imports."""
    level: dict[str, int] = {}
    rows = {part: of - {"__init__"} for part, of in MAY_IMPORT.items()}
    while len(level) < len(rows):
        free = {p for p, of in rows.items() if p not in level and of <= set(level)}
        assert free, f"a cycle among {sorted(set(rows) - set(level))}"
        level |= {part: 1 + max((level[x] for x in rows[part]), default=0) for part in free}
    return level


def test_top_level_has_at_most_twelve_entries_and_deploy():
    """At most thirteen entries at the top, on at most nine levels (and `python -m` above)."""
    entries = [x for x in PACKAGE.iterdir() if x.name not in ("__pycache__", "py.typed")]
    assert len(entries) <= 13
    assert max(n for part, n in levels().items() if part != "__main__") <= 9


def test_modules_have_no_import_cycle():
    """Imports at the top of modules, function-level ones left out, form no circle."""
    edges: dict[str, set[str]] = {module_of(file): set() for file in files()}
    for file in files():
        module, is_package = module_of(file), file.name == "__init__.py"
        for node in ast.parse(file.read_text("utf-8")).body:
            for target in targets(node, module, is_package):
                names = [f"{target}.{a.name}" for a in getattr(node, "names", [])] + [target]
                edges[module] |= {name for name in names if name in edges and name != module}
    left = {m: {x for x in of if not x.startswith(f"{m}.")} for m, of in edges.items()}
    left = {m: {x for x in of if not m.startswith(f"{x}.")} for m, of in left.items()}
    while left:
        free = {module for module, of in left.items() if not of & set(left)}
        assert free, f"a circle among {sorted(left)}"
        left = {module: of for module, of in left.items() if module not in free}


def test_allowed_imports_are_all_used():
    """An unused permission would let a dependence grow unnoticed."""
    used = {(part_of(x.module), part_of(x.target)) for x in every_import() if inside(x)}
    allowed = {(part, of) for part, row in MAY_IMPORT.items() for of in row}
    assert allowed - used == set()


@pytest.mark.parametrize("folder", ["methods", "models"])
def test_folders_do_not_use_vocabulary_of_higher_layers(folder):
    """A method names no model, no data set and no client code; a model knows nothing federated."""
    words = {
        "methods": r"fedjax_lora\.(models|data|federated)|datasets|transformers|tokeni[sz]er|"
        r"encoder|roberta|distilbert|albert|ag_news|glue",
        "models": r"lora|adapter|federat|datasets\b",
    }[folder]
    wrong = []
    for file in sorted((PACKAGE / folder).rglob("*.py")):
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
            text = re.sub(r"fedjax_lora\.(core|models)", "", line)
            text = text.replace("from fedjax_lora import", "")
            if re.search(words, text, re.IGNORECASE):
                wrong.append(f"{file.relative_to(ROOT)}:{number} {line.strip()}")
    assert wrong == []


def test_only_methods_branch_on_the_name_of_a_method():
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
        ("methods.x", "from fedjax_lora import federated", "imports fedjax_lora.federated"),
        ("methods.x", "from fedjax_lora.federated import round", "imports fedjax_lora.federated"),
        ("methods.x", "import fedjax_lora.models.tiny as t", "imports fedjax_lora.models.tiny"),
        (
            "methods.x",
            "def f():\n    from fedjax_lora.data import load",
            "imports fedjax_lora.data",
        ),
        ("methods.x", "from ..federated import Plan", "imports fedjax_lora.federated"),
        ("methods.x", "from .. import federated", "imports fedjax_lora.federated"),
        ("methods.x", "import optax", "imports optax"),
        ("models.x", "from fedjax_lora import lora", "imports fedjax_lora.lora"),
        ("data.x", "import jax", "imports jax"),
        ("data.datasets.x", "import jax", "imports jax"),
        ("runs.config.io", "import jax", "imports jax"),
        ("runs.config.io", "from fedjax_lora.runs import run", "imports fedjax_lora.runs"),
        ("federated.training", "from fedjax_lora import data", "imports fedjax_lora.data"),
        ("evaluation.x", "from fedjax_lora.runs.config import X", "fedjax_lora.runs.config"),
        ("core.trees", "from experiments import tools", "imports experiments"),
        ("core.trees", "from fedjax_lora import __version__", "imports fedjax_lora"),
        ("cli", "import tests._helpers", "imports tests._helpers"),
    ],
)
def test_violation_is_reported_with_its_line(module, text, wrong):
    found = imports_in(f"import os\n{text}\n", f"fedjax_lora.{module}", "a.py")
    shown = offences(found)
    assert len(shown) == 1
    assert shown[0].startswith("a.py:") and shown[0].endswith(wrong)
    assert int(shown[0].split(":")[1].split()[0]) == 1 + len(text.splitlines())


def test_allowed_import_is_not_reported():
    text = "from . import base\nfrom .base import Method\nimport json\n"
    text += "from fedjax_lora.core import trees"
    assert offences(imports_in(text, "fedjax_lora.methods.x", "a.py")) == []
    text = "from .base import Method\nfrom fedjax_lora.methods.averaging import shares"
    assert offences(imports_in(text, "fedjax_lora.methods", "a.py", is_package=True)) == []
