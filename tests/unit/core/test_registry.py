"""Specs: choices written as calls."""

import ast
import concurrent.futures
import gc
import time
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError, raise_all, unknown


def dirichlet(*, alpha: float, least: int = 1, seed: int = 0) -> tuple:
    return alpha, least, seed


def shards(*, per_client: int = 2, order: Literal["label", "length", None] = "label") -> tuple:
    return per_client, order


REGISTRY = {"dirichlet": dirichlet, "shards": shards}

literals = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=6,
)
names = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(
    lambda s: not __import__("keyword").iskeyword(s)
)


@given(name=names, options=st.dictionaries(names, literals, max_size=4))
def test_written_spec_is_parsed_back(name: str, options: dict[str, Any]):
    spec = f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})"
    assert registry.parse(spec) == (name, options)
    assert registry.parse(f"  {spec} ") == (name, options)


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text: str):
    """Nothing a user types becomes another exception."""
    try:
        name, options = registry.parse(text)
    except InputError as error:
        assert "is not written as name or name(option=value, ...)" in str(error)
    else:
        assert name.isidentifier()
        assert options == {} or "(" in text


@given(
    name=st.sampled_from([*REGISTRY, "other"]),
    options=st.dictionaries(
        st.sampled_from(["alpha", "least", "per_client", "order", "seed", "x"]), literals
    ),
)
def test_any_choice_is_built_as_written_or_refused(name: str, options: dict[str, Any]):
    """Only options of the factory, of its types, reach it; nothing else is raised."""
    spec = f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})"
    try:
        made = registry.build(
            spec, REGISTRY, "partition", **({"seed": 7} if name == "dirichlet" else {})
        )
    except InputError:
        own = {"dirichlet": {"alpha", "least"}, "shards": {"per_client", "order"}}.get(name, set())
        kinds = {"alpha": (int, float), "least": int, "per_client": int}
        right = all(
            value in ("label", "length", None)
            if key == "order"
            else isinstance(value, kinds[key]) and not isinstance(value, bool)
            for key, value in options.items()
            if key in own
        )
        missing = name == "dirichlet" and "alpha" not in options
        assert name == "other" or missing or not right or options.keys() - own
    else:
        default = {"least": 1, "per_client": 2, "order": "label", "seed": 7} | options
        order = ("alpha", "least", "seed") if name == "dirichlet" else ("per_client", "order")
        assert made == tuple(default[key] for key in order)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("", "check the brackets and quotes"),
        ("f(", "check the brackets and quotes"),
        ("f(a='x)", "check the brackets and quotes"),
        ("f\0", "check the brackets and quotes"),
        ("f(a=" + "-" * 20_000 + "1)", ""),  # deeper than the parser goes
        ("a.b(c=1)", "name(option=value, ...)."),
        ("f()()", "name(option=value, ...)."),
        ("'f'", "name(option=value, ...)."),
        ("f(1)", "every option needs its name"),
        ("f(*x)", "every option needs its name"),
        ("f(**x)", "every option needs its name"),
        ("f(a=1, a=2)", "an option is given twice"),
        ("f(a=b)", "option values must be literals"),
        ("f(a=__import__('os').getcwd())", "option values must be literals"),
        ("f(a=1+2)", "option values must be literals"),
        ("f(a={[]: 1})", "option values must be literals"),
        ("f(a={[1]})", "option values must be literals"),
    ],
)
def test_malformed_specs_are_explained(spec: str, why: str):
    with pytest.raises(InputError) as caught:
        registry.parse(spec, "partition")
    assert str(caught.value).startswith("partition ")
    assert why in str(caught.value)


def test_build_calls_the_factory_with_its_options():
    assert registry.build("dirichlet(alpha=0.5)", REGISTRY, "partition") == (0.5, 1, 0)
    assert registry.build("dirichlet(alpha=0.5, least=3)", REGISTRY, "partition", seed=7) == (
        0.5,
        3,
        7,
    )
    assert registry.build("shards", REGISTRY, "partition") == (2, "label")
    assert registry.build("shards(order=None)", REGISTRY, "partition") == (2, None)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("dirichlett(alpha=1)", "Unknown partition 'dirichlett'; did you mean 'dirichlet'?"),
        (
            "dirichlet(alfa=1)",
            "Unknown option of partition 'dirichlet': 'alfa'; did you mean 'alpha'?",
        ),
        ("dirichlet(alpha=1, seed=3)", "Unknown option of partition 'dirichlet': 'seed'"),  # given
        ("dirichlet", "partition 'dirichlet' needs the option alpha: dirichlet(...)."),
        (
            "shards(order='lable')",
            "options of partition 'shards': order is one of 'label', 'length', None, got 'lable'.",
        ),
        ("shards(order=[1])", "got [1]."),
        (
            "shards(per_client=2.5, order=3)",
            "'shards': per_client is int, got 2.5; order is one of 'label', 'length', None, got 3.",
        ),
        ("shards(per_client=True)", "per_client is int, got True."),
        ("dirichlet(alpha='x')", "alpha is float, got 'x'."),
    ],
)
def test_invalid_choices_are_explained(spec: str, sentence: str):
    given = {"seed": 0} if spec.startswith("dirichlet") else {}
    with pytest.raises(InputError) as caught:
        registry.build(spec, REGISTRY, "partition", **given)
    assert sentence in str(caught.value)


def test_unknown_names_are_listed():
    assert str(unknown("thing", "x", ["beta", "alpha"])) == "Unknown thing 'x'. Known: alpha, beta."


def test_all_problems_are_raised_together():
    raise_all("Nothing", [])
    with pytest.raises(InputError, match=r"^Trouble: one; two\.$"):
        raise_all("Trouble", (x for x in ("one", "two")))
    assert not issubclass(InputError, ValueError)  # which libraries catch and wrap


def test_threads_parse_at_the_same_time():
    """Python 3.11 mixes the depths of trees where a collection lets another thread go on."""
    source = ("def f(x):\n    return " + " + ".join(["x"] * 50) + "\n") * 5
    let_others_run = lambda *_: time.sleep(1e-5)  # noqa: E731
    threshold = gc.get_threshold()
    gc.callbacks.append(let_others_run)
    gc.set_threshold(500)
    try:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            trees = list(pool.map(registry.parse_python, [source] * 20))
    finally:
        gc.callbacks.remove(let_others_run)
        gc.set_threshold(*threshold)
    assert len({ast.dump(tree) for tree in trees}) == 1
