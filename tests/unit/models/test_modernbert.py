"""ModernBERT, an encoder with the layers of the decoder module, against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import interop, lora, models
from fedjax_lora.core.errors import InputError
from tests._helpers import small_decoders as decoders
from tests._helpers.peft_oracle import ALPHA, RANK, by_peft_name, loss_and_gradients

SIZES = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
    "local_attention": 6,
    "global_attn_every_n_layers": 2,
    "norm_eps": 0.03,
    "num_labels": 3,
    "pad_token_id": 0,
    **{f"{name}_token_id": 1 for name in ("bos", "eos", "cls", "sep")},
}
BIASES = {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True}
TARGETS = {"Wqkv", "attn.Wo", "mlp.Wo", "Wi"}


def saved(folder, task="SequenceClassification", **options):
    """A random model, and the folder in which it is saved."""
    import torch
    import transformers

    sizes = SIZES | options
    config = transformers.AutoConfig.for_model("modernbert", attn_implementation="eager", **sizes)
    torch.manual_seed(0)
    model = getattr(transformers, f"ModernBertFor{task}")(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(0, 0.3)
            if "norm" in name and name.endswith("weight"):
                value.add_(1.0)
    model.save_pretrained(folder / "model")
    return folder / "model", model


def load(folder, key, **options):
    return models.load(str(folder), **{"num_labels": 3, "scan_unroll": 1, "key": key} | options)


def check(loaded, model, batch):
    want = decoders.torch_logits(model, batch)
    assert want.std() > 0.5, "a vacuous comparison"
    got = jax.jit(loaded.module.apply)({"params": loaded.params}, *batch)
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "options",
    [{}, BIASES | {"classifier_pooling": "mean", "classifier_activation": "silu"}],
    ids=["first token", "mean, biases"],
)
def test_logits_equal_transformers_with_padding_on_either_side(options, tmp_path, key):
    folder, model = saved(tmp_path, **options)
    loaded = load(folder, key)
    assert loaded.new_params == () and loaded.config.sliding_window == 3
    for left in [False] if not options else [False, True]:
        check(loaded, model, decoders.texts(left=left))


def test_encoder_of_a_masked_language_model_is_read(tmp_path, key):
    import torch

    folder, model = saved(tmp_path, "MaskedLM")
    loaded = load(folder, key, pooling="mean")
    assert {path.split("/")[0] for path in loaded.new_params} == {"head"}
    batch = decoders.texts()
    encoder = models.Decoder(loaded.config)
    out = jax.jit(encoder.apply)({"params": loaded.params["encoder"]}, *batch).hidden

    ids, mask = (torch.tensor(np.asarray(x)).long() for x in batch)
    with torch.no_grad():
        want = model.model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
    at = batch.attention_mask
    np.testing.assert_allclose(np.asarray(out)[at], want[at], atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT calls what transformers deprecates
def test_factor_gradients_equal_peft_and_exports_give_the_same_logits(tmp_path, key):
    import peft
    import transformers

    folder, model = saved(tmp_path)
    loaded = load(folder, key, num_labels=3)
    spec = lora.make_spec(loaded.params, targets="all-linear", rank=RANK, alpha=ALPHA)
    assert len(spec.targets) == 4
    factors, gain = decoders.random_adapters(spec, key), lora.uniform_gain(spec)
    batch, labels = decoders.texts(), np.array([0, 2, 1, 2])

    @jax.jit
    @jax.value_and_grad
    def loss(factors, params):
        logits = lora.apply(loaded.module, params, factors, gain, *batch)
        return -jax.nn.log_softmax(logits)[jnp.arange(4), labels].mean()

    value, gradient = loss(factors, loaded.params)
    trained = interop.TrainedModel(
        pretrained=loaded,
        metadata=interop.ModelMetadata(
            base=str(folder), base_sha256=loaded.fingerprint, classes=("a", "b", "c")
        ),
        targets=spec.targets,
        adapter=factors,
        gain=gain,
        head=loaded.params["head"],
    )
    interop.save_adapter(tmp_path / "adapter", trained)
    interop.save_merged(tmp_path / "merged", trained)
    logits = np.asarray(lora.apply(loaded.module, loaded.params, factors, gain, *batch))
    auto = transformers.AutoModelForSequenceClassification
    merged = auto.from_pretrained(tmp_path / "merged", attn_implementation="eager").eval()
    np.testing.assert_allclose(decoders.torch_logits(merged, batch), logits, atol=1e-4, rtol=0)
    base = auto.from_pretrained(folder, attn_implementation="eager")
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    np.testing.assert_allclose(decoders.torch_logits(adapted, batch), logits, atol=1e-4, rtol=0)
    assert np.abs(decoders.torch_logits(model, batch) - logits).max() > 0.1, "vacuous"

    by_name = by_peft_name(loaded.config, factors)
    inputs = {"labels": labels, **batch._asdict()}
    want_value, want = loss_and_gradients(model, by_name, sorted(TARGETS), **inputs)
    assert float(value) == pytest.approx(want_value, abs=1e-4)
    got = by_peft_name(loaded.config, gradient)
    for name, expected in want.items():
        assert np.abs(expected).max() > 1e-4, "a vacuous comparison"
        np.testing.assert_allclose(got[name], expected, atol=1e-4, rtol=1e-3, err_msg=name)


@pytest.mark.parametrize("option", ["attention_dropout", "mlp_dropout"])
def test_dropout_that_the_layers_do_not_have_is_refused(option):
    with pytest.raises(InputError, match="dropout"):
        models.from_json({"model_type": "modernbert", option: 0.1})


def test_language_task_is_refused(tmp_path, key):
    folder, _ = saved(tmp_path)
    with pytest.raises(InputError, match="is an encoder and cannot generate text"):
        load(folder, key, num_labels=None)
