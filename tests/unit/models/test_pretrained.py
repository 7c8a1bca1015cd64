"""Loading of pretrained models: tokenizers, options out of range, fingerprints."""

import shutil

import jax
import pytest

from fedjax_lora import models
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.target import Target, compiling_for


def load(name, key, **options):
    return models.load(str(name), **{"num_labels": 3, "key": key} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 4}, "layers is 4 but must be between 1 and the 3 the model has"),
        ({"layers": 0}, "layers is 0"),
        ({"num_labels": 0}, "num_labels is 0 but must be at least 1"),
        ({"dtype": "float16"}, "dtype is 'float16' but must be one of float32, bfloat16"),
        ({"pooling": "max"}, "pooling is 'max' but must be one of family, mean"),
        ({"dropout": 1.0}, "hidden_dropout is 1.0"),
    ],
)
def test_out_of_range_options_are_refused(options, message, saved, key):
    folder, _ = saved("bert")
    with pytest.raises(InputError, match=message):
        load(folder, key, **options)


@pytest.mark.parametrize(
    ("storage", "dtype", "on_cpu", "on_tpu"),
    [
        ("float32", "bfloat16", None, None),
        ("bfloat16", "bfloat16", 1, None),
        ("bfloat16", "float32", 1, 1),  # each layer is converted when it is used
    ],
)
def test_layers_that_are_decoded_run_in_a_loop(storage, dtype, on_cpu, on_tpu, saved, key):
    folder, _ = saved("bert")
    tpu = Target(platform="tpu", kind="TPU v5 lite", devices=tuple(jax.devices()[:1]))
    found = []
    for target in (None, tpu):
        with compiling_for(target):
            model = load(folder, key, storage=storage, dtype=dtype, weights=False)
            found.append(model.config.scan_unroll)
    assert found == [on_cpu, on_tpu]


def test_dropout_is_that_of_the_checkpoint_or_one_given_rate(saved, key):
    folder, _ = saved("bert", hidden_dropout_prob=0.2, classifier_dropout=0.3)

    def rates(**options):
        config = load(folder, key, **options).config
        return config.hidden_dropout, config.attention_dropout, config.head_dropout

    assert rates() == (0.2, 0.1, 0.3)
    assert rates(dropout=0.0) == (0.0, 0.0, 0.0)


def test_damaged_and_mismatched_tokenizers_are_refused(saved, key):
    folder, _ = saved("bert")
    assert load(folder, key).tokenizer is None
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"The tokenizer in .* cannot be loaded"):
        load(folder, key)
    shutil.copy(models.resolve("minilm").folder / "tokenizer.json", folder)
    with pytest.raises(InputError, match="has ids up to 30521 but the model only 50"):
        load(folder, key)


def test_fingerprint_identifies_the_encoder(saved, key):
    folder, _ = saved("bert")
    whole = load(folder, key)
    assert len(whole.fingerprint) == 64 and whole.folder == folder
    assert load(folder, key, num_labels=5, dtype="bfloat16").fingerprint == whole.fingerprint
    assert load(folder, key, layers=2).fingerprint != whole.fingerprint
