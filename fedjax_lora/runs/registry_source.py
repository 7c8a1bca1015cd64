"""Read the registries of choices from their source, without importing their modules.

The modules of methods, ranks, transforms and models import JAX, which takes seconds. Their names,
options and types are in the source, and `ast` reads them in milliseconds.
"""

import ast
import functools
import importlib.util
import inspect
import pathlib
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from fedjax_lora.core.registry import parse_python

PACKAGE = pathlib.Path(__file__).parents[1]

Factories = Mapping[str, Callable[..., Any]]
"""Functions by name; those that are read have a signature and cannot be called."""


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
    return parse_python(file.read_text(encoding="utf-8"))


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
    for node in parse_python((root / "__init__.py").read_text(encoding="utf-8")).body:
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
    for node in parse_python(file.read_text(encoding="utf-8")).body:
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


def read_methods() -> dict[str, tuple[str, str]]:
    """Read summary and paper of the methods in `fedjax_lora.methods.METHODS`, by name."""
    tree = _parse("methods")
    definitions = {
        name: _function(tree, value) for name, value in _mapping(tree, "METHODS").items()
    }
    return {
        name: (_summary(node), _paper(module, node)) for name, (module, node) in definitions.items()
    }


def _summary(definition: ast.FunctionDef) -> str:
    return (ast.get_docstring(definition) or "").split("\n", maxsplit=1)[0]


def _paper(module: ast.Module, definition: ast.FunctionDef) -> str:
    """Return the argument ``paper`` of the call that builds a method.

    It is in the definition, or in the only other place of the module that has one.
    """
    for tree in (definition, module):
        papers = {
            word.value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            for word in node.keywords
            if word.arg == "paper" and isinstance(word.value, ast.Constant)
        }
        if len(papers) == 1:
            return str(papers.pop())
    return ""
