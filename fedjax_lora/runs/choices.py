"""Check the choices of a config before JAX, data or models are loaded.

A choice is a string such as ``"tiers(ranks=[2, 8])"`` that names an entry of a registry. The
registries import JAX, which takes seconds. While their modules are not imported, this module reads
names, options and types from their source with `ast`, so a typo is answered at once. Values that
only a factory can judge (``alpha=0``) are checked when the factory is called.
"""

import ast
import functools
import importlib
import importlib.util
import inspect
import os
import pathlib
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError, unknown
from fedjax_lora.runs.config import RunConfig

PACKAGE = pathlib.Path(__file__).parents[1]

Factories = Mapping[str, Callable[..., Any]]


class Registry(NamedTuple):
    """Where the factories of one kind of choice are registered.

    Attributes:
      module: dotted name below ``fedjax_lora``.
      variable: name of the dictionary in that module.
      given: names of the arguments that a run supplies, not the user.
    """

    module: str
    variable: str
    given: tuple[str, ...] = ()


REGISTRIES: Mapping[str, Registry] = {
    "method": Registry("methods", "METHODS", ("spec",)),
    "rank allocation": Registry("federated.ranks", "ALLOCATIONS", ("population",)),
    "partition": Registry("data.partitioners", "PARTITIONERS"),
    "update": Registry("federated.transforms.registry", "TRANSFORMS"),
    "fault": Registry("federated.faults", "FAULTS"),
    "server optimizer": Registry("federated.transforms.server_optimizers", "SERVER_OPTIMIZERS"),
    "schedule": Registry("federated.optimizers", "SCHEDULES", ("rounds",)),
}


def check_choices(config: RunConfig) -> None:
    """Check that every choice of a config exists and has the options that are given.

    Raises:
      InputError: an unknown name or option, or an option of the wrong type.
    """
    _check_model(config.model.model)
    _check_targets(config.lora.targets)
    _check_task(config.data.task)
    for kind, spec in _choices(config):
        given = REGISTRIES[kind].given if kind in REGISTRIES else ()
        registry.check(spec, factories(kind), kind, given)


def _choices(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield the kind and the text of each choice of a config."""
    fed = config.federation
    yield "method", fed.method
    yield "rank allocation", fed.ranks
    yield "partition", fed.partition
    yield from (("update", spec) for spec in fed.updates)
    yield from (("fault", spec) for spec in fed.faults)
    yield "server optimizer", fed.server_optimizer
    yield "schedule", config.local.schedule
    yield "optimizer", config.local.optimizer


def factories(kind: str) -> Factories:
    """Return the factories of a kind by name.

    They are the registry itself if its module is imported (it may have entries added by the user)
    or needs no JAX, and otherwise functions with the same signatures, which are not to be called.
    """
    if kind == "optimizer":
        return read_optimizers()
    module, variable, _ = REGISTRIES[kind]
    if module.startswith("data."):
        importlib.import_module(f"fedjax_lora.{module}")
    loaded = sys.modules.get(f"fedjax_lora.{module}")
    if loaded is None or not hasattr(loaded, variable):
        return read_factories(module, variable)
    return getattr(loaded, variable)


@functools.cache
def read_factories(module: str, variable: str) -> Factories:
    """Read a registry from its source, without importing the module.

    Args:
      module: dotted name below ``fedjax_lora``.
      variable: name of a dictionary of functions.

    Returns:
      For each name of the dictionary a function with the signature of the registered one.
    """
    tree = _parse(module)
    entries = _mapping(tree, variable)
    return {name: _signature_only(*_function(tree, value)) for name, value in entries.items()}


@functools.cache
def _parse(module: str) -> ast.Module:
    path = PACKAGE.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def _value(tree: ast.Module, variable: str) -> ast.expr | None:
    """Return the expression that a module assigns to a variable, if there is one."""
    for node in tree.body:
        names = node.targets if isinstance(node, ast.Assign) else []
        names = [node.target] if isinstance(node, ast.AnnAssign) else names
        if any(isinstance(name, ast.Name) and name.id == variable for name in names):
            return node.value  # type: ignore[union-attr]
    return None


def _mapping(tree: ast.Module, variable: str) -> dict[str, ast.expr]:
    """Return the entries of a dictionary, also inside a call such as MappingProxyType.

    The dictionary is a literal, or ``{function.__name__: function for function in (...)}``.
    """
    value = _value(tree, variable)
    while isinstance(value, ast.Call):
        value = value.args[0]
    if isinstance(value, ast.DictComp):
        functions = value.generators[0].iter
        assert isinstance(functions, ast.Tuple), variable
        return {name.id: name for name in functions.elts if isinstance(name, ast.Name)}
    assert isinstance(value, ast.Dict), variable
    return {
        ast.literal_eval(key): entry
        for key, entry in zip(value.keys, value.values, strict=True)
        if key is not None
    }


def _function(tree: ast.Module, value: ast.expr) -> tuple[ast.Module, ast.FunctionDef]:
    """Find the definition of a registered function: the module it is in, and the definition."""
    assert isinstance(value, ast.Name), ast.dump(value)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == value.id:
            return tree, node
    module, name = _imported(tree, value.id)
    return _function(_parse(module), ast.Name(name))


def _signature_only(tree: ast.Module, definition: ast.FunctionDef) -> Callable[..., Any]:
    """Return a function with the keyword-only parameters of a definition."""
    arguments = zip(definition.args.kwonlyargs, definition.args.kw_defaults, strict=True)
    parameters = [_parameter(tree, argument, default) for argument, default in arguments]
    return _with_parameters(parameters)


def _parameter(tree: ast.Module, argument: ast.arg, default: ast.expr | None) -> inspect.Parameter:
    """Return a keyword-only parameter with the type and default of an argument."""
    return inspect.Parameter(
        argument.arg,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is None else ast.literal_eval(default),
        annotation=Any if argument.annotation is None else _type(tree, argument.annotation),
    )


def _with_parameters(parameters: Sequence[inspect.Parameter]) -> Callable[..., Any]:
    """Return a function with these parameters that cannot be called."""

    def function(**options: Any) -> Any:
        raise NotImplementedError("This function has a signature only.")

    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    return function


_TYPES = {"int": int, "float": float, "str": str, "bool": bool, "None": None}


def _type(tree: ast.Module, node: ast.expr) -> Any:
    """Return the type that an annotation names; Any for all but plain values and sequences."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.BinOp):
        return typing.Union[_type(tree, node.left), _type(tree, node.right)]  # noqa: UP007
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        if node.value.id == "Literal":
            return Literal[ast.literal_eval(node.slice)]
        if node.value.id == "Sequence":
            return Sequence[_type(tree, node.slice)]
    if isinstance(node, ast.Name):
        if node.id in _TYPES:
            return _TYPES[node.id]
        return _alias(tree, node.id)
    return Any


def _alias(tree: ast.Module, name: str) -> Any:
    """Return the type that a name stands for in a module that assigns or imports it."""
    value = _value(tree, name)
    if value is not None:
        return _type(tree, value)
    try:
        module, name = _imported(tree, name)
    except LookupError:
        return Any
    return _alias(_parse(module), name)


def _imported(tree: ast.Module, name: str) -> tuple[str, str]:
    """Return where a module imports a name from: a module below ``fedjax_lora``, and a name there.

    Raises:
      LookupError: the module does not import the name from this package.
    """
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fedjax_lora."):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return str(node.module).removeprefix("fedjax_lora."), alias.name
    raise LookupError(name)


@functools.cache
def read_optimizers() -> Factories:
    """Read names and options of optax's optimizers from its source, without importing it.

    Returns:
      Functions with the options of those that ``optax/__init__.py`` imports and whose first
      parameter is ``learning_rate``. Values are not checked: optax annotates few of them.
    """
    spec = importlib.util.find_spec("optax")
    assert spec is not None and spec.origin is not None
    root = pathlib.Path(spec.origin).parent
    optimizers = {}
    for node in ast.parse((root / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("optax._src."):
            file = root.parent.joinpath(*str(node.module).split(".")).with_suffix(".py")
            functions = _taking_rate(file)
            for alias in node.names:
                if alias.name in functions:
                    optimizers[alias.asname or alias.name] = functions[alias.name]
    return optimizers


@functools.cache
def _taking_rate(file: pathlib.Path) -> Factories:
    """Read the functions of a file whose first parameter is ``learning_rate``."""
    if not file.is_file():
        return {}
    functions = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names = [x.arg for x in (*node.args.posonlyargs, *node.args.args)]
            if names[:1] == ["learning_rate"]:
                names = names[1:] + [x.arg for x in node.args.kwonlyargs]
                functions[node.name] = _with_parameters([_option(name) for name in names])
    return functions


def _option(name: str) -> inspect.Parameter:
    """Return a parameter that may be left out and takes any value."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Any)


def read_models() -> dict[str, dict[str, Any]]:
    """Read the fields of the models in `fedjax_lora.models.MODELS` from the source, by name."""
    entries = _mapping(_parse("models.huggingface.registry"), "MODELS")
    return {
        name: {word.arg: ast.literal_eval(word.value) for word in entry.keywords if word.arg}
        for name, entry in entries.items()
        if isinstance(entry, ast.Call)
    }


def _check_model(name: str) -> None:
    """Check that a model name is known, unless it can be a folder or an id of the hub."""
    if "/" in name or "\\" in name or os.path.lexists(os.path.expanduser(name)):
        return
    known = read_models()
    if name not in known:
        raise InputError(
            f"{unknown('model', name, known)} A folder or a hub id org/name works too."
        )


def _check_targets(targets: str) -> None:
    try:
        re.compile(targets)
    except re.error as error:
        raise InputError(f"Targets {targets!r} hold a bad regular expression: {error}.") from error


def _check_task(spec: str) -> None:
    from fedjax_lora.data import find_task  # imports no JAX

    find_task(spec)
