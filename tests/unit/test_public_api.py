"""The names a user imports: lazily, without JAX, and all of them documented."""

import importlib
import importlib.resources
import inspect
import subprocess
import sys

import pytest

import fedjax_lora as fl

NAMESPACES = sorted(set(fl.__all__) - {"InputError", "RunConfig", "__version__", "run"})

IMPORT = """
import sys, time
began = time.process_time()
import fedjax_lora as fl
assert fl.__version__ and fl.RunConfig and fl.InputError
print(time.process_time() - began, "jax" in sys.modules)
"""


def test_importing_the_package_is_quick_and_does_not_import_jax():
    done = subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True)
    seconds, has_jax = done.stdout.decode().split()
    assert float(seconds) < 0.3
    assert has_jax == "False"


def test_every_public_name_is_found():
    assert set(fl.__all__) <= set(dir(fl))
    for name in fl.__all__:
        assert getattr(fl, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        fl.nothing  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", NAMESPACES)
def test_names_listed_by_a_namespace_exist(name: str):
    module = importlib.import_module(f"fedjax_lora.{name}")
    assert getattr(fl, name) is module
    for public in module.__all__:
        assert hasattr(module, public), public


@pytest.mark.parametrize("name", ["lora", "methods", "federated"])
def test_public_functions_and_records_have_a_docstring_and_types(name: str):
    module = getattr(fl, name)
    for public in module.__all__:
        value = getattr(module, public)
        if not (inspect.isfunction(value) or inspect.isclass(value)):
            continue
        assert inspect.getdoc(value), public
        if inspect.isfunction(value):
            signature = inspect.signature(value)
            assert signature.return_annotation is not inspect.Signature.empty, public
            for parameter in signature.parameters.values():
                assert parameter.annotation is not inspect.Parameter.empty, (public, parameter)


def test_every_method_factory_is_public():
    for name, factory in fl.methods.METHODS.items():
        assert name in fl.methods.__all__
        assert getattr(fl.methods, name) is factory


def test_package_is_marked_as_typed():
    assert (importlib.resources.files("fedjax_lora") / "py.typed").is_file()
