"""Gradients of low-rank factors attached from outside, against PyTorch with PEFT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import adapters, models

RANK, ALPHA = 3, 6.0
TARGETS = {
    "bert": ["query", "value", "attention.output.dense"],
    "roberta": ["query", "value", "attention.output.dense"],
    "distilbert": ["q_lin", "v_lin", "out_lin"],
    "albert": ["query", "value", "attention.dense"],
}
PATHS = r"attention/(query|value|output)$"


def peft_gradients(model, family, factors, batch, labels):
    """Gradients by tensor name, after putting the same factors into a PEFT model."""
    import peft
    import torch

    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS[family])
    wrapped = peft.get_peft_model(model, config).eval()
    named = {
        name.removeprefix("base_model.model."): value for name, value in wrapped.named_parameters()
    }
    lora = {name: value for name, value in named.items() if ".lora_" in name}
    assert lora.keys() == factors.keys()
    with torch.no_grad():
        for name, value in lora.items():
            value.copy_(torch.tensor(np.array(factors[name])))
    inputs = {
        "input_ids": torch.tensor(batch.input_ids, dtype=torch.long),
        "attention_mask": torch.tensor(batch.attention_mask, dtype=torch.long),
    }
    loss = wrapped(**inputs, labels=torch.tensor(labels)).loss
    loss.backward()
    return loss.item(), {name: value.grad.numpy() for name, value in lora.items()}


def by_peft_name(config, tree):
    """Factors (or their gradients) by PEFT's tensor names, in PyTorch's orientation."""
    named = {}
    for path, pair in tree.items():
        stacked = models.is_stacked(config, path)
        for layer in range(config.layers) if stacked else [None]:
            module = models.hf_module(config, path, layer)
            a, b = pair if layer is None else (pair.a[layer], pair.b[layer])
            named[f"{module}.lora_A.default.weight"] = np.asarray(a).T
            named[f"{module}.lora_B.default.weight"] = np.asarray(b).T
    return named


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT calls what transformers deprecates
@pytest.mark.parametrize("family", ["albert", "bert", "distilbert", "roberta"])
def test_gradients_of_factors(family, saved, texts, key):
    folder, model = saved(family)
    loaded = models.load(str(folder), num_labels=3, scan_unroll=1, key=key)
    template = adapters.make_template(loaded.params, targets=PATHS, rank=RANK, alpha=ALPHA)
    factors = jax.tree.map(
        lambda leaf: 0.3 * jax.random.normal(jax.random.fold_in(key, leaf.size), leaf.shape),
        adapters.init(template, key),
    )
    gain = adapters.uniform_gain(template)
    batch = texts(pad=loaded.config.pad_token_id, segments=1)
    labels = np.array([0, 2, 1, 2])

    @jax.jit
    @jax.value_and_grad
    def loss(factors, params):
        logits = adapters.apply(
            loaded.module, params, factors, gain, batch.input_ids, batch.attention_mask
        )
        chosen = jax.nn.log_softmax(logits)[jnp.arange(4), labels]
        return -chosen.mean()

    value, gradient = loss(factors, loaded.params)
    want_value, want = peft_gradients(
        model, family, by_peft_name(loaded.config, factors), batch, labels
    )
    got = by_peft_name(loaded.config, gradient)
    assert float(value) == pytest.approx(want_value, abs=1e-5)
    for name, expected in want.items():
        assert np.abs(expected).max() > 1e-4, "a vacuous comparison"
        np.testing.assert_allclose(got[name], expected, atol=1e-5, rtol=1e-3, err_msg=name)
