"""The source of models does not mention the layers built on them."""

import ast
import pathlib
import re

from fedjax_lora import models

FILES = sorted(pathlib.Path(models.__file__).parent.rglob("*.py"))
PARTS = ("core", "models")
ALLOWED = tuple(f"fedjax_lora.{part}" for part in PARTS)


def test_models_do_not_mention_higher_layers():
    # The package's own name contains one of the words.
    for file in FILES:
        text = file.read_text(encoding="utf-8").replace("fedjax_lora", "")
        found = re.findall(r"(?i)lora|adapter|client|federat|cohort", text)
        assert not found, f"{file.name} mentions {sorted(set(found))}"


def test_imports_point_downward():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.ImportFrom)
                and node.module
                and node.module.startswith("fedjax")
            ):
                full = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
                assert any(name.startswith(ALLOWED) for name in full), f"{file.name}: {full}"
