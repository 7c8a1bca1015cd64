"""Pytree arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lora.core import trees
from fedjax_lora.core.types import LoRA

names = st.text(st.characters(blacklist_characters="/", blacklist_categories=["Cs"]), max_size=4)
params = st.recursive(
    st.dictionaries(names, st.integers(), min_size=1, max_size=3),
    lambda inner: st.dictionaries(names, inner | st.integers(), min_size=1, max_size=3),
    max_leaves=8,
)


@given(params)
def test_nested_inverts_flat(tree: dict):
    leaves = trees.flat(tree)
    assert trees.nested(leaves) == tree
    assert sorted(leaves.values()) == sorted(jax.tree.leaves(tree))


def test_flat_does_not_open_leaves_and_drops_empty_branches():
    pair = LoRA(1, 2)
    assert trees.flat({"x": {"y": pair}, "z": {}}) == {"x/y": pair}


def test_replace_shares_all_other_leaves():
    tree = {"x": {"kernel": np.zeros(2), "bias": np.ones(1)}, "y": np.ones(3)}
    new = np.full(2, 7.0)
    out = trees.replace(tree, {"x/kernel": new})
    assert out["x"]["kernel"] is new
    assert out["x"]["bias"] is tree["x"]["bias"] and out["y"] is tree["y"]
    assert not np.any(tree["x"]["kernel"])


def test_expand_appends_axes():
    x = jnp.arange(3.0)
    assert trees.expand(x, jnp.zeros((3, 4, 5))).shape == (3, 1, 1)
    assert trees.expand(x, x).shape == (3,)


def test_safe_divide_gives_the_default_where_the_divisor_is_zero():
    out = trees.safe_divide(jnp.array([6.0, 0.0, jnp.nan]), jnp.array([3.0, 0.0, 0.0]), jnp.ones(3))
    np.testing.assert_array_equal(out, [2.0, 1.0, 1.0])


def test_safe_divide_has_finite_gradients():
    """The unused branch must not leak NaN, as a bare ``where`` around a division does."""
    grad = jax.grad(lambda d: jnp.sum(trees.safe_divide(jnp.ones(2), d, jnp.zeros(2))))
    np.testing.assert_allclose(grad(jnp.array([0.0, 2.0])), [0.0, -0.25])


@given(
    weight=st.lists(st.sampled_from([0.0, 0.5, 3.0, 1000.0]), min_size=4, max_size=4),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
@settings(max_examples=30, deadline=None)
def test_weighted_mean_agrees_with_numpy(weight: list, scale: float):
    rng = np.random.default_rng(0)
    stack = {"a": rng.normal(size=(4, 2, 3)) * scale, "b": rng.normal(size=4) * scale}
    stack = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), stack)
    old = jax.tree.map(lambda x: jnp.full(x.shape[1:], 5.0), stack)
    out = trees.weighted_mean(stack, jnp.asarray(weight, jnp.float32), old)
    for name, x in stack.items():
        if any(weight):
            want = np.average(np.asarray(x, np.float64), axis=0, weights=weight)
            np.testing.assert_allclose(out[name], want, rtol=1e-6, atol=1e-6 * scale)
        else:
            np.testing.assert_array_equal(out[name], old[name])
        assert out[name].shape == x.shape[1:]


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_weighted_mean_ignores_broken_clients_of_weight_zero(broken: float):
    stack = {"x": jnp.array([[1.0, 2.0], [broken, broken], [3.0, 6.0]])}
    out = trees.weighted_mean(stack, jnp.array([1.0, 0.0, 1.0]), {"x": jnp.zeros(2)})
    np.testing.assert_array_equal(out["x"], [2.0, 4.0])
    none = trees.weighted_mean(stack, jnp.zeros(3), {"x": jnp.full(2, 9.0)})
    np.testing.assert_array_equal(none["x"], [9.0, 9.0])


def test_where_selects_whole_clients():
    new, old = {"x": jnp.ones((3, 2))}, {"x": jnp.zeros((3, 2))}
    out = trees.where(jnp.array([True, False, True]), new, old)
    np.testing.assert_array_equal(out["x"], [[1, 1], [0, 0], [1, 1]])


def test_square_norm_and_byte_size_of_trees():
    tree = {"x": jnp.array([3.0, 4.0]), "y": LoRA(jnp.array([[2.0]]), jnp.zeros((1, 2)))}
    assert float(trees.square_norm(tree)) == 29.0
    assert float(trees.square_norm({})) == 0.0
    assert trees.size_bytes(tree) == 4 * (2 + 1 + 2)
    abstract = {"x": jax.ShapeDtypeStruct((3, 5), jnp.bfloat16), "y": jnp.zeros(3, jnp.int8)}
    assert trees.size_bytes(abstract) == 33
