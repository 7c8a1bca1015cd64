"""Every example in a docstring of the package is run."""

import doctest
import importlib
import pkgutil

import pytest

import fedjax_lora

ENGINES = {"fedjax_lora.deploy.nvflare"}
"""Modules that import a package of an extra; tests marked `extras` run them."""

MODULES = ["fedjax_lora"] + [
    module.name
    for module in pkgutil.walk_packages(fedjax_lora.__path__, "fedjax_lora.")
    if not module.name.endswith("__main__") and module.name not in ENGINES
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str):
    module = importlib.import_module(name)
    failures, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failures == 0


def test_package_has_docstring_examples():
    """The finder finds docstrings with examples."""
    modules = map(importlib.import_module, MODULES)
    with_examples = [
        m.__name__ for m in modules if any(t.examples for t in doctest.DocTestFinder().find(m))
    ]
    assert {"fedjax_lora.methods", "fedjax_lora.lora.spec", "fedjax_lora.core.trees"} <= set(
        with_examples
    )
