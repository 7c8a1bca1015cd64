"""The loss of completions and its gradients, against PyTorch: labels of -100, PEFT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import federated, lora, models
from fedjax_lora.core.types import ClientParams
from fedjax_lora.federated.objectives import TokenBatch
from tests._helpers import small_decoders as decoders
from tests._helpers.peft_oracle import ALPHA, RANK, by_peft_name, loss_and_gradients

PROMPTS = np.array([[4], [1], [5], [1]])  # tokens; the last text is nothing but its prompt


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT calls what transformers deprecates
@pytest.mark.parametrize("chunk_numbers", [2**23, 150], ids=["whole", "three tokens at a time"])
def test_completion_loss_and_factor_gradients_equal_pytorch(chunk_numbers, tmp_path, key):
    folder, model = decoders.saved(tmp_path, "llama")
    loaded = models.load(str(folder), num_labels=None, scan_unroll=1, key=key)
    spec = lora.make_spec(loaded.params, targets="attention-qv", rank=RANK, alpha=ALPHA)
    factors = jax.tree.map(
        lambda leaf: 0.3 * jax.random.normal(jax.random.fold_in(key, leaf.size), leaf.shape),
        lora.init(spec, key),
    )
    texts = decoders.texts()
    learned = texts.attention_mask & (np.arange(11) >= PROMPTS)
    objective = federated.causal_lm(
        loaded.module, (11,), logits=models.logits, chunk_numbers=chunk_numbers
    )
    batch = TokenBatch(*map(jnp.asarray, (*texts, learned.astype(np.int32), np.zeros(4, np.int32))))
    valid = jnp.array([True, True, True, True])

    @jax.jit
    @jax.value_and_grad
    def loss(factors, base):
        gain = lora.uniform_gain(spec)
        return objective.loss(base, ClientParams(factors, {}), gain, None, batch, valid, key)

    value, gradient = loss(factors, loaded.params)
    want_value, want = loss_and_gradients(
        model,
        by_peft_name(loaded.config, factors),
        ["q_proj", "v_proj"],
        **texts._asdict(),
        labels=np.where(learned, texts.input_ids, -100),
    )
    got = by_peft_name(loaded.config, gradient)
    assert float(value) == pytest.approx(want_value, rel=1e-5)
    for name, expected in want.items():
        assert np.abs(expected).max() > 1e-4, "a vacuous comparison"
        np.testing.assert_allclose(got[name], expected, atol=1e-5, rtol=1e-3, err_msg=name)
