"""A batch computed without its padding: the same texts, the same gradients, fewer products."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import models
from fedjax_lora.models.unpadding import layout

LENGTH = np.array([5, 7, 1, 3])
MASK = np.arange(7)[None] < LENGTH[:, None]
IDS = np.where(MASK, np.arange(3, 31).reshape(4, 7), 1).astype(np.int32)


def places(mask, rows):
    """By NumPy: where real tokens are, then one past the end."""
    real = np.flatnonzero(mask)
    return np.pad(real, (0, rows - len(real)), constant_values=mask.size).astype(np.int32)


@pytest.mark.parametrize("rows", [16, 23])
def test_unpadding_keeps_the_real_tokens_and_is_inverted(rows):
    x = np.random.default_rng(0).normal(size=(4, 7, 3)).astype(np.float32)
    at = layout(jnp.asarray(MASK), jnp.asarray(places(MASK, rows)))
    got = at.states(jnp.asarray(x))
    np.testing.assert_array_equal(got[:16], x[MASK])
    assert got.shape == (rows, 3) and not got[16:].any()
    np.testing.assert_array_equal(at.texts(got), np.where(MASK[..., None], x, 0))


@pytest.mark.parametrize("rows", [16, 23])
def test_unpadding_gradients_equal_those_of_indexing(rows):
    rng = np.random.default_rng(1)
    x, g = rng.normal(size=(2, 4, 7, 3)).astype(np.float32)
    at = layout(jnp.asarray(MASK), jnp.asarray(places(MASK, rows)))
    down, up = rng.normal(size=(2, rows, 3)).astype(np.float32)
    (got,) = jax.vjp(at.states, jnp.asarray(x))[1](jnp.asarray(down))
    want = np.zeros_like(x)
    want[MASK] = down[:16]
    np.testing.assert_array_equal(got, want)
    (got,) = jax.vjp(at.texts, jnp.asarray(up))[1](jnp.asarray(g))
    np.testing.assert_array_equal(got[:16], g[MASK])
    assert not got[16:].any()


def configured(family, **changes):
    tiny = models.tiny(family=family, pooling=changes.pop("pooling", "family"))
    config = dataclasses.replace(tiny.config, **changes)
    return dataclasses.replace(tiny, config=config, module=models.SequenceClassifier(config))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("bert", {"scan_unroll": 1}),
        pytest.param(
            "roberta",
            {"remat": True, "pooling": "mean", "scan_unroll": 1},
            marks=pytest.mark.slow,
        ),
        pytest.param("bert", {}, marks=pytest.mark.slow),
        pytest.param("bert", {"pooling": "mean", "scan_unroll": 1}, marks=pytest.mark.slow),
        pytest.param("deberta-v2", {}, marks=pytest.mark.slow),
        pytest.param("distilbert", {"scan_unroll": 1}, marks=pytest.mark.slow),
        pytest.param("albert", {"pooling": "mean", "scan_unroll": 1}, marks=pytest.mark.slow),
    ],
)
def test_unpadded_model_has_the_same_values_and_gradients(family, changes):
    model = configured(family, **changes)
    ids = np.where(MASK, IDS, model.config.pad_token_id)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def value(params, at):
        z = model.module.apply({"params": params}, ids, MASK, at=at)
        return jnp.sum(z**2), z

    run = jax.jit(value)
    (_, want), wanted = run(model.params, None)
    (_, got), gradient = run(model.params, places(MASK, 23))
    np.testing.assert_allclose(got, want, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), gradient, wanted)


def test_projections_are_computed_for_real_tokens_only():
    model = configured("bert", scan_unroll=99)
    config = model.config

    def flops(at):
        run = lambda p: model.module.apply({"params": p}, IDS, MASK, at=at)  # noqa: E731
        return jax.jit(run).lower(model.params).cost_analysis()["flops"]

    saved = flops(None) - flops(places(MASK, 16))
    h, m = config.hidden, config.intermediate
    # Query, key, value, output and the two of the feed-forward; of the last layer key and value.
    each = 2 * ((config.layers - 1) * (4 * h * h + 2 * h * m) + 2 * h * h)
    products = (IDS.size - 16) * each
    assert products < saved < 1.5 * products, "what is not a product is little"
