"""Sampling rules against `transformers`' own, and what is drawn against the probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora.core.errors import InputError
from fedjax_lora.evaluation.generation import GREEDY, Sampling, filter_logits, sample_token

RULES = [
    Sampling(temperature=0.7),
    Sampling(top_k=5),
    Sampling(top_k=1),
    Sampling(top_k=99),
    Sampling(top_p=0.6),
    Sampling(top_p=0.01),
    Sampling(temperature=1.8, top_k=12, top_p=0.8),
]


def scores(rows=6, vocabulary=30):
    return np.random.default_rng(0).normal(0, 3, (rows, vocabulary)).astype(np.float32)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_filtered_logits_equal_transformers(rule):
    import torch
    from transformers import (
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    want = torch.tensor(scores())
    steps = [TemperatureLogitsWarper(rule.temperature), TopPLogitsWarper(rule.top_p)]
    if rule.top_k is not None:
        steps.insert(1, TopKLogitsWarper(rule.top_k))
    for step in steps:
        want = step(None, want)
    got = np.asarray(filter_logits(jnp.asarray(scores()), rule))
    np.testing.assert_array_equal(np.isinf(got), np.isinf(want.numpy()))
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-6)


def test_samples_follow_the_token_probabilities():
    rule = Sampling(temperature=0.5, top_k=4)
    row = jnp.asarray(scores(1, 8) / 3)
    draws = 4000
    keys = jax.random.split(jax.random.key(1), draws)
    drawn = sample_token(jnp.broadcast_to(row, (draws, 8)), rule, keys)
    share = np.bincount(drawn, minlength=8) / draws
    want = np.asarray(jax.nn.softmax(filter_logits(row, rule)))[0]
    assert (want == 0).sum() == 4
    np.testing.assert_allclose(share, want, atol=4 * (0.25 / draws) ** 0.5)  # 4 deviations


def test_temperature_zero_is_greedy():
    keys = jax.random.split(jax.random.key(0), 6)
    np.testing.assert_array_equal(
        sample_token(jnp.asarray(scores()), GREEDY, keys), scores().argmax(-1)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1 but must be at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0 but must be at least 1"),
        ({"top_p": 0.0}, "top_p is 0 but must be above 0 and at most 1"),
        ({"top_p": 1.5, "top_k": -1}, r"top_k is -1 .*; top_p is 1\.5"),
    ],
)
def test_invalid_sampling_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Sampling(**options)
