"""Every update against NumPy in float64, client by client."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fedjax_lora import InputError, methods
from fedjax_lora.core.types import ClientParams
from fedjax_lora.federated import transforms
from fedjax_lora.federated.transforms.registry import TRANSFORMS
from tests._helpers.client_messages import (
    PRESENT,
    RANK,
    TEMPLATE,
    change,
    cohort,
    matrices,
    own,
    send,
    spec,
)

SPECS = [
    "clip(norm=20.0)",
    "gaussian_noise(multiplier=0.5, norm=20.0)",
    "central_noise(multiplier=0.5, norm=20.0)",
    "int8",
    "bfloat16",
    "reject_outliers(factor=1.2)",
    "norm_bound(quantile=0.4)",
    "reject_dissimilar(least=0.1)",
    "krum(attackers=0.2)",
    "foolsgold(least=0.5)",
    "geometric_median",
    "median",
    "trimmed_mean(share=0.3)",
]
every_update = pytest.mark.parametrize("text", SPECS)


def test_every_registered_transform_is_tested():
    assert [text.split("(")[0] for text in SPECS] == list(TRANSFORMS)


def lengths(sent):
    return np.array([np.linalg.norm(change(sent, sent.trained, k)) for k in range(PRESENT)])


# ------------------------------------------------------------------------------------ what all keep


@every_update
def test_frozen_parameters_are_bitwise_unchanged(text):
    sent = cohort()
    got, _ = send(sent, text)
    for k in range(PRESENT):
        want = own(sent.trained, sent.trainable, k, frozen=True)
        assert len(want) > 0
        np.testing.assert_array_equal(own(got, sent.trainable, k, frozen=True), want)


@every_update
def test_absent_clients_have_no_influence(text):
    """Absent clients hold NaN in one call and other values in the next."""
    sent = cohort()
    got, weight = send(sent, text)
    other = jax.tree.map(lambda x: x.at[PRESENT:].set(1e3), sent.trained)
    again, same = send(sent._replace(trained=other), text)
    for one, two in zip(*map(jax.tree.leaves, (got, again)), strict=True):
        assert np.all(np.isfinite(one[:PRESENT]))
        np.testing.assert_array_equal(one[:PRESENT], two[:PRESENT])
    np.testing.assert_array_equal(weight, same)
    assert np.all(weight[PRESENT:] == 0)


@every_update
def test_transform_does_not_depend_on_cohort_position(text):
    """Random draws depend on the client alone; sums over the cohort may differ by rounding."""
    sent, order = cohort(), np.array([3, 5, 0, 4, 2, 1])
    got, weight = send(sent, text)
    moved, shuffled = send(jax.tree.map(lambda x: x[order], sent), text)
    np.testing.assert_allclose(shuffled, weight[order], rtol=1e-6)
    for one, two in zip(*map(jax.tree.leaves, (got, moved)), strict=True):
        np.testing.assert_allclose(two, one[order], rtol=1e-6, atol=1e-6)


# --------------------------------------------------------------------------------------- at clients


def test_clip_bounds_the_norm_of_each_update():
    sent = cohort()
    size = lengths(sent)
    norm = float(np.sort(size)[1:3].mean())
    got, weight = send(sent, f"clip(norm={norm})")
    for k in range(PRESENT):
        want = change(sent, sent.trained, k) * min(1, norm / size[k])
        np.testing.assert_allclose(change(sent, got, k), want, rtol=1e-5, atol=1e-5)
        if size[k] < norm:
            np.testing.assert_array_equal(
                own(got, sent.trainable, k), own(sent.trained, sent.trainable, k)
            )
    assert 0 < np.sum(size < norm) < PRESENT
    np.testing.assert_array_equal(weight, sent.weight)


def noise_of(sent, multiplier, norm, key=0):
    """The noise in units of its deviation, per client, after the clipping by hand."""
    got, _ = send(sent, f"gaussian_noise(multiplier={multiplier}, norm={norm})", key=key)
    size = lengths(sent)
    return [
        (change(sent, got, k) - change(sent, sent.trained, k) * min(1, norm / size[k]))
        / (multiplier * norm)
        for k in range(PRESENT)
    ]


def test_gaussian_noise_has_its_moments_and_no_correlation():
    """Moments of a normal distribution in every client, without correlation between entries."""
    noise = [noise_of(cohort(), 0.5, 20.0, key) for key in range(40)]
    for k in range(PRESENT):
        z = np.array([draws[k] for draws in noise])  # [keys, numbers]
        n = z.size
        assert abs(z.mean()) < 5 / n**0.5
        assert abs((z**2).mean() - 1) < 5 * (2 / n) ** 0.5
        assert abs((z**4).mean() - 3) < 5 * (96 / n) ** 0.5
        each = z.shape[1]
        overlap = z.T @ z / len(z) - np.eye(each)  # of any two numbers
        assert np.abs(overlap[~np.eye(each, dtype=bool)]).max() < 6 / len(z) ** 0.5
    # Between two clients of one rank, and between two keys.
    a, b = (np.ravel([draws[k] for draws in noise]) for k in (2, 3))
    assert abs(np.mean(a * b)) < 5 / len(a) ** 0.5
    assert abs(np.mean(noise[0][2] * noise[1][2])) < 5 / len(noise[0][2]) ** 0.5


# -------------------------------------------------------------------------------------- on the wire


def test_int8_rounds_to_neighbouring_levels():
    sent = cohort()
    got, _ = send(sent, "int8")
    checked = 0
    for x0, x, y in zip(*map(matrices, (sent.start, sent.trained, got)), strict=True):
        for k in range(PRESENT):
            d, r = x[k] - x0[k], y[k] - x0[k]
            unit = np.abs(d).max() / 127
            levels = r / unit
            np.testing.assert_allclose(levels, np.round(levels), atol=2e-3)
            assert np.abs(levels).max() < 127.01
            assert np.abs(r - d).max() < unit * 1.001
            checked += np.any(r != d)
    assert checked == PRESENT * (2 * 2 + 2 + 2)


def test_int8_is_unbiased():
    sent, count = cohort(), 400
    totals = [0.0] * PRESENT
    for key in range(count):
        got, _ = send(sent, "int8", key=key)
        totals = [t + change(sent, got, k) for k, t in enumerate(totals)]
    units = matrices(jax.tree.map(lambda x, y: x - y, sent.trained, sent.start))
    for k in range(PRESENT):
        unit = max(np.abs(d[k]).max() for d in units) / 127
        error = np.abs(totals[k] / count - change(sent, sent.trained, k))
        assert error.max() < 5 * 0.5 * unit / count**0.5  # a coin's deviation is at most a half


def test_int8_keeps_a_zero_update_exactly():
    sent = cohort()
    got, _ = send(sent._replace(trained=sent.start), "int8")
    for one, two in zip(*map(jax.tree.leaves, (got, sent.start)), strict=True):
        np.testing.assert_array_equal(one, two)


def test_bfloat16_rounds_updates_to_nearest():
    """Clients start at zero, so that each number is rounded once."""
    sent = cohort()
    zero = jax.tree.map(np.zeros_like, sent.start)
    masked = jax.tree.map(lambda x, m: np.where(m, x, 0), sent.trained, sent.trainable)
    got, _ = send(sent._replace(start=zero, trained=masked), "bfloat16")
    for one, x in zip(*map(jax.tree.leaves, (got, masked)), strict=True):
        want = np.asarray(x)[:PRESENT].astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(one[:PRESENT], want)
        assert np.any(want != np.asarray(x)[:PRESENT])


@pytest.mark.parametrize(
    ("text", "bytes_of"),
    [
        (None, lambda numbers, matrices: 4 * numbers),
        ("int8", lambda numbers, matrices: numbers + 4 * matrices),
        ("bfloat16", lambda numbers, matrices: 2 * numbers),
    ],
)
def test_traffic_counts_numbers_scales_and_unrounded_indices(text, bytes_of):
    """Numbers and matrices counted from the masks; indices are never rounded."""
    sent = cohort()
    updates = () if text is None else (spec("clip(norm=1.0)"), spec(text))
    head = jax.tree.map(lambda x: x[0], sent.start.head)
    extra = {
        "masked_mean": (0, 0), "fed_plora": (4, 0), "fed_plora(indices='layer')": (4 * 3, 0),
        "fedrora": (0, 1),
    }  # fmt: skip
    for method, (index_bytes, vectors) in extra.items():
        made = methods.make(method, TEMPLATE)
        traffic = made.traffic(methods.ServerState(None, {}), RANK, 0)
        got = transforms.uplink_bytes(updates, traffic, TEMPLATE, head)
        for k in range(len(RANK)):
            numbers = len(own(sent.start, sent.trainable, k)) + vectors * 3 * RANK[k]
            assert got[k] == bytes_of(numbers, (2 + vectors) * 3 + 2) + RANK[k] * index_bytes
        alone = transforms.uplink_bytes(updates, traffic, TEMPLATE, {})
        np.testing.assert_array_equal(got - alone, bytes_of(28, 2))
    assert alone.dtype == np.int64


# ------------------------------------------------------------------------------------ at the server


@pytest.mark.parametrize("factor", [1.0, 1.2, 1.8, 50.0])
def test_reject_outliers_removes_the_weight_of_large_updates(factor):
    sent = cohort()
    size = lengths(sent)
    got, weight = send(sent, f"reject_outliers(factor={factor})")
    keep = size <= factor * np.median(size)
    np.testing.assert_array_equal(weight[:PRESENT], np.where(keep, sent.weight[:PRESENT], 0))
    assert np.all(weight[PRESENT:] == 0)
    for one, two in zip(*map(jax.tree.leaves, (got, sent.trained)), strict=True):
        np.testing.assert_array_equal(one, two)


def test_test_factors_cover_rejection_and_acceptance():
    size = lengths(cohort())
    counts = [int(np.sum(size > f * np.median(size))) for f in (1.0, 1.2, 1.8, 50.0)]
    assert counts[0] == 2 and counts[1] > 0 and counts[-1] == 0


def test_norm_bound_shortens_to_a_quantile_of_the_norms():
    sent = cohort()
    size = lengths(sent)
    got, weight = send(sent, "norm_bound(quantile=0.4)")
    bound = np.quantile(size, 0.4)
    for k in range(PRESENT):
        want = change(sent, sent.trained, k) * min(1, bound / size[k])
        np.testing.assert_allclose(change(sent, got, k), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(weight, sent.weight)


def test_parameters_with_too_few_owners_keep_the_servers_value():
    """Of two owners a median leaves out nothing; with three needed they keep the server's value."""
    sent = cohort()
    plain, _ = send(sent, "median")
    got, _ = send(sent, "median(least_owners=3)")
    masks = jax.tree.map(lambda x, m: jnp.broadcast_to(m, x.shape), sent.start, sent.trainable)
    seen = set()
    for x0, mask, y, z in zip(*map(jax.tree.leaves, (sent.start, masks, plain, got)), strict=True):
        own = np.asarray(mask[:PRESENT])
        count = own.sum(axis=0)
        for few, want in ((count < 3, x0), (count >= 3, y)):
            at = own & few[None]
            np.testing.assert_array_equal(
                np.asarray(z[:PRESENT])[at], np.asarray(want[:PRESENT])[at]
            )
        seen |= set(count.ravel().tolist())
    assert {2, 4} <= seen
    assert spec("median").needs_owners == 3 and spec("trimmed_mean(share=0.3)").needs_owners == 4


def trimmed(x, share):
    x, cut = np.sort(x), int(np.floor(share * len(x) + 1e-9))
    return x[cut : len(x) - cut].mean()


@pytest.mark.parametrize(
    ("text", "statistic"),
    [
        ("median", np.median),
        ("trimmed_mean(share=0.0)", np.mean),
        ("trimmed_mean(share=0.2)", lambda x: trimmed(x, 0.2)),
        ("trimmed_mean(share=0.4)", lambda x: trimmed(x, 0.4)),
    ],
)
def test_robust_statistics_are_over_clients_that_trained_the_parameter(text, statistic):
    sent = cohort()
    got, weight = send(sent, text)
    np.testing.assert_array_equal(weight, sent.weight)
    owners = set()
    masks = jax.tree.map(lambda x, m: jnp.broadcast_to(m, x.shape), sent.start, sent.trainable)
    leaves = (jax.device_get(jax.tree.leaves(tree)) for tree in (sent.trained, masks, got))
    for x, mask, y in zip(*leaves, strict=True):
        for place in np.ndindex(x.shape[1:]):
            chosen = (np.flatnonzero(mask[(slice(PRESENT), *place)]), *place)
            values = x[chosen].astype(np.float64)
            owners.add(len(values))
            if len(values):
                np.testing.assert_allclose(y[chosen], statistic(values), rtol=1e-5, atol=1e-6)
    assert owners == {0, 2, 4, 5}


def test_trimmed_share_is_counted_exactly():
    """0.29 of 100 are 29, which binary fractions round to 28."""
    x = np.zeros((100, 1), np.float32)
    x[:29], x[71:] = -1e6, 1e7
    head = lambda value: ClientParams({}, {"x": jnp.asarray(value)})  # noqa: E731
    update, keys = spec("trimmed_mean(share=0.29)"), jax.random.split(jax.random.key(0), 100)
    got, _ = update.apply(head(x), head(x), head(np.ones(x.shape, bool)), jnp.ones(100), keys)
    np.testing.assert_array_equal(got.head["x"], np.zeros((100, 1)))


# --------------------------------------------------------------------------------------- one by one


def test_transforms_are_applied_in_order():
    sent, norm = cohort(), 3.0
    clip, noise = f"clip(norm={norm})", "gaussian_noise(multiplier=0.5, norm=20.0)"
    after, _ = send(sent, noise, clip)
    before, _ = send(sent, clip, noise)
    for k in range(PRESENT):
        assert np.linalg.norm(change(sent, after, k)) == pytest.approx(norm, rel=1e-5)
        assert np.linalg.norm(change(sent, before, k)) > 2 * norm


def test_noise_and_rounding_use_independent_keys():
    """The same draw in two places of a chain would make the second depend on the first."""
    sent = cohort()
    first, _ = send(sent, "gaussian_noise(multiplier=0.5, norm=20.0)")
    second, _ = send(sent, "clip(norm=20.0)", "gaussian_noise(multiplier=0.5, norm=20.0)")
    assert np.abs(change(sent, first, 2) - change(sent, second, 2)).max() > 1


def test_rejected_clients_are_excluded_from_later_transforms():
    """The median is taken over the remaining clients."""
    sent = cohort()
    _, weight = send(sent, "reject_outliers(factor=1.2)")
    got, _ = send(sent, "reject_outliers(factor=1.2)", "median")
    left = np.flatnonzero(weight > 0)
    assert 0 < len(left) < PRESENT
    want = np.median(np.asarray(sent.trained.head["bias"], np.float64)[left], axis=0)
    np.testing.assert_allclose(got.head["bias"][left[0]], want, rtol=1e-5)


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("given", "method", "words"),
    [
        (["clipp(norm=1.0)"], "fedit", "did you mean 'clip'"),
        (["clip"], "fedit", "needs the option norm"),
        (["clip(norm=0.0)"], "fedit", "norm above 0"),
        (["gaussian_noise(multiplier=0.0, norm=1.0)"], "fedit", "multiplier above 0"),
        (["gaussian_noise(multiplier=1.0, norm=1e999)"], "fedit", "finite"),
        (["gaussian_noise(multiplier=1.0, norm=1.0, delta=1.0)"], "fedit", "between 0 and 1"),
        (["reject_outliers(factor=0.5)"], "fedit", "at least 1"),
        (["trimmed_mean(share=0.5)"], "fedit", "less than 0.5"),
        (["int8", "bfloat16"], "fedit", "quantise twice"),
        (["int8", "clip(norm=1.0)"], "fedit", "out of order"),
        (["reject_outliers", "gaussian_noise(multiplier=1.0, norm=1.0)"], "fedit", "out of order"),
        (["median"], "flora", "'flora' does not"),
        (["trimmed_mean"], "hlora", "'hlora' does not"),
        (["gaussian_noise(multiplier=1.0, norm=1.0)"] * 2, "fedit", "noise twice"),
    ],
)
def test_invalid_transforms_are_refused_in_one_sentence(given, method, words):
    with pytest.raises(InputError) as error:
        transforms.make_transforms(given, methods.make(method, TEMPLATE))
    assert words in str(error.value)
    assert str(error.value).endswith(".")


def test_noise_is_refused_for_methods_that_select_by_a_probe():
    plain = methods.make("fedit", TEMPLATE)
    probing = dataclasses.replace(plain, name="probing", select=lambda *args: args[2])
    with pytest.raises(InputError, match="does not cover method 'probing'"):
        transforms.make_transforms(["gaussian_noise(multiplier=1.0, norm=1.0)"], probing)
