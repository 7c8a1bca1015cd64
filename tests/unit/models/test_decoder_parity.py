"""The Flax decoder computes what PyTorch `transformers` computes on the same weights."""

import jax
import numpy as np
import pytest

from fedjax_lora import models
from fedjax_lora.core.errors import InputError
from tests._helpers import small_decoders as decoders

TOLERANCE = 1e-4


def load(folder, key, **options):
    return models.load(str(folder), **{"num_labels": None, "scan_unroll": 1, "key": key} | options)


def run(loaded, batch):
    """Logits at every token, or of a classifier."""

    @jax.jit
    def apply(params, *inputs):
        out = loaded.module.apply({"params": params}, *inputs)
        if not isinstance(out, models.Decoded):
            return out
        return models.logits(params, out.hidden, softcap=loaded.config.logit_softcap)

    return np.asarray(apply(loaded.params, *batch))


def check(loaded, model, batch):
    """Logits agree at every token that is not padding, and are not trivial."""
    got, want = run(loaded, batch), decoders.torch_logits(model, batch)
    at = batch.attention_mask if want.ndim == 3 else slice(None)
    assert want[at].std() > 0.5, "a vacuous comparison"
    np.testing.assert_allclose(got[at], want[at], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("family", "left"),
    [*((family, left) for family in decoders.FAMILIES for left in (False, True))]
    + [(family, False) for family in decoders.MORE]
    + [pytest.param(family, True, marks=pytest.mark.slow) for family in decoders.MORE],
)
def test_logits_equal_transformers_with_padding_on_either_side(family, left, tmp_path, key):
    folder, model = decoders.saved(tmp_path, family)
    loaded = load(folder, key)
    assert loaded.new_params == () and loaded.params["head"] == {}
    assert ("vocabulary" in loaded.params) == (family not in decoders.TIED)
    check(loaded, model, decoders.texts(left=left))


@pytest.mark.parametrize(
    "family",
    [
        *decoders.FAMILIES,
        *(pytest.param(x, marks=pytest.mark.slow) for x in decoders.MORE if x != "internlm3"),
    ],
)
def test_classifier_reads_the_last_real_token(family, tmp_path, key):
    folder, model = decoders.saved(tmp_path, family, "SequenceClassification")
    loaded = load(folder, key, num_labels=3)
    assert loaded.new_params == () and "vocabulary" not in loaded.params
    for left in (False, True):
        check(loaded, model, decoders.texts(left=left))


def test_classifier_that_transformers_lacks_is_refused(tmp_path, key):
    folder, _ = decoders.saved(tmp_path, "internlm3")
    with pytest.raises(InputError, match="no classifier of the family internlm3"):
        load(folder, key, num_labels=3)


@pytest.mark.parametrize(
    ("family", "option", "value", "words"),
    [
        ("gpt2", "add_cross_attention", True, "attention to an encoder"),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True, "scaled by the layer's number"),
        ("opt", "do_layer_norm_before", False, "LayerNorm after each block"),
        ("opt", "_remove_final_layer_norm", True, "no LayerNorm after the last"),
        ("opt", "layer_norm_elementwise_affine", False, "LayerNorms without parameters"),
        ("opt", "word_embed_proj_dim", 512, "embeddings of another width"),
    ],
)
def test_variants_of_gpt2_and_opt_with_another_function_are_refused(family, option, value, words):
    raw = {"model_type": family, option: value}
    with pytest.raises(InputError, match=words):
        models.from_json(raw)


@pytest.mark.parametrize(
    ("family", "options"),
    [("gpt2", {"scale_attn_weights": False}), ("opt", {"enable_bias": False})],
)
def test_options_of_gpt2_and_opt_equal_transformers(family, options, tmp_path, key):
    folder, model = decoders.saved(tmp_path, family, **options)
    check(load(folder, key), model, decoders.texts())


def test_tensor_names_of_the_published_gpt2_are_read(tmp_path, key):
    """They have no prefix, and bring buffers."""
    from safetensors.numpy import load_file, save_file

    folder, model = decoders.saved(tmp_path, "gpt2")
    stored = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): value for name, value in stored.items()}
    bare |= {f"h.{n}.attn.bias": np.ones((1, 1, 32, 32), np.float32) for n in range(3)}
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    check(load(folder, key), model, decoders.texts())


ROPES = {
    "linear": {"factor": 2.5},
    "dynamic": {"factor": 2.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
    "yarn, all options": {
        "factor": 3.0,
        "original_max_position_embeddings": 24,
        "beta_fast": 4.0,
        "beta_slow": 0.5,
        "mscale": 0.7,
        "mscale_all_dim": 0.4,
        "truncate": False,
    },
}


@pytest.mark.parametrize("kind", ROPES)
def test_long_texts_equal_transformers_under_every_rope_scaling(kind, tmp_path, key):
    rope = {"rope_type": kind.split(",")[0], "rope_theta": 500.0, **ROPES[kind]}
    # Wider heads than elsewhere: more frequencies, on both sides of every border.
    folder, model = decoders.saved(tmp_path, "llama", rope_parameters=rope, head_dim=32)
    loaded = load(folder, key)
    tokens = min(60, loaded.config.max_tokens)
    batch = decoders.Texts(
        np.random.default_rng(1).integers(3, 50, (2, tokens)).astype(np.int32),
        np.ones((2, tokens), bool),
    )
    check(loaded, model, batch)


def test_older_spelling_of_rope_scaling_is_read():
    raw = {
        "model_type": "llama",
        "rope_theta": 5e5,
        "rope_scaling": {"type": "linear", "factor": 2},
    }
    config = models.from_json(raw)
    assert (config.rope.type, config.rope.theta, config.rope.factor) == ("linear", 5e5, 2.0)
    assert config.max_tokens == 2 * 2048


def test_first_layers_alone_equal_transformers(tmp_path, key):
    import transformers

    folder, _ = decoders.saved(tmp_path, "qwen3")
    cut = transformers.AutoModelForCausalLM.from_pretrained(folder, num_hidden_layers=2).eval()
    check(load(folder, key, layers=2), cut, decoders.texts())


def test_bfloat16_compute_is_close_to_float32(tmp_path, key):
    folder, _ = decoders.saved(tmp_path, "qwen3")
    batch = decoders.texts()
    exact = run(load(folder, key), batch)[batch.attention_mask]
    coarse = run(load(folder, key, dtype="bfloat16"), batch)[batch.attention_mask]
    assert coarse.dtype == np.float32
    error = np.abs(coarse - exact)
    assert error.max() > 1e-4 and error.mean() < 0.05 * exact.std()


@pytest.mark.shared
def test_trained_checkpoint_has_the_logits_of_transformers(shared, key):
    """Next-token predictions along the known text are the text itself."""
    loaded = models.load(str(shared / "models" / "stories260k"), num_labels=None, key=key)
    story = (
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
        "park. One day, she saw a big, red ball."
    )
    start = len(loaded.tokenizer("Once upon a time")["input_ids"])
    ids = np.array([loaded.tokenizer(story)["input_ids"]], np.int32)
    best = run(loaded, decoders.Texts(ids, np.ones_like(ids, bool))).argmax(-1)
    np.testing.assert_array_equal(best[0, start - 1 : -1], ids[0, start:])
