"""A stored vocabulary matrix is used, whatever the config says of tying."""

import json

import jax
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from fedjax_lora import interop, models
from fedjax_lora.core.errors import InputError
from tests._helpers import peft_cases
from tests._helpers import small_decoders as decoders


def saved(folder, family, *, shard_size="5GB"):
    """A tied checkpoint whose file also holds another vocabulary matrix."""
    model = decoders.build(family, tie_word_embeddings=False)
    model.save_pretrained(folder, max_shard_size=shard_size)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": True}))
    return folder


def edit(folder, **tensors):
    """Replace tensors; those that are None are removed."""
    file = folder / "model.safetensors"
    stored = load_file(file) | {name.replace("__", "."): x for name, x in tensors.items()}
    save_file({name: x for name, x in stored.items() if x is not None}, file)


def in_torch(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    batch = decoders.texts()
    return decoders.torch_logits(model, batch)[batch.attention_mask]


@pytest.mark.parametrize(
    ("family", "shard_size"), [("llama", "5GB"), ("qwen2", "5KB"), ("qwen3", "5GB")]
)
def test_separately_stored_vocabulary_matrix_is_used_like_transformers(
    family, shard_size, tmp_path
):
    folder = saved(tmp_path / family, family, shard_size=shard_size)
    assert (folder / "model.safetensors.index.json").exists() == (shard_size == "5KB")
    theirs = in_torch(folder)
    ours = peft_cases.our_logits(folder)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=0)
    model = interop.load_model(folder)
    assert "vocabulary" in model.pretrained.params
    interop.save_merged(tmp_path / "merged", model)
    np.testing.assert_allclose(in_torch(tmp_path / "merged"), theirs, atol=1e-5, rtol=0)


def test_equal_copy_stays_tied_and_classifiers_need_no_vocabulary_matrix(tmp_path, key):
    folder = saved(tmp_path / "llama", "llama")
    assert "vocabulary" not in models.load(str(folder), num_labels=2, key=key).params
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    edit(folder, lm_head__weight=table)
    model = models.load(str(folder), num_labels=None, key=key)
    assert model.config.tied
    assert "vocabulary" not in model.params


def test_unusable_head_tensors_are_named(tmp_path):
    folder = saved(tmp_path / "llama", "llama")
    edit(folder, lm_head__bias=np.zeros(50, np.float32))
    with pytest.raises(InputError, match=r"unexpected lm_head\.bias"):
        models.load(str(folder), num_labels=None, key=jax.random.key(0))
    edit(folder, lm_head__bias=None, lm_head__weight=np.zeros((51, 24), np.float32))
    with pytest.raises(InputError, match=r"lm_head\.weight is stored as \(51, 24\) but must be"):
        models.load(str(folder), num_labels=None, key=jax.random.key(0))


def test_untied_head_missing_from_the_checkpoint_is_refused(tmp_path):
    """`transformers` would draw a random one."""
    folder = saved(tmp_path / "llama", "llama")
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": False}))
    edit(folder, lm_head__weight=None)
    with pytest.raises(InputError, match=r"missing lm_head\.weight"):
        models.load(str(folder), num_labels=None, key=jax.random.key(0))
