"""The Flax encoders compute what PyTorch `transformers` computes on the same weights."""

from typing import NamedTuple

import jax
import numpy as np
import pytest

from fedjax_lora import models
from fedjax_lora.core.errors import InputError

pytestmark = pytest.mark.optimized


class Batch(NamedTuple):
    """Tokenised texts."""

    input_ids: np.ndarray
    attention_mask: np.ndarray
    token_types: np.ndarray


FAMILIES = ("albert", "bert", "distilbert", "roberta")
MORE = ("camembert", "deberta-v2", "electra", "mpnet", "xlm-roberta")
WITHOUT_PADDING = ("deberta-v2",)
"""Of these `transformers` masks the states of padding too, which nothing reads."""

TOLERANCE = 1e-4


def load(folder, key, **options):
    """`models.load` with three labels and a layer loop, which compiles faster."""
    return models.load(str(folder), **{"num_labels": 3, "scan_unroll": 1, "key": key} | options)


def run(loaded, batch, *, token_types=True):
    """Last hidden states and logits."""

    @jax.jit
    def both(params, *inputs):
        encoded = models.Encoder(loaded.config).apply({"params": params["encoder"]}, *inputs)
        return encoded.hidden, loaded.module.apply({"params": params}, *inputs)

    types = batch.token_types if token_types else None
    hidden, logits = both(loaded.params, batch.input_ids, batch.attention_mask, types)
    return np.asarray(hidden), np.asarray(logits)


def check(loaded, model, torch_outputs, batch, **options):
    """Hidden states and, if the PyTorch model has them, logits agree and are not trivial."""
    hidden, logits = run(loaded, batch, **options)
    want_hidden, want_logits = torch_outputs(model, batch, **options)
    assert want_hidden.std() > 0.5, "a vacuous comparison"
    at = batch.attention_mask if loaded.config.family in WITHOUT_PADDING else ...
    np.testing.assert_allclose(hidden[at], want_hidden[at], atol=TOLERANCE, rtol=0)
    if want_logits is not None:
        assert want_logits.std(axis=0).max() > 0.1, "a vacuous comparison"
        np.testing.assert_allclose(logits, want_logits, atol=TOLERANCE, rtol=0)


def fitting(texts, config):
    """Texts for a config: its padding token, no more segments than it has."""
    left = config.family not in WITHOUT_PADDING
    return texts(pad=config.pad_token_id, segments=max(config.type_vocab, 1), left=left)


@pytest.mark.parametrize("family", (*FAMILIES, *MORE))
def test_hidden_states_and_logits_equal_transformers(family, saved, texts, torch_outputs, key):
    folder, model = saved(family)
    loaded = load(folder, key)
    assert loaded.new_params == ()
    check(loaded, model, torch_outputs, fitting(texts, loaded.config))


@pytest.mark.parametrize(
    ("family", "activation"),
    [("bert", "gelu_new"), ("distilbert", "relu"), ("roberta", "silu"), ("albert", "gelu")],
)
def test_configs_with_other_activations_or_without_token_types_equal_transformers(
    family, activation, saved, texts, torch_outputs, key
):
    name = "activation" if family == "distilbert" else "hidden_act"
    folder, model = saved(family, **{name: activation}, num_labels=1)
    loaded = load(folder, key, num_labels=1)
    batch = fitting(texts, loaded.config)
    check(loaded, model, torch_outputs, batch, token_types=False)


@pytest.mark.parametrize(
    "family",
    [pytest.param(x, marks=[pytest.mark.slow] * (x not in {"albert", "bert"})) for x in FAMILIES],
)
def test_first_layers_alone_equal_transformers(family, saved, texts, torch_outputs, key):
    import transformers

    folder, _ = saved(family)
    loaded = load(folder, key, layers=2)
    cut = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_hidden_layers=2
    ).eval()
    check(loaded, cut, torch_outputs, fitting(texts, loaded.config))
    rows = 1 if family == "albert" else 2
    kernel = loaded.params["encoder"]["layers"]["attention"]["query"]["kernel"]
    assert kernel.shape == ((24, 24) if rows == 1 else (2, 24, 24))


@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("bert", "base"),
        ("bert", "PreTraining"),
        ("roberta", "MaskedLM"),
        ("distilbert", "MaskedLM"),
        ("albert", "PreTraining"),
    ],
)
def test_encoder_of_checkpoints_for_other_tasks_is_loaded(
    family, task, saved, texts, torch_outputs, key
):
    folder, model = saved(family, task)
    loaded = load(folder, key)
    assert {path.split("/")[0] for path in loaded.new_params} == {"head"}
    base = model if task == "base" else model.base_model
    check(loaded, base, torch_outputs, fitting(texts, loaded.config))


def test_buckets_of_distances_equal_transformers():
    import torch
    from transformers.models.deberta_v2 import modeling_deberta_v2 as theirs

    from fedjax_lora.models.relative_positions import distance_rows

    for tokens, buckets, longest in [(512, 256, 512), (90, 32, 64), (33, 8, 40), (11, 6, 16)]:
        states = torch.zeros(1, tokens, 4)
        want = theirs.build_relative_position(states, states, buckets, longest)[0].numpy()
        want = np.clip(want + buckets, 0, 2 * buckets - 1)
        np.testing.assert_array_equal(distance_rows(tokens, buckets, longest), want)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("relative_attention", False),
        ("share_att_key", False),
        ("position_biased_input", True),
        ("pos_att_type", ["c2p"]),
        ("position_buckets", -1),
        ("conv_kernel_size", 3),
        ("embedding_size", 8),
        ("pooler_hidden_act", "tanh"),
    ],
)
def test_deberta_of_another_shape_than_version_3_is_refused(option, value):
    version_3 = {
        "model_type": "deberta-v2", "hidden_size": 24, "relative_attention": True,
        "share_att_key": True, "position_biased_input": False, "pos_att_type": "p2c|c2p",
        "position_buckets": 6, "max_position_embeddings": 16, "num_attention_heads": 4,
    }  # fmt: skip
    assert models.from_json(version_3).distance_buckets == 6
    with pytest.raises(InputError, match=option):
        models.from_json(version_3 | {option: value})


def test_mean_pooling_is_the_mean_of_real_tokens(saved, texts, key):
    folder, _ = saved("bert")
    loaded = load(folder, key, pooling="mean")
    assert loaded.new_params == ("head/classifier/bias", "head/classifier/kernel")
    assert "pooler" not in loaded.params["encoder"]
    batch = texts()
    hidden, logits = run(loaded, batch)
    means = [h[m].mean(axis=0) for h, m in zip(hidden, batch.attention_mask, strict=True)]
    want = np.stack(means) @ np.asarray(loaded.params["head"]["classifier"]["kernel"])
    np.testing.assert_allclose(logits, want, atol=1e-5)


def test_bfloat16_compute_is_close_to_float32(saved, texts, key):
    folder, _ = saved("bert")
    batch = texts()
    exact = run(load(folder, key), batch)
    coarse = run(load(folder, key, dtype="bfloat16"), batch)
    assert coarse[0].dtype == "bfloat16" and coarse[1].dtype == np.float32
    error = np.abs(coarse[0].astype(np.float32) - exact[0])
    assert 1e-4 < error.max() < 0.3 and error.mean() < 0.03


def test_minilm_with_its_tokenizer_equals_transformers(torch_outputs, key):
    import transformers

    loaded = load("minilm", key)
    words = ["A short text.", "Federated, but longer: 42 tokens? Hardly, naïve reader!", ""]
    inputs = loaded.tokenizer(words, ["And a pair."] * 3, padding=True, return_tensors="np")
    model = transformers.AutoModel.from_pretrained(loaded.folder).eval()
    batch = Batch(
        inputs["input_ids"].astype(np.int32),
        inputs["attention_mask"] != 0,
        inputs["token_type_ids"].astype(np.int32),
    )
    hidden, _ = run(loaded, batch)
    want, _ = torch_outputs(model, batch)
    np.testing.assert_allclose(hidden, want, atol=TOLERANCE, rtol=0)
    assert loaded.tokenizer.is_fast
