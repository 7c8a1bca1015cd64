"""Specs: a choice and its options, written as a call in a string: ``"dirichlet(alpha=0.5)"``.

Methods, partitions, rank allocations, optimizers and schedules are all chosen by specs, so a
config stays plain data (JSON, one command-line word), and the options of a choice *are* the
keyword arguments of its factory.
"""

import ast
import functools
import inspect
import re
import threading
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from fedjax_lora.core.errors import InputError, raise_all, unknown

T = TypeVar("T")


_PARSER = threading.Lock()


def parse_python(source: str | bytes, mode: Literal["exec", "eval"] = "exec") -> Any:
    """Parse Python as `ast.parse` does, in one thread at a time.

    Python 3.11 counts the depth of a tree for the whole process, and fails where threads mix.
    """
    with _PARSER:
        return ast.parse(source, mode=mode)


def parse(spec: str, kind: str = "choice") -> tuple[str, dict[str, Any]]:
    """Split a spec into its name and its keyword arguments, which must be literals.

    >>> parse("tiers(ranks=[4, 8], shares=[0.9, 0.1])")
    ('tiers', {'ranks': [4, 8], 'shares': [0.9, 0.1]})
    >>> parse("fed_plora")
    ('fed_plora', {})

    Raises:
      InputError: if the text is not ``name`` or ``name(option=literal, ...)``.
    """
    problem = f"{kind} {spec!r} is not written as name or name(option=value, ...)"
    try:
        node = parse_python(spec.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{problem}; check the brackets and quotes.") from error
    if isinstance(node, ast.Name):
        return node.id, {}
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise InputError(f"{problem}.")
    return node.func.id, _options(node, problem)


def _options(call: ast.Call, problem: str) -> dict[str, Any]:
    """Evaluate the keyword arguments of a parsed spec; ``problem`` begins the error messages."""
    names = [keyword.arg for keyword in call.keywords]
    if call.args or None in names:
        raise InputError(f"{problem}: every option needs its name.")
    if len(set(names)) < len(names):
        raise InputError(f"{problem}: an option is given twice.")
    try:
        return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (ValueError, TypeError) as error:
        raise InputError(f"{problem}: option values must be literals.") from error


def build(
    spec: str, registry: Mapping[str, Callable[..., T]], kind: str, /, **arguments: object
) -> T:
    """Call the factory that ``spec`` names with the spec's options and the caller's arguments.

    Args:
      spec: the choice, for example ``"dirichlet(alpha=0.5)"``.
      registry: factories by name; the options are their keyword-only arguments.
      kind: what is chosen, for error messages.
      **arguments: further arguments, which a spec cannot set.

    Raises:
      InputError: unknown name, unknown or missing option, or a value of the wrong type.
    """
    return bind(spec, registry, kind, arguments)(**arguments)


def bind(
    spec: str, registry: Mapping[str, Callable[..., T]], kind: str, arguments: Collection[str] = ()
) -> Callable[..., T]:
    """Return the factory that a spec names, with the spec's options; it is not called yet.

    >>> bind("power(base=2)", {"power": lambda *, base, exponent: base**exponent}, "choice",
    ...      ["exponent"])(exponent=3)
    8

    Args:
      spec: as for `build`.
      registry: as for `build`.
      kind: as for `build`.
      arguments: names of the arguments that the caller supplies later.

    Raises:
      InputError: as for `build`.
    """
    name, options = parse(spec, kind)
    if name not in registry:
        raise unknown(kind, name, registry)
    factory = registry[name]
    _check_names(f"{kind} {name!r}", name, factory, options, arguments)
    hints = typing.get_type_hints(factory) if inspect.isfunction(factory) else {}
    raise_all(
        f"Invalid options of {kind} {name!r}",
        [
            f"{key} is {describe(hints[key])}, got {value!r}"
            for key, value in options.items()
            if key in hints and not fits(value, hints[key])
        ],
    )
    return functools.partial(factory, **options)


def with_defaults(spec: str, registry: Mapping[str, Callable[..., T]], kind: str) -> dict[str, Any]:
    """Return all options of a choice: those of the spec, and the defaults of the others.

    >>> def tiers(*, ranks, seed=0): ...
    >>> with_defaults("tiers(ranks=[1])", {"tiers": tiers}, "ranks")
    {'ranks': [1], 'seed': 0}

    Args:
      spec: as for `build`.
      registry: as for `build`.
      kind: as for `build`.

    Raises:
      InputError: unknown name.
    """
    name, options = parse(spec, kind)
    if name not in registry:
        raise unknown(kind, name, registry)
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(registry[name]).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        and parameter.default is not inspect.Parameter.empty
    }
    return {**{key: options[key] for key in options if key not in defaults}, **defaults, **options}


class Option(NamedTuple):
    """An option of a choice.

    Attributes:
      name: its name.
      values: what it may be, in words.
      default: its default as it is written in a spec; None if it has to be given.
      meaning: what its factory's docstring says.
    """

    name: str
    values: str
    default: str | None
    meaning: str


def options(factory: Callable[..., object]) -> list[Option]:
    """Return the options of a factory, with what its docstring says of them.

    >>> def tiers(*, ranks: Sequence[int], seed: int = 0):
    ...     '''Ranks.
    ...
    ...     Args:
    ...       ranks: one for each
    ...         tier.
    ...       seed: of the draw.
    ...     '''
    >>> options(tiers)[0]
    Option(name='ranks', values='Sequence[int]', default=None, meaning='one for each tier.')
    """
    hints = typing.get_type_hints(factory) if inspect.isfunction(factory) else {}
    meanings = _argument_docs(inspect.getdoc(factory) or "")
    return [
        Option(
            name,
            describe(hints[name]).replace("collections.abc.", "") if name in hints else "",
            None if parameter.default is inspect.Parameter.empty else repr(parameter.default),
            meanings.get(name, ""),
        )
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]


def _argument_docs(doc: str) -> dict[str, str]:
    """Return what a docstring says about each argument, each in one line."""
    found: dict[str, str] = {}
    section = re.search(r"^Args:\n((?:  .*\n?|\n)*)", doc, re.MULTILINE)
    for line in section[1].splitlines() if section else ():
        begins = re.match(r"  (\w+): (.*)", line)
        if begins:
            found[begins[1]] = begins[2].strip()
        elif found and line.strip():
            found[next(reversed(found))] += f" {line.strip()}"
    return found


def _check_names(
    subject: str,
    name: str,
    factory: Callable[..., object],
    options: Mapping[str, object],
    arguments: Collection[str],
) -> None:
    """Refuse options that the factory does not have, and required options that are missing."""
    accepted = {
        key: parameter.default is inspect.Parameter.empty
        for key, parameter in inspect.signature(factory).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and key not in arguments
    }
    for key in options:
        if key not in accepted:
            raise unknown(f"option of {subject}:", key, accepted or ["(none)"])
    missing = [key for key, required in accepted.items() if required and key not in options]
    if missing:
        raise InputError(f"{subject} needs the option {', '.join(missing)}: {name}(...).")


def describe(hint: object) -> str:
    """Return what an annotation allows, in words.

    >>> describe(int | None), describe(Literal["a", "b"])
    ('int | None', "one of 'a', 'b'")
    """
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, typing.get_args(hint)))}"
    return inspect.formatannotation(hint)


def fits(value: object, hint: object) -> bool:
    """Whether a plain value of a config or an option has the type of an annotation.

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
    if hint in (int, float):  # `bool` is a subclass of `int`
        numbers = int if hint is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool)
    return isinstance(value, typing.cast("type", origin or hint))
