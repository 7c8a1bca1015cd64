"""A decoder's low-rank factors against PyTorch with PEFT: loss, gradients, and exported files."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import interop, lora, models
from tests._helpers import small_decoders as decoders
from tests._helpers.peft_oracle import ALPHA, RANK, by_peft_name, loss_and_gradients

SLOW = {"mistral", "gemma3_text", "internlm3", "opt", "phi3", "smollm3"}
"""Llama's, GPT-2's or Gemma 2's layers but for what `test_decoder_parity` compares. Qwen 3 has
Llama's layers and norms besides; `test_completion_gradients` has Llama itself."""


def families(slow: set[str]) -> list[Any]:
    """The families as parameters of a test."""
    return [
        pytest.param(family, marks=[pytest.mark.slow] * (family in slow))
        for family in (*decoders.FAMILIES, *decoders.MORE)
    ]


@pytest.mark.parametrize("family", families({*SLOW, "llama", "qwen2"}))
def test_loss_and_factor_gradients_of_every_linear_layer_equal_peft(family, tmp_path, key):
    folder, model = decoders.saved(tmp_path, family)
    loaded = models.load(str(folder), num_labels=None, scan_unroll=1, remat=True, key=key)
    spec = lora.make_spec(loaded.params, targets="all-linear", rank=RANK, alpha=ALPHA)
    assert len(spec.targets) == {"phi3": 4, "gpt2": 4, "opt": 6}.get(family, 7)
    paths = [target.path for target in spec.targets]
    names = {models.hf_module(loaded.config, path, 0).rpartition(".")[2] for path in paths}
    factors = decoders.random_adapters(spec, key)
    gain = lora.uniform_gain(spec)
    batch = decoders.texts()

    @jax.jit
    @jax.value_and_grad
    def loss(factors, params):
        out = lora.apply(loaded.module, params, factors, gain, *batch)
        softcap = loaded.config.logit_softcap
        scores = jax.nn.log_softmax(models.logits(params, out.hidden[:, :-1], softcap=softcap))
        chosen = jnp.take_along_axis(scores, jnp.asarray(batch.input_ids)[:, 1:, None], axis=-1)
        return -jnp.mean(chosen[..., 0], where=jnp.asarray(batch.attention_mask)[:, 1:])

    value, gradient = loss(factors, loaded.params)
    want_value, want = loss_and_gradients(
        model,
        by_peft_name(loaded.config, factors),
        sorted(names),
        **batch._asdict(),
        labels=np.where(batch.attention_mask, batch.input_ids, -100),
    )
    assert float(value) == pytest.approx(want_value, abs=1e-4)
    got = by_peft_name(loaded.config, gradient)
    for name, expected in want.items():
        assert np.abs(expected).max() > 1e-4, "a vacuous comparison"
        np.testing.assert_allclose(got[name], expected, atol=1e-4, rtol=1e-3, err_msg=name)


@pytest.mark.parametrize(
    ("preset", "names"),
    [
        ("attention-qv", {"q_proj", "v_proj"}),
        ("attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
    ],
)
def test_target_presets_match_the_decoder_layer_names(preset, names):
    params = models.tiny(family="llama", num_labels=None).params
    targets = lora.make_spec(params, targets=preset, rank=2).targets
    assert {target.path.rpartition("/")[2] for target in targets} == names
    assert all(target.stack == (2,) for target in targets)


@pytest.mark.parametrize(
    ("family", "task"),
    [
        *(
            pytest.param(*x.values, "CausalLM", marks=x.marks)
            for x in families({*SLOW, "qwen2", "gemma2"})
        ),
        ("qwen3", "SequenceClassification"),
    ],
)
def test_exported_adapter_gives_the_same_logits_in_peft(family, task, tmp_path, key):
    import peft

    folder, model = decoders.saved(tmp_path, family, task)
    labels = 3 if task == "SequenceClassification" else None
    loaded = models.load(str(folder), num_labels=labels, scan_unroll=1, key=key)
    spec = lora.make_spec(loaded.params, targets="all-linear", rank=RANK, alpha=ALPHA)
    factors = decoders.random_adapters(spec, key)
    gain = lora.uniform_gain(spec)
    trained = interop.TrainedModel(
        pretrained=loaded,
        metadata=interop.ModelMetadata(base=str(folder), base_sha256=loaded.fingerprint),
        targets=spec.targets,
        adapter=factors,
        gain=gain,
        head=loaded.params["head"],
    )
    interop.save_adapter(tmp_path / "adapter", trained)
    batch = decoders.texts(left=True)
    base = decoders.torch_logits(model, batch)
    want = decoders.torch_logits(
        peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval(), batch
    )
    out = lora.apply(loaded.module, loaded.params, factors, gain, *batch)
    softcap = loaded.config.logit_softcap
    got = out if labels else models.logits(loaded.params, out.hidden, softcap=softcap)
    at = slice(None) if labels else batch.attention_mask
    got, want, base = np.asarray(got)[at], want[at], base[at]
    assert np.abs(want - base).max() > 0.1, "a vacuous comparison"
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)
