"""Configs: real ones of every family read right, unsupported ones are refused in words."""

import json

import pytest

from fedjax_lora import models
from fedjax_lora.core.errors import InputError

BERT = {"model_type": "bert"}


@pytest.mark.shared
def test_published_configs_are_read_correctly(shared):
    read = lambda name, **options: models.read_config(shared / "models" / name, **options)  # noqa: E731
    bert = read("bert-base-uncased")
    assert (bert.family, bert.hidden, bert.layers, bert.heads) == ("bert", 768, 12, 12)
    assert (bert.layer_norm_eps, bert.head_dropout, bert.max_tokens) == (1e-12, 0.1, 512)
    distilbert = read("distilbert-base-uncased")
    assert (distilbert.layers, distilbert.intermediate, distilbert.type_vocab) == (6, 3072, 0)
    assert distilbert.head_dropout == 0.2
    roberta = read("roberta-base")  # names no type; its folder's name tells
    assert (roberta.family, roberta.pad_token_id, roberta.max_tokens) == ("roberta", 1, 512)
    assert roberta.layer_norm_eps == 1e-5
    albert = read("albert-large")  # names no type; its architecture tells
    assert (albert.family, albert.embedding_size, albert.hidden) == ("albert", 128, 1024)
    assert albert.activation == "gelu" and albert.layers == 24


def test_config_defaults_equal_transformers():
    albert = models.from_json({"model_type": "albert"})
    assert (albert.activation, albert.hidden_dropout, albert.head_dropout) == ("gelu_new", 0.0, 0.1)
    assert models.from_json({**BERT, "classifier_dropout": 0.3}).head_dropout == 0.3


FAMILIES = ("albert", "bert", "distilbert", "roberta")


def complete(family, **changed):
    """A whole config, as `transformers` saves it, with values that are nobody's defaults."""
    import transformers

    made = transformers.AutoConfig.for_model(family, vocab_size=77, pad_token_id=3, **changed)
    raw = made.to_dict()
    numbers = {name: x * 0.5 for name, x in raw.items() if type(x) is float and x}
    return raw | numbers


@pytest.mark.parametrize("family", FAMILIES)
def test_complete_config_read_directly_equals_that_of_its_class(family, monkeypatch):
    from fedjax_lora.models.huggingface import config as configs

    raw = complete(family, architectures=["AModel"])
    raw.pop("id2label", None)
    assert configs._is_complete(raw, family)
    got = models.from_json(raw)
    monkeypatch.setattr(configs, "_is_complete", lambda raw, family: False)
    assert got == models.from_json(raw)
    assert got.vocab_size == 77 and got.pad_token_id == 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": None}, {"vocab_size": True}, {"initializer_range": 1}, {"num_labels": 5},
        {"pad_token_id": "0"}, {"id2label": {"0": "a", "1": "b", "2": "c"}},
    ],
)  # fmt: skip
def test_incomplete_config_is_read_by_its_transformers_class(family, change):
    from fedjax_lora.models.huggingface import config as configs

    raw = complete(family)
    raw.pop("id2label", None)
    assert not configs._is_complete(raw | change, family)


def test_options_override_config_fields():
    config = models.from_json(BERT, num_labels=7, dtype="bfloat16", pooling="mean")
    assert (config.num_labels, config.dtype, config.has_pooler) == (7, "bfloat16", False)
    assert hash(config) == hash(
        models.from_json(BERT, num_labels=7, dtype="bfloat16", pooling="mean")
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "t5"}, "describes a 't5' model; supported are albert, bert"),
        ({"model_type": None}, "describes a None model"),
        ({"position_embedding_type": "relative_key"}, "'relative_key' position embeddings"),
        ({"is_decoder": True, "pruned_heads": {"0": [1]}}, "is_decoder .*; pruned attention"),
        ({"hidden_act": "prelu"}, "Unknown activation 'prelu'"),
        ({"hidden_size": 100}, "hidden size 100 is not a multiple of the 12 heads"),
        ({"hidden_size": "wide"}, "not a valid bert configuration"),
        ({"num_labels": "many"}, r"num_labels 'many' \(only a whole number\)"),
        ({"id2label": ["a", "b"]}, r"id2label \['a', 'b'\] \(only an object of names"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout is 1.5"),
        ({"num_hidden_layers": 0}, "layers is 0 but must be at least 1"),
        ({"model_type": "albert", "num_hidden_groups": 2}, r"num_hidden_groups=2 \(only 1\)"),
        ({"model_type": "albert", "inner_group_num": 3}, r"inner_group_num=3 \(only 1\)"),
    ],
)
def test_unsupported_configs_are_refused(change, message):
    with pytest.raises(InputError, match=message) as error:
        models.from_json(BERT | change)
    assert "\n" not in str(error.value)


def test_all_invalid_options_are_named():
    wrong = {"num_labels": 0, "dtype": "float16", "pooling": "max", "scan_unroll": 0}
    with pytest.raises(InputError) as error:
        models.from_json(BERT, **wrong)
    for name in wrong:
        assert f"{name} is" in str(error.value)


def test_unreadable_config_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no readable config\.json"):
        models.read_config(tmp_path)
    for text, message in (
        ("{", "config.json is not JSON"),
        ("[]", "one JSON object"),
        ("{}", "no model_type"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InputError, match=message):
            models.read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["RobertaModel"]}))
    assert models.read_config(tmp_path).family == "roberta"
