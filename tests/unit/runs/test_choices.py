"""Choices are checked from the source of the registries; it says the same as the registries."""

import importlib
import inspect
import json
import subprocess
import sys
import typing

import numpy as np
import optax
import pytest

import fedjax_lora as fl
from fedjax_lora import InputError, methods, models
from fedjax_lora.federated import optimizers
from fedjax_lora.federated.ranks import Population
from fedjax_lora.lora import LoraSpec
from fedjax_lora.runs import choices, registry_source
from fedjax_lora.runs.config import (
    DataConfig,
    FederationConfig,
    LocalConfig,
    LoraConfig,
    ModelConfig,
    RunConfig,
    demo,
)


def options(factory) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(factory).parameters.items()
    return {name: p.default for name, p in parameters if p.kind is p.KEYWORD_ONLY}


@pytest.mark.parametrize("kind", choices.REGISTRIES)
def test_choices_read_from_source_equal_the_registries(kind):
    module, variable, _ = choices.REGISTRIES[kind]
    importlib.import_module(f"fedjax_lora.{module}")
    read, real = registry_source.read_factories(module, variable), choices.factories(kind)
    assert list(read) == list(real)
    for name, factory in real.items():
        assert options(read[name]) == options(factory), name
        hints = typing.get_type_hints(factory)
        read_hints = typing.get_type_hints(read[name])
        assert read_hints == {key: hints[key] for key in read_hints}, name
        with pytest.raises(NotImplementedError):
            read[name]()


def test_optimizer_names_equal_those_of_optax():
    public = [name for name in dir(optax) if not name.startswith("_")]
    takes_rate = {name for name in public if optimizers._takes_rate(getattr(optax, name))}
    assert registry_source.read_optimizers().keys() == takes_rate > {"adamw", "sgd"}
    for name, read in registry_source.read_optimizers().items():
        parameters = [*inspect.signature(getattr(optax, name)).parameters]
        assert ["learning_rate", *inspect.signature(read).parameters] == parameters, name


def test_model_names_equal_those_of_the_registry():
    for name, fields in registry_source.read_models().items():
        assert models.Model(**fields) == models.MODELS[name]
    assert list(registry_source.read_models()) == list(models.MODELS)


def test_method_descriptions_equal_those_of_the_registry():
    described = {name: (methods.summary(name), methods.paper(name)) for name in methods.METHODS}
    assert registry_source.read_methods() == described
    assert all(summary and paper for summary, paper in described.values())


def test_method_registered_by_the_user_is_accepted(monkeypatch):
    entry = methods.METHODS["hlora"]
    monkeypatch.setitem(methods.METHODS, "own_rule", entry)
    choices.check_choices(RunConfig(federation=FederationConfig(method="own_rule")))


WRONG = [
    (RunConfig(federation=FederationConfig(method="nope")), "Unknown method 'nope'"),
    (
        RunConfig(federation=FederationConfig(method="fed_plora(selection='best')")),
        "selection is one of",
    ),
    (
        RunConfig(federation=FederationConfig(ranks="fixed()")),
        "rank allocation 'fixed' needs the option rank",
    ),
    (RunConfig(federation=FederationConfig(ranks="fixed(rank='a')")), "rank is int, got 'a'"),
    (RunConfig(federation=FederationConfig(partition="dirchlet")), "did you mean 'dirichlet'"),
    (RunConfig(federation=FederationConfig(updates=("clip(nrm=1.0)",))), "did you mean 'norm'"),
    (RunConfig(federation=FederationConfig(faults=("drop_out",))), "did you mean 'dropout'"),
    (RunConfig(federation=FederationConfig(server_optimizer="adm")), "did you mean 'adam'"),
    (RunConfig(local=LocalConfig(schedule="cosin")), "did you mean 'cosine'"),
    (RunConfig(local=LocalConfig(optimizer="adamv")), "Unknown optimizer 'adamv'"),
    (RunConfig(local=LocalConfig(optimizer="adamw(weight=1)")), "did you mean 'weight_decay'"),
    (RunConfig(model=ModelConfig(model="minilmm")), "did you mean 'minilm'"),
    (RunConfig(data=DataConfig(task="agnews")), "did you mean 'ag_news'"),
    (RunConfig(lora=LoraConfig(targets="((")), "invalid regular expression"),
]


@pytest.mark.parametrize(("config", "sentence"), WRONG, ids=[words for _, words in WRONG])
def test_unknown_choice_is_refused_in_one_sentence(config, sentence):
    with pytest.raises(InputError) as raised:
        choices.check_choices(config)
    assert sentence in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "name",
    ["bert-base-cased", "distilbert-base-uncased", "albert-large-v2", "roberta-large-mnli"],
)
def test_names_that_the_hub_once_listed_without_an_owner_are_models(name):
    choices.check_choices(RunConfig(model=ModelConfig(model=name)))


def test_demo_config_is_valid():
    choices.check_choices(demo())


def test_resolved_choices_have_the_options_of_the_config():
    federation = FederationConfig(
        method="hlora(sigma='b')",
        ranks="fixed(rank=3)",
        updates=("clip(norm=2.0)", "int8"),
        faults=("dropout(probability=1.0)",),
        server_optimizer="none",
    )
    config = RunConfig(federation=federation, local=LocalConfig(schedule="linear(end=0.5)"))
    found = choices.resolve(config)
    assert found.method(spec=LoraSpec(targets=(), rank=2, alpha=2.0)).name == "hlora"
    assert found.ranks(population=Population(4, 0, None, 1)).ranks.tolist() == [3] * 4
    owner = found.partitioner(np.zeros(8, int), None, 2, np.random.default_rng(0)).owner
    assert len(owner) == 8
    assert [update.stage for update in found.updates] == ["client", "wire"]
    assert [fault(np.random.default_rng(0), 5) for fault in found.faults] == [0]
    assert found.server_optimizer is None
    assert float(found.schedule(rounds=10)(10)) == 0.5


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (RunConfig(federation=FederationConfig(partition="dirichlet(alpha=0)")), "alpha must be"),
        (RunConfig(federation=FederationConfig(faults=("dropout(probability=2.0)",))), "to 1"),
        (RunConfig(federation=FederationConfig(updates=("clip(norm=0.0)",))), "norm above 0"),
        (RunConfig(federation=FederationConfig(server_optimizer="adam(b1=1.0)")), r"b1 in \[0, 1"),
        (RunConfig(federation=FederationConfig(method="nope")), "Unknown method"),
        (RunConfig(local=LocalConfig(optimizer="adamv")), "Unknown optimizer"),
        (RunConfig(data=DataConfig(task="agnews")), "Unknown task"),
    ],
)
def test_invalid_values_are_refused_before_loading(config, sentence, monkeypatch, tmp_path):
    monkeypatch.setattr("fedjax_lora.runs.run.load_assets", lambda config: 1 / 0)
    with pytest.raises(InputError, match=sentence):
        fl.run(config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


CHECK = """
import json, sys
from fedjax_lora.cli import main
for listing in ("--help", "methods", "models", "tasks"):
    assert main.main([listing]) == 0
statuses = [main.main(words) for words in json.loads(sys.argv[1])]
assert not {"jax", "optax", "flax", "transformers"} & set(sys.modules), "a check imported JAX"
assert statuses == [2] * len(statuses), statuses
"""


def test_unknown_choices_are_refused_without_importing_jax():
    run = ["--method=nope", "--optimizer=adamv", "--schedule=no", "--ranks=fixed(rnk=1)"]
    run += ["--updates=no", "--faults=no", "--server-optimizer=no", "--partition=no"]
    run += ["--task=no", "--model=no", "--targets=((", "--wave=4", "--rounds=0"]
    commands = [["run", word] for word in run]
    commands += [["compare", "--methods", "hlora", "nope"], ["compare", "--wave", "4"]]
    commands += [["compare", "--vary", "local.optimizer=sgd,adamv"]]
    words = [sys.executable, "-c", CHECK, json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(commands) and all(x.startswith("fedjax-lora: ") for x in lines)
    assert lines.count("fedjax-lora: --wave is now --clients-per-step.") == 2
