"""A choice with its options written as a Python call in a string: ``"dirichlet(alpha=0.5)"``.

Methods, partitions, rank allocations, optimizers and schedules are all chosen this way, so a
config stays plain data (JSON, one command-line word) and an option lives next to the function
that has it: the options of a choice *are* the keyword arguments of its factory.
"""

import ast
import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, TypeVar

from fedjax_lora.core.errors import InputError, raise_all, unknown

T = TypeVar("T")


def parse(spec: str, kind: str = "choice") -> tuple[str, dict[str, Any]]:
    """Split a spec into its name and its keyword arguments; only literals are accepted.

    >>> parse("tiers(ranks=[4, 8], shares=[0.9, 0.1])")
    ('tiers', {'ranks': [4, 8], 'shares': [0.9, 0.1]})
    >>> parse("fed_plora")
    ('fed_plora', {})

    Raises:
      InputError: if the text is not ``name`` or ``name(option=literal, ...)``.
    """
    shape = f"{kind} {spec!r} is not written as name or name(option=value, ...)"
    try:
        node = ast.parse(spec.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{shape}; check the brackets and quotes.") from error
    if isinstance(node, ast.Name):
        return node.id, {}
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise InputError(f"{shape}.")
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        raise InputError(f"{shape}: every option needs its name.")
    if len({keyword.arg for keyword in node.keywords}) < len(node.keywords):
        raise InputError(f"{shape}: an option is given twice.")
    try:
        options = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
    except (ValueError, TypeError) as error:
        raise InputError(f"{shape}: option values must be literals.") from error
    return node.func.id, options


def build(spec: str, registry: Mapping[str, Callable[..., T]], kind: str, /, **given: Any) -> T:
    """Call the registry's factory named by ``spec`` with the spec's options and ``given``.

    Args:
      spec: the choice, for example ``"dirichlet(alpha=0.5)"``.
      registry: factories by name; the options are their keyword-only arguments.
      kind: what is chosen, for error messages.
      **given: arguments supplied by the caller, not open to the spec.

    Raises:
      InputError: unknown name, unknown or missing option, or a value of the wrong kind.
    """
    factory, options = check(spec, registry, kind, given)
    return factory(**given, **options)


def check(
    spec: str, registry: Mapping[str, Callable[..., T]], kind: str, given: Collection[str] = ()
) -> tuple[Callable[..., T], dict[str, Any]]:
    """Return the factory that a spec names and the spec's options, without calling the factory.

    Args:
      spec: as for `build`.
      registry: as for `build`.
      kind: as for `build`.
      given: names of the arguments that the caller supplies.

    Raises:
      InputError: as for `build`.
    """
    name, options = parse(spec, kind)
    if name not in registry:
        raise unknown(kind, name, registry)
    factory = registry[name]
    parameters = inspect.signature(factory).parameters
    only = inspect.Parameter.KEYWORD_ONLY
    accepted = [key for key, p in parameters.items() if p.kind is only and key not in given]
    for key in options:
        if key not in accepted:
            raise unknown(f"option of {kind} {name!r}:", key, accepted or ["(none)"])
    required = inspect.Parameter.empty
    missing = [
        key for key in accepted if parameters[key].default is required and key not in options
    ]
    if missing:
        raise InputError(f"{kind} {name!r} needs the option {', '.join(missing)}: {name}(...).")
    hints = typing.get_type_hints(factory) if inspect.isfunction(factory) else {}
    raise_all(
        f"Bad options of {kind} {name!r}",
        [
            f"{key} is {_wanted(hints[key])}, got {value!r}"
            for key, value in options.items()
            if key in hints and not fits(value, hints[key])
        ],
    )
    return factory, options


def _wanted(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, typing.get_args(hint)))}"
    return inspect.formatannotation(hint)


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value has the type of an annotation: what configs and options are made of.

    >>> fits("a", Literal["a", "b"]), fits(1, float), fits(True, int), fits([1, 2], Sequence[int])
    (True, True, False, True)
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if origin in (tuple, Sequence):
        return isinstance(value, tuple | list) and all(fits(x, args[0]) for x in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)
