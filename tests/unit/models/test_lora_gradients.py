"""Gradients of low-rank factors attached from outside, against PyTorch with PEFT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import lora, models
from tests._helpers.peft_oracle import ALPHA, RANK, by_peft_name, loss_and_gradients

TARGETS = {
    "bert": ["query", "value", "attention.output.dense"],
    "roberta": ["query", "value", "attention.output.dense"],
    "distilbert": ["q_lin", "v_lin", "out_lin"],
    "albert": ["query", "value", "attention.dense"],
    "deberta-v2": ["query_proj", "value_proj", "attention.output.dense"],
    "electra": ["query", "value", "attention.output.dense"],
    "mpnet": ["attn.q", "attn.v", "attn.o"],
    "camembert": ["query", "value", "attention.output.dense"],
    "xlm-roberta": ["query", "value", "attention.output.dense"],
}
PATHS = r"attention/(query|value|output)$"


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT calls what transformers deprecates
@pytest.mark.parametrize(
    # The layers of the others are BERT's.
    "family",
    ["albert", "bert", "deberta-v2", "mpnet"]
    + [
        pytest.param(family, marks=pytest.mark.slow)
        for family in ("distilbert", "roberta", "camembert", "electra", "xlm-roberta")
    ],
)
def test_factor_gradients_equal_peft(family, saved, texts, key):
    folder, model = saved(family)
    loaded = models.load(str(folder), num_labels=3, scan_unroll=1, key=key)
    spec = lora.make_spec(loaded.params, targets=PATHS, rank=RANK, alpha=ALPHA)
    factors = jax.tree.map(
        lambda leaf: 0.3 * jax.random.normal(jax.random.fold_in(key, leaf.size), leaf.shape),
        lora.init(spec, key),
    )
    gain = lora.uniform_gain(spec)
    batch = texts(pad=loaded.config.pad_token_id, segments=1, left=family != "deberta-v2")
    labels = np.array([0, 2, 1, 2])

    @jax.jit
    @jax.value_and_grad
    def loss(factors, params):
        logits = lora.apply(
            loaded.module, params, factors, gain, batch.input_ids, batch.attention_mask
        )
        chosen = jax.nn.log_softmax(logits)[jnp.arange(4), labels]
        return -chosen.mean()

    value, gradient = loss(factors, loaded.params)
    want_value, want = loss_and_gradients(
        model,
        by_peft_name(loaded.config, factors),
        TARGETS[family],
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        labels=labels,
    )
    got = by_peft_name(loaded.config, gradient)
    assert float(value) == pytest.approx(want_value, abs=1e-5)
    for name, expected in want.items():
        assert np.abs(expected).max() > 1e-4, "a vacuous comparison"
        np.testing.assert_allclose(got[name], expected, atol=1e-5, rtol=1e-3, err_msg=name)
