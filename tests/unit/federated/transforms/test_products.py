"""Defences on products against dense NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import InputError
from fedjax_lora.core.types import LoRA
from fedjax_lora.federated import transforms
from tests._helpers.client_messages import PRESENT, cohort, spec


def gains(sent):
    """Another gain for every client and component."""
    rng = np.random.default_rng(3)
    return {
        path: jnp.asarray(rng.uniform(0.5, 2, (*pair.a.shape[:-2], pair.a.shape[-1])), jnp.float32)
        for path, pair in sent.start.adapter.items()
    }


def dense(sent, gain):
    """The clients' updates of the model, one after the other, ``[c, numbers]``."""
    parts = []
    for path, (a, b) in sent.trained.adapter.items():
        a0, b0 = sent.start.adapter[path]
        g = np.asarray(gain[path], np.float64)[..., None, :]
        old, new = (np.asarray(x, np.float64) * g @ np.asarray(y, np.float64)
                    for x, y in ((a0, b0), (a, b)))  # fmt: skip
        parts.append((new - old).reshape(len(new), -1))
    for x0, x in zip(*map(jax.tree.leaves, (sent.start.head, sent.trained.head)), strict=True):
        parts.append((np.asarray(x, np.float64) - np.asarray(x0)).reshape(len(x), -1))
    return np.concatenate(parts, axis=1)[:PRESENT]


def test_inner_products_are_those_of_dense_updates():
    """With mixed ranks, stacked layers and a gain per component; absent clients have none."""
    sent = cohort()
    gain = gains(sent)
    got = transforms.inner_products(sent.start, sent.trained, sent.trainable, gain, sent.weight)
    want = dense(sent, gain)
    np.testing.assert_allclose(got[:PRESENT, :PRESENT], want @ want.T, rtol=1e-4, atol=1e-2)
    assert not np.any(got[PRESENT:]) and not np.any(got[:, PRESENT:])


def test_refactored_product_is_the_same_update():
    """A change of basis in a client's factors changes its factors' norms, and no inner product."""
    sent = cohort()
    gain = {path: jnp.ones_like(x) for path, x in gains(sent).items()}
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0] * 3.0
    both = [
        {
            path: LoRA(
                jnp.asarray(np.asarray(pair.a) @ turn, jnp.float32),
                jnp.asarray(np.linalg.inv(turn) @ np.asarray(pair.b), jnp.float32),
            )
            for path, pair in part.adapter.items()
        }
        for part in (sent.start, sent.trained)
    ]
    ones = jax.tree.map(lambda m: jnp.ones_like(m, bool), sent.trainable)
    plain, turned = (
        transforms.inner_products(
            sent.start._replace(adapter=old), sent.trained._replace(adapter=new), ones, gain,
            sent.weight,
        )
        for old, new in ((sent.start.adapter, sent.trained.adapter), both)
    )  # fmt: skip
    np.testing.assert_allclose(plain, turned, rtol=1e-3, atol=1e-1)


def updates(rng, attackers=()):
    """Nine updates that agree but for noise; attackers' are replaced."""
    x = rng.normal(size=30)[None] + 0.3 * rng.normal(size=(9, 30))
    for k, value in attackers:
        x[k] = value(x)
    return x


def weights_of(text, x, weight=None):
    weight = np.ones(len(x)) if weight is None else np.asarray(weight, float)
    x = np.where(weight[:, None] > 0, x, 0)
    inner = jnp.asarray(x @ x.T, jnp.float32)
    got = spec(text).weigh(inner, jnp.asarray(weight, jnp.float32))
    return np.asarray(got) * (weight > 0)


def krum_by_hand(x, f, keep):
    n = len(x)
    far = ((x[:, None] - x[None]) ** 2).sum(-1)
    score = [np.sort(np.delete(far[k], k))[: max(n - f - 2, 1)].sum() for k in range(n)]
    return np.isin(np.arange(n), np.argsort(score)[:keep])


@pytest.mark.parametrize(("keep", "count"), [(None, 8), (1, 1), (3, 3)])
def test_krum_keeps_clients_with_near_neighbours(keep, count):
    x = updates(np.random.default_rng(1))
    option = "" if keep is None else f", keep={keep}"
    got = weights_of(f"krum(attackers=0.2{option})", x)
    np.testing.assert_array_equal(got > 0, krum_by_hand(x, 1, count))
    absent = np.array([1] * 7 + [0, 0])
    few = weights_of(f"krum(attackers=0.2{option})", x, absent)
    np.testing.assert_array_equal(few[:7] > 0, krum_by_hand(x[:7], 1, min(count, 6)))


def test_geometric_median_minimises_the_sum_of_distances():
    rng = np.random.default_rng(2)
    x = updates(rng, [(0, lambda x: -20 * x[1]), (1, lambda x: 9 * x[2])])
    weight = rng.uniform(1, 3, size=9)
    got = weights_of("geometric_median", x, weight)
    assert got.sum() == pytest.approx(weight.sum(), rel=1e-5)

    def total(point):
        return weight @ np.linalg.norm(x - point, axis=1)

    point = got @ x / got.sum()
    best = total(point)
    for _ in range(50):
        assert best <= total(point + 0.05 * rng.normal(size=30)) * (1 + 1e-6)
    assert best < 0.9 * total(np.average(x, axis=0, weights=weight))
    assert got[0] < 0.1 * weight[0], "a far update has little weight"


@pytest.mark.parametrize(
    ("text", "attack", "found"),
    [
        ("reject_dissimilar", lambda x: -0.5 * x[4], [0, 1]),
        ("reject_dissimilar", lambda x: 50 * x[4], []),
        ("foolsgold", lambda x: 2 * x[8], [0, 1, 8]),
        ("krum(attackers=0.25)", lambda x: -x[4], [0, 1]),
    ],
)
def test_defences_reject_the_attackers_they_are_made_for(text, attack, found):
    """Opposite updates are dissimilar, long ones are not; copies are too similar, however long."""
    rng = np.random.default_rng(4)
    x = updates(rng)
    if text == "foolsgold":
        x = rng.normal(size=x.shape)
    y = x.copy()
    y[:2] = attack(x)
    np.testing.assert_array_equal(np.flatnonzero(weights_of(text, y) == 0), found)


def test_honest_clients_are_not_rejected():
    for seed in range(5):
        x = updates(np.random.default_rng(seed))
        assert np.all(weights_of("reject_dissimilar", x) > 0)
        assert np.all(weights_of("foolsgold", np.random.default_rng(seed).normal(size=(9, 30))) > 0)


def test_defences_are_finite_without_clients_or_updates():
    for text in ("krum", "geometric_median", "reject_dissimilar", "foolsgold"):
        nothing = weights_of(text, np.zeros((4, 3)))
        assert np.all(np.isfinite(nothing))
        assert not np.any(weights_of(text, np.ones((4, 3)), np.zeros(4)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("krum(attackers=0.5)", "attackers from 0 to less than 0.5"),
        ("krum(keep=0)", "keep of at least 1"),
        ("reject_dissimilar(least=1.0)", "least from -1 to below 1"),
        ("foolsgold(least=0.0)", "least between 0 and 1"),
        ("norm_bound(quantile=0.0)", "a quantile above 0 and at most 1"),
        ("median(least_owners=0)", "least_owners of at least 1"),
    ],
)
def test_invalid_defence_options_are_refused(text, words):
    with pytest.raises(InputError) as caught:
        spec(text)
    assert words in str(caught.value)
