"""The config of a run as plain data."""

import dataclasses
import inspect
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lora.core.errors import InputError
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.config import (
    DataConfig,
    ExecutionConfig,
    FederationConfig,
    LocalConfig,
    LoraConfig,
    ModelConfig,
    RunConfig,
    from_dict,
    load,
    to_dict,
)

GROUPS = {f.name: f.type for f in dataclasses.fields(RunConfig) if f.name != "seed"}

OTHER = RunConfig(
    data=DataConfig(task="ag_news", data_dir="there", train_examples=10, validation_examples=5),
    model=ModelConfig(model="x/y", layers=2, pooling="mean", dtype="bfloat16", dropout=None),
    lora=LoraConfig(targets="attention", alpha=16, scale="alpha/r", lora_layers=(0, 1)),
    federation=FederationConfig(method="flora", clients=3, cohort=3, heads="local"),
    local=LocalConfig(learning_rate=1, clip=None, group_by_length=True, max_steps=3),
    execution=ExecutionConfig(mode="sharded", clients_per_step=4, devices=8, mesh=(-1, 2)),
    seed=7,
)


@pytest.mark.parametrize("config", [RunConfig(), OTHER, configs.demo()])
def test_config_is_read_back_as_written(config):
    values = json.loads(json.dumps(to_dict(config)))
    assert from_dict(values) == config
    assert to_dict(from_dict(values)) == values


def test_example_config_sets_every_group():
    default = RunConfig()
    assert all(getattr(OTHER, name) != getattr(default, name) for name in (*GROUPS, "seed"))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "seed": st.integers(0, 2**31),
            "lora": st.fixed_dictionaries(
                {},
                optional={
                    "alpha": st.none() | st.floats(1e-3, 1e3) | st.integers(1, 9),
                    "lora_layers": st.none() | st.lists(st.integers(0, 30), max_size=4),
                    "targets": st.text(max_size=9),
                },
            ),
            "execution": st.fixed_dictionaries(
                {}, optional={"clients_per_step": st.none() | st.integers(1, 9)}
            ),
        },
    )
)
@settings(deadline=None)
def test_fields_that_are_missing_take_their_defaults(values):
    config = from_dict(values)
    written = to_dict(config)
    default = to_dict(RunConfig())
    for group, options in default.items():
        if group == "seed":
            assert written["seed"] == values.get("seed", 0)
        else:
            assert written[group] == {**options, **values.get(group, {})}
    assert from_dict(written) == config


def test_config_is_frozen_and_comparable():
    config = RunConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    for name in GROUPS:
        group = getattr(config, name)
        field = dataclasses.fields(group)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(group, field, None)
    assert config == RunConfig() and hash(OTHER) != hash(config)


def test_every_option_is_documented():
    """The command line shows the docstring under a field as its help."""
    source = inspect.getsource(inspect.getmodule(RunConfig))
    for kind in GROUPS.values():
        for field in dataclasses.fields(kind):
            at = source.index(f"\n    {field.name}: ")
            assert source[at:].split("\n")[2].lstrip().startswith('"""'), field.name


# ----------------------------------------------------------------------------------------- mistakes


def refused(values: dict) -> str:
    with pytest.raises(InputError) as error:
        from_dict(values)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sead": 1}, "Unknown config field 'sead'; did you mean 'seed'?"),
        ({"federaton": {}}, "did you mean 'federation'?"),
        ({"local": {"optimiser": "sgd"}}, "group 'local': 'optimiser'; did you mean 'optimizer'?"),
        ({"model": {"batch": 3}}, "Unknown option in config group 'model': 'batch'"),
        ({"data": "ag_news"}, "'data' must hold a group of options, got 'ag_news'"),
        ({"data": None}, "'data' must hold a group of options, got None"),
        ({"data": [1]}, "'data' must hold a group of options"),
        ({"seed": "1"}, "seed cannot be '1'"),
        ({"seed": 1.5}, "cannot be 1.5"),
        ({"seed": True}, "cannot be True"),
        ({"seed": None}, "cannot be None"),
        ({"local": {"batch": "16"}}, "local.batch cannot be '16'"),
        ({"local": {"batch": 2.0}}, "local.batch cannot be 2.0"),
        ({"local": {"epochs": None}}, "local.epochs cannot be None"),
        ({"local": {"learning_rate": "1e-3"}}, "local.learning_rate cannot be '1e-3'"),
        ({"local": {"group_by_length": 1}}, "local.group_by_length cannot be 1"),
        ({"model": {"pooling": "max"}}, "model.pooling cannot be 'max'"),
        ({"model": {"remat": "yes"}}, "model.remat cannot be 'yes'"),
        ({"lora": {"lora_layers": [0, "1"]}}, "lora.lora_layers cannot be (0, '1')"),
        ({"lora": {"lora_layers": 3}}, "lora.lora_layers cannot be 3"),
        ({"lora": {"scale": "alpha"}}, "lora.scale cannot be 'alpha'"),
        ({"federation": {"method": ["flora"]}}, "federation.method cannot be"),
        ({"execution": {"mode": "pmap"}}, "execution.mode cannot be 'pmap'"),
    ],
)
def test_invalid_config_is_refused(values, words):
    assert words in refused(values)


def test_all_values_of_the_wrong_kind_are_listed():
    message = refused({"local": {"batch": "a", "epochs": 1.5, "clip": 1}})
    assert "local.batch cannot be 'a', it is int; local.epochs cannot be 1.5, it is int." in message
    assert "clip" not in message


@pytest.mark.parametrize(
    ("group", "option", "value", "words"),
    [
        ("federation", "clients", 0, "clients must be at least 1, got 0"),
        ("federation", "cohort", 0, "cohort must be at least 1"),
        ("federation", "cohort", 51, "a cohort of 51 cannot be drawn from 50 clients"),
        ("federation", "rounds", 0, "rounds must be at least 1"),
        ("federation", "min_examples", 0, "min_examples must be at least 1"),
        ("local", "batch", 0, "batch must be at least 1"),
        ("local", "epochs", -1, "epochs must be at least 1"),
        ("local", "max_steps", 0, "max_steps must be at least 1"),
        ("local", "learning_rate", 0, "learning_rate must be above 0, got 0"),
        ("local", "learning_rate", float("nan"), "learning_rate must be above 0, got nan"),
        ("local", "clip", -1, "clip must be above 0, got -1"),
        ("data", "max_length", 3, "max_length must be at least 4"),
        ("data", "train_examples", 0, "train_examples must be at least 1"),
        ("data", "test_examples", 0, "test_examples must be at least 1"),
        ("data", "validation_examples", -1, "validation_examples must be at least 0"),
        ("data", "chat_date", "today", "chat_date must be a day such as 2024-07-26, got 'today'"),
        ("model", "layers", 0, "layers must be at least 1"),
        ("model", "dropout", 1.0, "dropout must be in [0, 1), got 1.0"),
        ("model", "dropout", -0.1, "dropout must be in [0, 1)"),
        ("lora", "alpha", 0, "alpha must be above 0"),
        ("lora", "alpha", 1e300, "alpha must be at most 3e+38, got 1e+300"),
        ("lora", "lora_dropout", 1, "lora_dropout must be in [0, 1), got 1"),
        ("execution", "clients_per_step", 0, "clients_per_step must be at least 1"),
        ("execution", "mesh", [4, 0], "mesh must be two sizes above 0, or -1 for one of them"),
        ("execution", "mesh", [-1, -1], "mesh must be two sizes above 0, or -1 for one of them"),
        ("execution", "mesh", [8], "mesh must be two sizes above 0, or -1 for one of them"),
        ("execution", "devices", 0, "devices must be at least 1"),
        ("execution", "eval_every", 0, "eval_every must be at least 1"),
        ("execution", "eval_examples", 0, "eval_examples must be at least 1"),
        ("execution", "eval_batch", 0, "eval_batch must be at least 1"),
    ],
)
def test_impossible_values_are_refused(group, option, value, words):
    message = refused({group: {option: value}})
    assert message.startswith("This run is impossible: ") and words in message
    with pytest.raises(InputError, match="This run is impossible"):
        RunConfig(**{group: GROUPS[group](**{option: value})})


@pytest.mark.parametrize(
    ("group", "option", "value"),
    [
        ("federation", "cohort", 50),
        ("data", "validation_examples", 0),
        ("data", "max_length", 4),
        ("model", "dropout", None),
        ("local", "clip", None),
        ("lora", "lora_dropout", 0.99),
        ("execution", "clients_per_step", 1),
    ],
)
def test_limits_of_ranges_are_accepted(group, option, value):
    assert getattr(getattr(from_dict({group: {option: value}}), group), option) == value


def test_a_negative_seed_is_refused():
    assert "seed must be at least 0, got -1" in refused({"seed": -1})


def test_all_invalid_values_are_listed_in_one_sentence():
    message = refused(
        {
            "federation": {"clients": 3, "cohort": 5, "rounds": 0},
            "local": {"batch": 0, "learning_rate": -1.0},
            "model": {"dropout": 2},
            "seed": -3,
        }
    )
    assert message == (
        "This run is impossible: "
        "rounds must be at least 1, got 0; batch must be at least 1, got 0; "
        "seed must be at least 0, got -3; a cohort of 5 cannot be drawn from 3 clients; "
        "learning_rate must be above 0, got -1.0; dropout must be in [0, 1), got 2."
    )


# -------------------------------------------------------------------------------------------- files


def test_config_is_loaded_from_a_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(OTHER)), encoding="utf-8")
    assert load(path) == load(str(path)) == OTHER


def test_missing_config_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.json cannot be read \(no such file\)"):
        load(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"cannot be read \(not a file\)"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (b"{seed: 1}", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "must map names"),
        (b"3", "must map names"),
        (b'{"sed": 1}', "did you mean 'seed'"),
        (b'{"federation": {"rounds": 0}}', "rounds must be at least 1"),
        (b'{"local": {"learning_rate": NaN}}', "learning_rate must be above 0"),
    ],
)
def test_file_that_is_not_a_config_is_refused(tmp_path, content, words):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        load(path)
    assert words in str(error.value)
