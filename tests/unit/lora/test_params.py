"""Pure functions on adapters: create, mask, multiply out, merge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import lora
from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import LoRA
from tests._helpers import small_model
from tests._helpers.small_model import INPUT, PARAMS, TEMPLATE, R, adapted, plain, random_adapter

# Two ways to the same sum are compared to the last digit: programs as users compile them.

PARTLY = small_model.spec(layers=[0, 2])


def size(x) -> float:
    return float(np.max(np.abs(x)))


# --------------------------------------------------------------------------------------- beginning


@pytest.mark.parametrize("method", ["kaiming", "gaussian"])
def test_fresh_adapter_does_not_change_outputs(method: str):
    """``b = 0``: outputs are the base's bit for bit, whatever the gain."""
    adapter = lora.init(TEMPLATE, jax.random.key(3), method=method)
    assert not any(np.any(pair.b) for pair in adapter.values())
    out = adapted(PARAMS, adapter, lora.uniform_gain(TEMPLATE), INPUT)
    np.testing.assert_array_equal(out, plain(PARAMS, INPUT))


def test_fresh_factors_follow_kaiming_or_normal_distributions():
    """PEFT's Kaiming: uniform in ±1/sqrt(i); or normal with deviation 1/R; every site its own."""
    wide = {n: {"kernel": jax.ShapeDtypeStruct((400, 300), jnp.float32)} for n in "xy"}
    spec = lora.make_spec(wide, targets=".", rank=50)
    uniform = lora.init(spec, jax.random.key(0))
    normal = lora.init(spec, jax.random.key(0), method="gaussian")
    a = np.asarray(uniform["x"].a)
    assert 0.999 / 20 < np.max(a) < 1 / 20 and -1 / 20 <= np.min(a) < -0.999 / 20
    assert abs(np.std(a) * 20 * 3**0.5 - 1) < 0.02
    b = np.asarray(normal["x"].a)
    assert abs(np.std(b) * 50 - 1) < 0.02 and abs(np.mean(b) * 50) < 0.03
    assert np.max(np.abs(b)) * 50 > 3
    for made in (uniform, normal):
        assert abs(np.corrcoef(made["x"].a.ravel(), made["y"].a.ravel())[0, 1]) < 0.03
    again = lora.init(spec, jax.random.key(0))
    np.testing.assert_array_equal(again["x"].a, a)
    assert np.any(lora.init(spec, jax.random.key(1))["x"].a != a)


def test_fresh_layers_differ_and_left_out_layers_are_zero():
    adapter = lora.init(PARTLY, jax.random.key(0))
    a = np.asarray(adapter["layers/query"].a)
    assert not np.any(a[1])
    assert np.all(a[[0, 2]] != 0) and np.all(a[0] != a[2])
    assert np.all(np.asarray(adapter["head"].a) != 0)


# -------------------------------------------------------------------------------------------- masks


def test_prefix_mask_selects_the_first_components():
    mask = lora.prefix_mask(jnp.array([0, 2, 4]), R)
    np.testing.assert_array_equal(mask, [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(lora.prefix_mask(jnp.array(3), R), [1, 1, 1, 0])


def test_spread_covers_every_target_and_skips_left_out_layers():
    everywhere = lora.spread(PARTLY, jnp.array([True, False, True, False]))
    assert {p: m.shape for p, m in everywhere.items()} == {
        "head": (4,),
        "layers/query": (3, 4),
        "layers/value": (3, 4),
    }
    np.testing.assert_array_equal(everywhere["head"], [1, 0, 1, 0])
    np.testing.assert_array_equal(
        everywhere["layers/query"], [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0]]
    )
    batched = lora.spread(PARTLY, jnp.ones((5, 2, R)) * 3.0)
    assert batched["layers/query"].shape == (5, 2, 3, R) and batched["head"].shape == (5, 2, R)
    assert batched["head"].dtype == jnp.float32
    np.testing.assert_array_equal(np.unique(batched["layers/query"][..., 1, :]), [0])
    one = {"head": jnp.ones(R), "layers/query": jnp.ones((3, R)), "layers/value": jnp.zeros((3, R))}
    given = lora.spread(PARTLY, one)
    np.testing.assert_array_equal(given["layers/query"][:, 0], [1, 0, 1])
    assert not np.any(given["layers/value"])


def test_factor_masks_switch_components_or_whole_factors():
    mask = {"head": jnp.array([True, False, True, False])}
    both = lora.factor_mask(mask)["head"]
    assert both.a.shape == (1, R) and both.b.shape == (R, 1)
    ones = {"head": LoRA(jnp.ones((12, R)), jnp.ones((R, 7)))}
    kept = lora.keep(ones, lora.factor_mask(mask))["head"]
    np.testing.assert_array_equal(kept.a, np.tile([1, 0, 1, 0], (12, 1)))
    np.testing.assert_array_equal(kept.b, np.tile([[1], [0], [1], [0]], 7))
    frozen = jax.jit(lambda phase: lora.factor_mask(mask, a=phase, b=~phase))(True)["head"]
    np.testing.assert_array_equal(frozen.a[0], [1, 0, 1, 0])
    assert not np.any(frozen.b)


def test_keep_zeroes_masked_values_even_if_not_finite():
    broken = {"x": LoRA(jnp.full((2, 2), jnp.nan), jnp.full((2, 2), jnp.inf))}
    out = lora.keep(broken, lora.factor_mask({"x": jnp.array([False, True])}))["x"]
    assert not np.any(out.a[:, 0]) and not np.any(out.b[0])
    assert np.all(np.isnan(out.a[:, 1]))


def test_rank_padding_keeps_the_outputs():
    """A rank-2 adapter stored at rank 2, or at rank 4 with zeros, or with junk of gain 0."""
    two = small_model.spec(rank=2)
    small = random_adapter(two)
    pad = lambda x, axis, junk: jnp.pad(  # noqa: E731
        x, [(0, 2 * (n == x.ndim + axis)) for n in range(x.ndim)], constant_values=junk
    )
    want = adapted(PARAMS, small, lora.uniform_gain(two), INPUT)
    scale = two.server_scale
    for junk in (0.0, 1e3):
        stored = {p: LoRA(pad(x.a, -1, junk), pad(x.b, -2, junk)) for p, x in small.items()}
        gain = lora.spread(TEMPLATE, jnp.array([scale, scale, 0.0, 0.0]))
        np.testing.assert_allclose(adapted(PARAMS, stored, gain, INPUT), want, rtol=1e-6, atol=1e-6)


# ----------------------------------------------------------------------------------------- products


def test_delta_equals_the_scaled_product():
    adapter = random_adapter(TEMPLATE, 1, 2)
    rng = np.random.default_rng(0)
    gain = {
        p: jnp.asarray(rng.normal(size=(*x.a.shape[:-2], R)), jnp.float32)
        for p, x in adapter.items()
    }
    out = lora.deltas(adapter, gain)
    for path, (a, b) in adapter.items():
        want = np.einsum(
            "...ir,...r,...ro->...io", *(np.asarray(x, np.float64) for x in (a, gain[path], b))
        )
        np.testing.assert_allclose(out[path], want, rtol=1e-5, atol=1e-6)
        assert out[path].dtype == jnp.float32


def test_parallel_rank_one_modules_equal_one_adapter_of_that_rank():
    """``sum_j a_j b_j = a b``, in the kernel's change and in what a layer adds to its output."""
    a, b = random_adapter(TEMPLATE)["head"]
    gain = jnp.array([0.5, 1.0, 2.0, 3.0])
    x = jax.random.normal(jax.random.key(0), (9, 12))
    modules = [
        lora.low_rank_term(x, a[:, j : j + 1], b[j : j + 1], gain[j : j + 1]) for j in range(R)
    ]
    whole = lora.low_rank_term(x, a, b, gain)
    np.testing.assert_allclose(sum(modules), whole, rtol=1e-5, atol=1e-6)
    deltas = [lora.delta(LoRA(a[:, j : j + 1], b[j : j + 1]), gain[j : j + 1]) for j in range(R)]
    np.testing.assert_allclose(sum(deltas), lora.delta(LoRA(a, b), gain), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole, x @ sum(deltas), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------ merging


@pytest.mark.parametrize("where", [TEMPLATE, PARTLY], ids=["all layers", "two of three"])
def test_adapted_and_merged_models_agree_and_merging_can_be_undone(where: lora.LoraSpec):
    adapter = random_adapter(where, 2)
    gain = lora.uniform_gain(where)
    merged = lora.merge(PARAMS, adapter, gain)
    want = adapted(PARAMS, adapter, gain, INPUT)
    assert size(want - plain(PARAMS, INPUT)) > 0.1
    assert size(plain(merged, INPUT) - want) < 2e-6 * max(1, size(want))
    back = lora.merge(merged, adapter, jax.tree.map(jnp.negative, gain))
    for old, new in zip(jax.tree.leaves(PARAMS), jax.tree.leaves(back), strict=True):
        assert size(old - new) <= 2e-7 * max(1, size(old))
    if where is PARTLY:
        kernels = merged["layers"]["query"]["kernel"], PARAMS["layers"]["query"]["kernel"]
        np.testing.assert_array_equal(kernels[0][1], kernels[1][1])


def test_merging_copies_only_adapted_kernels():
    before = jax.device_get(PARAMS)
    merged = lora.merge(PARAMS, random_adapter(TEMPLATE), lora.uniform_gain(TEMPLATE))
    changed = {"layers/query/kernel", "layers/value/kernel", "head/kernel"}
    for path, leaf in trees.flat(merged).items():
        same = leaf is trees.flat(PARAMS)[path]
        assert same == (path not in changed), path
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(PARAMS), strict=True):
        np.testing.assert_array_equal(x, y)


def test_merging_in_bfloat16_keeps_the_type_and_cannot_be_undone_exactly():
    """Why a method that folds modules into the base must not subtract them again."""
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    adapter, gain = random_adapter(TEMPLATE), lora.uniform_gain(TEMPLATE)
    merged = lora.merge(low, adapter, gain)
    assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}
    # Added in float32 and rounded once.
    kernel = low["head"]["kernel"].astype(jnp.float32)
    want = (kernel + lora.delta(adapter["head"], gain["head"])).astype(jnp.bfloat16)
    np.testing.assert_array_equal(merged["head"]["kernel"], want)
    back = lora.merge(merged, adapter, jax.tree.map(jnp.negative, gain))
    assert np.any(back["head"]["kernel"] != low["head"]["kernel"])


def test_adapter_of_another_model_is_refused():
    """All problems in one sentence."""
    adapter = random_adapter(TEMPLATE)
    gain = lora.uniform_gain(TEMPLATE)
    other = {
        "head": {"kernel": jnp.zeros((12, 6))},
        "layers": {"query": {"kernel": jnp.zeros((2, 12, 10))}},
    }
    with pytest.raises(InputError) as caught:
        lora.merge(other, adapter, gain)
    assert str(caught.value) == (
        "The adapter does not fit the base: head: kernel (12, 6), adapter makes (12, 7); "
        "layers/query: kernel (2, 12, 10), adapter makes (3, 12, 10); "
        "layers/value has no kernel in the base."
    )
