"""Reading decoders: shards, formats, devices, and every way in which a checkpoint can be wrong."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedjax_lora import models
from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
from tests._helpers import small_decoders as decoders


def load(folder, key, **options):
    return models.load(str(folder), **{"num_labels": None, "key": key} | options)


def edit(folder, change):
    """Rewrite the weights after `change` has edited the dictionary of tensors."""
    stored = load_file(folder / "model.safetensors")
    change(stored)
    save_file(stored, folder / "model.safetensors")


def configure(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture
def llama(tmp_path):
    return decoders.saved(tmp_path, "llama")


@pytest.mark.parametrize("family", decoders.FAMILIES)
def test_names_cover_the_stored_tensors_exactly(family, tmp_path, key):
    folder, _ = decoders.saved(tmp_path, family)
    loaded = load(folder, key)
    written = {}
    for path, value in trees.flat(loaded.params).items():
        if path == "head":
            continue
        for layer in range(3) if models.is_stacked(loaded.config, path) else [None]:
            one = np.asarray(value) if layer is None else np.asarray(value[layer])
            name = models.hf_name(loaded.config, path, layer)
            written[name] = one.T if path.endswith("kernel") else one
    stored = load_file(folder / "model.safetensors")
    assert written.keys() == stored.keys()
    for name in stored:
        np.testing.assert_array_equal(written[name], stored[name], err_msg=name)


def test_sharded_and_reduced_precision_checkpoints_give_the_same_parameters(llama, key, tmp_path):
    import torch

    folder, model = llama
    whole = load(folder, key)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 3
    jax.tree.map(
        np.testing.assert_array_equal, load(tmp_path / "sharded", key).params, whole.params
    )
    for dtype, bits in ((torch.float16, 11), (torch.bfloat16, 8)):
        copy.deepcopy(model).to(dtype).save_pretrained(tmp_path / "half")
        half = load(tmp_path / "half", key)
        for one, two in zip(*(jax.tree.leaves(m.params) for m in (whole, half)), strict=True):
            assert two.dtype == jnp.float32
            np.testing.assert_allclose(one, two, rtol=2.0**-bits)


def test_bfloat16_checkpoint_is_kept_bit_for_bit(llama, key, tmp_path):
    import torch

    _, model = llama
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    flat = trees.flat(load(tmp_path / "half", key, storage="bfloat16").params)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    name = "model.layers.2.mlp.down_proj.weight"
    kernel = flat["decoder/layers/mlp/down_proj/kernel"]
    assert kernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(kernel[2]).T, stored[name])


def test_parameters_are_placed_by_the_sharding(llama, key):
    """Straight to many devices, codes too; the values are the same."""
    folder, _ = llama
    mesh = jax.make_mesh((4,), ("model",), devices=jax.devices()[:4])

    def sharding(path, shape):
        cut = path.endswith("/kernel") and shape[-1] % 4 == 0
        spec = (None,) * (len(shape) - 1) + ("model",) if cut else ()
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    for storage in ("float32", "int8"):
        spread = load(folder, key, storage=storage, sharding=sharding).params
        one = load(folder, key, storage=storage).params
        jax.tree.map(np.testing.assert_array_equal, spread, one)
        query = spread["decoder"]["layers"]["self_attn"]["q_proj"]["kernel"]
        for leaf in jax.tree.leaves(query):
            assert leaf.addressable_shards[0].data.shape[-1] == leaf.shape[-1] / 4
        assert len(spread["decoder"]["norm"]["scale"].sharding.device_set) == 4


def test_classifier_on_a_language_model_gets_a_new_head(llama, key):
    folder, _ = llama
    loaded = load(folder, key, num_labels=5)
    assert loaded.new_params == ("head/score/kernel",)
    assert loaded.params["head"]["score"]["kernel"].shape == (24, 5)
    same = load(folder, key).params["decoder"]
    jax.tree.map(np.testing.assert_array_equal, loaded.params["decoder"], same)
    other = models.reinitialize(loaded, jax.random.key(1))
    assert other.fingerprint == loaded.fingerprint
    assert other.params["decoder"]["norm"]["scale"] is loaded.params["decoder"]["norm"]["scale"]


def test_language_model_needs_a_vocabulary_matrix_in_the_checkpoint(tmp_path, key):
    folder, _ = decoders.saved(tmp_path, "llama", "SequenceClassification")
    with pytest.raises(InputError, match=r"do not fit the llama .*: missing lm_head\.weight\."):
        load(folder, key)
    folder, _ = decoders.saved(tmp_path / "tied", "qwen2", "SequenceClassification")
    assert load(folder, key).new_params == ()


def test_old_buffers_and_tied_copies_are_ignored(tmp_path, key):
    folder, _ = decoders.saved(tmp_path, "qwen2")
    whole = load(folder, key)

    def age(stored):
        stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)
        stored["lm_head.weight"] = stored["model.embed_tokens.weight"]

    edit(folder, age)
    jax.tree.map(np.testing.assert_array_equal, load(folder, key).params, whole.params)


def test_all_mismatches_are_in_one_message(llama, key):
    folder, _ = llama

    def damage(stored):
        for layer in (0, 2):
            del stored[f"model.layers.{layer}.self_attn.q_proj.weight"]
        stored["model.layers.3.mlp.up_proj.weight"] = np.zeros((40, 24), np.float32)
        stored["model.norm.weight"] = np.zeros(23, np.float32)
        stored["lm_head.weight"] = np.zeros((50, 24), np.int8)

    edit(folder, damage)
    with pytest.raises(InputError) as error:
        load(folder, key)
    message = str(error.value)
    assert "missing layers.{0,2}.self_attn.q_proj.weight" in message
    assert "unexpected layers.3.mlp.up_proj.weight" in message
    assert "norm.weight is stored as (23,) but must be (24,)" in message
    assert "lm_head.weight is stored as I8, not as floating-point numbers" in message
    assert message.count("\n") == 0


def test_missing_shard_is_named(llama, key, tmp_path):
    _, model = llama
    model.save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    lost = sorted((tmp_path / "sharded").glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(InputError, match=rf"cannot be used: shard {lost.name} is missing"):
        load(tmp_path / "sharded", key)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gemma3"}, "describes a 'gemma3' model; supported are .*llama, mistral"),
        (
            {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}},
            r"rope type 'longrope' \(only default, linear, dynamic, llama3, yarn\)",
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, "not a valid llama"),
        (
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 1.0,
                    "factor": 0.0,
                    "low_freq_factor": 1,
                    "high_freq_factor": 1,
                    "original_max_position_embeddings": 8,
                }
            },
            "theta is 1.0 but must be above 1; rope factor is 0.0 .*; rope frequency factors are 1",
        ),
        ({"rope_parameters": 3}, "rope parameters that are no JSON object"),
        ({"rope_parameters": {"rope_type": "linear"}}, "Missing required keys"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised weights"),
        ({"partial_rotary_factor": 0.5}, "a part of each head"),
        ({"num_key_value_heads": 3}, "4 heads are not a multiple of the 3 kv_heads"),
        ({"head_dim": 7}, "head_dim.*7"),
        ({"hidden_act": "prelu"}, "Unknown activation 'prelu'"),
    ],
)
def test_unsupported_configs_are_refused(values, message, llama, key):
    folder, _ = llama
    configure(folder, **values)
    with pytest.raises(InputError, match=message) as error:
        load(folder, key)
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_labels": 0}, "num_labels is 0 but must be at least 1"),
        ({"storage": "float16"}, "storage is 'float16' but must be one of"),
        ({"dtype": "float16"}, "dtype is 'float16' but must be one of float32, bfloat16"),
        ({"layers": 4}, "layers is 4 but must be between 1 and the 3 the model has"),
        ({"dropout": 1.0}, "attention_dropout is 1.0"),
    ],
)
def test_out_of_range_options_are_refused(options, message, llama, key):
    folder, _ = llama
    with pytest.raises(InputError, match=message):
        load(folder, key, **options)


def test_encoder_is_refused_as_language_model(key):
    with pytest.raises(InputError, match="bert model is an encoder and cannot generate text"):
        load("minilm", key)


def test_tokenizer_without_padding_token_pads_with_the_end_token(llama, key, tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    folder, _ = llama
    words = Tokenizer(WordLevel({"<unk>": 0, "</s>": 2, "hello": 3}, unk_token="<unk>"))
    made = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")
    made.save_pretrained(folder)
    assert load(folder, key).tokenizer.pad_token_id == 2
