"""Any valid config is read back as written, and nothing else is accepted."""

import dataclasses
import json
import math
import typing
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedjax_lora.core.errors import InputError
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.config import RunConfig, from_dict, to_dict

GROUPS = {f.name: f.type for f in dataclasses.fields(RunConfig) if f.name != "seed"}
COUNT = st.integers(1, 1000)
SMALL = st.floats(0, 0.99)
POSITIVE = st.floats(1e-6, 1e6) | st.integers(1, 9)
RANGES: dict[str, st.SearchStrategy] = {
    **dict.fromkeys(("rounds", "min_examples", "batch", "epochs", "eval_every"), COUNT),
    **dict.fromkeys(("eval_batch", "checkpoint_every", "checkpoint_keep"), COUNT),
    "step_shapes": st.integers(1, 16),
    "clients": st.integers(10, 1000),
    "cohort": st.integers(1, 10),
    "max_length": st.integers(4, 512),
    "chat_date": st.dates().map(str),
    "validation_examples": st.integers(0, 100),
    "prox": st.floats(0, 10),
    "learning_rate": POSITIVE,
    "lora_dropout": SMALL,
    **dict.fromkeys(
        (
            "train_examples",
            "test_examples",
            "layers",
            "max_steps",
            "clients_per_step",
            "devices",
            "eval_examples",
        ),
        st.none() | COUNT,
    ),
    "mesh": st.tuples(COUNT | st.just(-1), COUNT),
    "dropout": st.none() | SMALL,
    **dict.fromkeys(("alpha", "clip"), st.none() | POSITIVE),
}
"""What is possible where a type does not say it."""


def of_hint(hint: Any) -> st.SearchStrategy:
    """Values of an option's type."""
    if typing.get_origin(hint) is typing.Literal:
        return st.sampled_from(typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return st.lists(of_hint(typing.get_args(hint)[0]), max_size=3).map(tuple)
    if typing.get_args(hint):
        return st.one_of(*map(of_hint, typing.get_args(hint)))
    return {str: st.text(max_size=12), bool: st.booleans(), int: st.integers(0, 99),
            float: st.floats(0, 1), type(None): st.none()}[hint]  # fmt: skip


def of_group(kind: type) -> st.SearchStrategy:
    hints = typing.get_type_hints(kind)
    return st.fixed_dictionaries(
        {}, optional={name: RANGES.get(name, of_hint(hint)) for name, hint in hints.items()}
    ).map(lambda options: kind(**options))


CONFIGS = st.builds(
    RunConfig,
    seed=st.integers(0, 2**32 - 1),
    **{name: of_group(kind) for name, kind in GROUPS.items()},
)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@given(CONFIGS)
@settings(deadline=None, max_examples=60)
def test_any_config_is_read_back_unchanged(config):
    text = json.dumps(to_dict(config))
    again = from_dict(json.loads(text))
    assert again == config and hash(again) == hash(config)
    assert json.dumps(to_dict(again)) == text


@given(st.dictionaries(st.sampled_from([*GROUPS, "seed", "x"]), JUNK, max_size=3) | JUNK)
@settings(deadline=None, max_examples=150)
def test_any_value_is_a_config_or_refused(values):
    """No other error is raised; an accepted config is complete and is written back unchanged."""
    assume(isinstance(values, dict))
    try:
        config = from_dict(values)
    except InputError as error:
        assert "\n" not in str(error) or any("\n" in str(x) for x in values)
    else:
        assert from_dict(to_dict(config)) == config


@given(config=CONFIGS, data=st.data())
@settings(deadline=None, max_examples=150)
def test_one_invalid_value_is_refused(config, data):
    """A value of another kind in one option: refused by name, never changed in silence."""
    values = to_dict(config)
    group = data.draw(st.sampled_from(sorted(GROUPS)))
    option = data.draw(st.sampled_from(sorted(values[group])))
    junk = data.draw(JUNK)
    values[group][option] = junk
    try:
        made = from_dict(values)
    except InputError as error:
        assert option in str(error) or "group" in str(error)
    else:
        taken = getattr(getattr(made, group), option)
        assert taken == (tuple(junk) if isinstance(junk, list) else junk)
        assert isinstance(taken, bool) == isinstance(junk, bool)


@given(name=st.text(max_size=12), where=st.sampled_from([*sorted(GROUPS), ""]))
@settings(deadline=None)
def test_unknown_name_is_refused_with_the_known_ones(name, where):
    known = {f.name for f in dataclasses.fields(GROUPS[where])} if where else {*GROUPS, "seed"}
    assume(name not in known)
    values = {where: {name: 1}} if where else {name: 1}
    with pytest.raises(InputError, match="Unknown") as caught:
        from_dict(values)
    assert all(option in str(caught.value) for option in known)


def numbers() -> list[tuple[str, str]]:
    """Every option that holds a number."""
    return [
        (group, name)
        for group, kind in GROUPS.items()
        for name, hint in typing.get_type_hints(kind).items()
        if {int, float} & {hint, *typing.get_args(hint)} and typing.get_origin(hint) is not tuple
    ]


@pytest.mark.parametrize(("group", "option"), numbers())
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, -(10**30), True, "1"])
def test_negative_infinite_and_nan_numbers_are_refused(group, option, value):
    with pytest.raises(InputError, match=option):
        from_dict({group: {option: value}})


def test_every_option_is_generated_by_the_strategies():
    """Otherwise a new option would be left out of the properties above."""
    reached = set()

    @given(CONFIGS)
    @settings(deadline=None, max_examples=200, database=None, derandomize=True)
    def collect(config):
        default = configs.RunConfig()
        for group, kind in GROUPS.items():
            for field in dataclasses.fields(kind):
                ours = getattr(getattr(config, group), field.name)
                if ours != getattr(getattr(default, group), field.name):
                    reached.add((group, field.name))

    collect()
    every = {(group, f.name) for group, kind in GROUPS.items() for f in dataclasses.fields(kind)}
    assert every == reached
