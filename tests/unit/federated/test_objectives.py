"""Objectives against NumPy."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import lora
from fedjax_lora.core.types import ClientParams
from fedjax_lora.federated import text_classification
from fedjax_lora.federated.objectives import TokenBatch, take_tokens
from tests._helpers import problems

KEY = jax.random.key(0)


class Linear(nn.Module):
    """Logits are a row of a table picked by the first word; dropout where it is asked for."""

    rate: float = 0.5
    outputs: int = 3

    @nn.compact
    def __call__(self, ids: Any, mask: Any, types: Any, *, deterministic: bool) -> jax.Array:
        x = jax.nn.one_hot(ids[:, 0], 5)
        x = nn.Dropout(self.rate, deterministic=deterministic)(x)
        return nn.Dense(self.outputs, name="head")(x)


KERNEL = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
HEAD = {"kernel": jnp.asarray(KERNEL), "bias": jnp.zeros(3)}
WRONG = {"head": {"kernel": jnp.full((5, 3), jnp.nan), "bias": jnp.zeros(3)}}


def batch_of(words: list[int], label: Any) -> TokenBatch:
    ids = jnp.array(words)[:, None]
    return TokenBatch(ids, ids >= 0, ids * 0, jnp.asarray(label))


BATCH = batch_of([4, 0, 1, 2], np.array([0, 2, 1, 1]))


def loss_of(objective: Any, batch: TokenBatch, valid: list[bool], head: Any = HEAD, key=KEY) -> Any:
    @jax.jit
    def loss(head: Any, key: Any) -> Any:
        return objective.loss(WRONG, ClientParams({}, head), {}, None, batch, jnp.array(valid), key)

    return loss(head, key)


def test_padding_is_trimmed_and_masked():
    data = problems.texts()
    batch = take_tokens(data, jnp.array([7, 3, 7]), 8)
    for row, k in enumerate((7, 3, 7)):
        length = int(data.length[k])
        np.testing.assert_array_equal(batch.ids[row], data.ids[k, :8])
        np.testing.assert_array_equal(batch.mask[row], np.arange(8) < length)
        np.testing.assert_array_equal(batch.types[row], data.types[k, :8])
        assert batch.label[row] == data.label[k]
    assert batch.mask.dtype == bool


@pytest.mark.parametrize("valid", [[True] * 4, [True, False, True, False], [False] * 4])
def test_cross_entropy_is_the_mean_over_valid_rows(valid):
    logits = KERNEL[[4, 0, 1, 2]].astype(np.float64)
    each = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(4), [0, 2, 1, 1]]
    want = each[valid].mean() if any(valid) else 0.0
    assert loss_of(text_classification(Linear(), (1,)), BATCH, valid) == pytest.approx(
        want, rel=1e-6
    )


def test_regression_is_the_mean_squared_error():
    objective = text_classification(Linear(outputs=1), (1,), regression=True)
    head = {"kernel": jnp.asarray(KERNEL[:, :1]), "bias": jnp.ones(1)}
    label = np.array([0.5, -1.0, 2.0, 100.0], np.float32)
    got = loss_of(objective, batch_of([4, 0, 1, 2], label), [True, True, True, False], head)
    want = np.mean((KERNEL[[4, 0, 1], 0] + 1 - label[:3]) ** 2)
    assert got == pytest.approx(want, rel=1e-6)


def test_invalid_rows_have_no_gradient():
    objective = text_classification(Linear(), (1,))
    valid = [True, False, False, True]
    grad = jax.grad(lambda head: loss_of(objective, BATCH, valid, head))(HEAD)
    touched = np.abs(np.asarray(grad["kernel"])).max(axis=1) > 0
    assert touched.tolist() == [False, False, True, False, True]  # words 4 and 2


def test_trained_head_replaces_that_of_the_base():
    """The base of these tests has a head of NaN, which must not be read."""
    assert np.isfinite(loss_of(text_classification(Linear(), (1,)), BATCH, [True] * 4))


def test_model_dropout_is_off_by_default():
    still = text_classification(Linear(), (1,))
    shaken = text_classification(Linear(), (1,), dropout=True)
    losses = lambda objective: [  # noqa: E731
        float(loss_of(objective, BATCH, [True] * 4, key=jax.random.key(k))) for k in range(3)
    ]
    assert len(set(losses(still))) == 1
    assert len(set(losses(shaken))) == 3


def test_predictions_use_no_dropout():
    objective = text_classification(Linear(), (1,), dropout=True, lora_dropout=0.5)
    out = objective.outputs(WRONG, ClientParams({}, HEAD), {}, BATCH)
    np.testing.assert_allclose(out, KERNEL[[4, 0, 1, 2]], rtol=1e-6)


def test_predictions_equal_those_of_the_merged_model():
    made = problems.bag()
    adapter = problems.random_adapter(made.spec, 0)
    gain = lora.uniform_gain(made.spec, 2)
    objective = text_classification(made.module, (problems.WIDTH,))
    batch = objective.take(made.data, jnp.arange(5), problems.WIDTH)
    got = jax.jit(objective.outputs)(made.base, ClientParams(adapter, made.head), gain, batch)
    merged = lora.merge({**made.base, "head": made.head}, adapter, gain)
    want = jax.jit(made.module.apply)({"params": merged}, batch.ids, batch.mask, batch.types)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert got.dtype == jnp.float32
