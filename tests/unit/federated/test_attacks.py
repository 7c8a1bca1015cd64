"""Attackers: who they are, what they send and train on, and runs with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import InputError
from fedjax_lora.data import Tokens
from fedjax_lora.federated.attacks import send_attacks
from fedjax_lora.federated.faults import attacks_of, make_faults
from fedjax_lora.runs.compilation import programs
from fedjax_lora.runs.run import run
from tests._helpers import tiny_runs
from tests._helpers.client_messages import PRESENT, change, cohort, own

MINE = np.array([True, False, False, True, False, True])


def attack(text):
    return attacks_of(make_faults([text]))[0]


def sent_by(text, mine=MINE):
    sent = cohort()
    keys = jax.random.split(jax.random.key(0), len(mine))
    got = send_attacks([attack(text)], *sent[:4], attackers=[jnp.asarray(mine)], keys=keys)
    for k in range(PRESENT):
        np.testing.assert_array_equal(
            own(got, sent.trainable, k, frozen=True),
            own(sent.trained, sent.trainable, k, frozen=True),
        )
        if not mine[k]:
            np.testing.assert_array_equal(
                own(got, sent.trainable, k), own(sent.trained, sent.trainable, k)
            )
    return sent, got


@pytest.mark.parametrize(
    ("text", "factor"),
    [
        ("sign_flip(share=0.3, scale=2.0)", -2),
        ("scaling(share=0.3, factor=3.0)", 3),
        ("free_rider(share=0.3)", 0),
    ],
)
def test_attackers_send_multiples_of_their_change(text, factor):
    sent, got = sent_by(text)
    for k in (0, 3):
        want = factor * change(sent, sent.trained, k)
        np.testing.assert_allclose(change(sent, got, k), want, rtol=1e-5, atol=1e-5)


def honest_statistics(sent):
    """Mean and deviation of every number over the honest clients 1, 2, 4 that train it."""
    leaves = [jax.tree.leaves(x) for x in (sent.start, sent.trained, sent.trainable)]
    for x0, x, m in zip(*leaves, strict=True):
        mask = np.broadcast_to(np.asarray(m), x.shape)[[1, 2, 4]]
        d = np.ma.array((np.asarray(x, np.float64) - np.asarray(x0))[[1, 2, 4]], mask=~mask)
        yield d.mean(axis=0).filled(0.0), d.std(axis=0).filled(0.0)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("inner_product(share=0.3, factor=2.0)", lambda mean, std: -2 * mean),
        ("little_is_enough(share=0.3, z=1.5)", lambda mean, std: mean - 1.5 * std),
    ],
)
def test_colluding_attackers_send_statistics_of_honest_updates(text, answer):
    sent, got = sent_by(text)
    triples = zip(*map(jax.tree.leaves, (sent.start, got, sent.trainable)), strict=True)
    for (x0, y, m), (mean, std) in zip(triples, honest_statistics(sent), strict=True):
        mask = np.broadcast_to(np.asarray(m), y.shape)
        for k in (0, 3):
            d = np.asarray(y, np.float64)[k] - np.asarray(x0)[k]
            want = np.where(mask[k], answer(mean, std), 0)
            np.testing.assert_allclose(d, want, rtol=1e-4, atol=2e-5)


def test_gaussian_attack_scales_noise_to_the_norm_of_honest_updates():
    sent, got = sent_by("gaussian(share=0.3, factor=2.0)")
    honest = np.mean([np.linalg.norm(change(sent, sent.trained, k)) for k in (1, 2, 4)])
    noise = [change(sent, got, k) for k in (0, 3)]
    for x in noise:
        assert np.linalg.norm(x) == pytest.approx(2 * honest, rel=1e-4)
    assert abs(np.mean(noise[0][:20] * noise[1][:20])) < np.std(noise[0]) * np.std(noise[1])


def test_without_honest_clients_messages_stay_finite():
    for text in ("inner_product(share=1.0)", "little_is_enough(share=1.0)", "gaussian(share=1.0)"):
        sent = cohort()
        everyone = jnp.ones(6, bool)
        keys = jax.random.split(jax.random.key(0), 6)
        got = send_attacks([attack(text)], *sent[:4], attackers=[everyone], keys=keys)
        assert all(np.all(np.isfinite(own(got, sent.trainable, k))) for k in range(PRESENT))


RANK = np.array([4, 1, 2, 1, 4, 2, 1, 4, 2, 1])


@pytest.mark.parametrize(
    ("text", "count", "ranks"),
    [
        ("sign_flip(share=0.2)", 2, None),
        ("sign_flip(share=0.25)", 3, None),
        ("sign_flip(share=0.2, among='high')", 2, {4}),
        ("sign_flip(share=0.3, among='low')", 3, {1}),
        ("sign_flip(share=0.0)", 0, None),
    ],
)
def test_attackers_are_determined_by_the_seed_and_have_the_chosen_ranks(text, count, ranks):
    one, two = (attack(text).attackers(RANK, (7, 0)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert one.sum() == count and (ranks is None or set(RANK[one]) == ranks)
    others = [attack(text).attackers(RANK, (seed, 0)) for seed in range(20)]
    assert count == 0 or len({tuple(x) for x in others}) > 1


def tokens(count=40):
    ids = np.arange(count * 6).reshape(count, 6).astype(np.int32)
    return Tokens(ids, np.zeros_like(ids), np.full(count, 2), np.arange(count) % 4)


def test_label_flip_and_backdoor_poison_the_examples():
    rng = np.random.default_rng(0)
    flipped = attack("label_flip(share=0.1)").poison(tokens(), 4, rng)
    np.testing.assert_array_equal(flipped.label, 3 - tokens().label)
    np.testing.assert_array_equal(flipped.ids, tokens().ids)
    made = attack("backdoor(share=0.1, trigger=[901, 902], target=2)").poison(tokens(), 4, rng)
    marked = np.all(made.ids[:, 1:3] == [901, 902], axis=1)
    assert 10 < marked.sum() < 30
    assert np.all(made.label[marked] == 2) and np.all(made.length[marked] == 3)
    for x, y in zip(made, tokens(), strict=True):
        np.testing.assert_array_equal(x[~marked], y[~marked])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sign_flip(share=1.5)", "share from 0 to 1, got 1.5"),
        ("sign_flip(share=0.1, among='rich')", "among is one of 'any', 'low', 'high'"),
        ("scaling(share=0.1, factor=1e999)", "finite factors"),
        ("inflated_counts(share=0.1, factor=0)", "a factor above 0"),
        ("backdoor(share=0.1, trigger=[])", "needs a trigger"),
        ("backdoor(share=0.1, trigger=[1], part=2)", "a part from 0 to 1"),
        ("sign_flop(share=0.1)", "did you mean 'sign_flip'"),
    ],
)
def test_invalid_attack_options_are_refused(text, words):
    with pytest.raises(InputError) as caught:
        make_faults([text])
    assert words in str(caught.value)


# ------------------------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def shared():
    return {"assets": tiny_runs.assets(), "programs": programs()}


FAULTS = (
    "sign_flip(share=0.4, scale=100.0)",
    "inflated_counts(share=0.2, factor=3)",
    "backdoor(share=0.2, trigger=[5, 6], target=1)",
)


def test_run_reports_attackers_and_backdoor_success(shared):
    """The clients that attack are the same in every round; those whose message is far are found."""
    changes = {
        "federation.faults": FAULTS,
        "federation.updates": ("reject_outliers(factor=3.0)", "median"),
        "federation.cohort": 5,
        "federation.rounds": 3,
        "federation.ranks": "table(ranks=[1, 1, 1, 2, 4])",
        "federation.method": "masked_mean",
    }
    result = run(tiny_runs.change(tiny_runs.CONFIG, changes), **shared)
    faults = make_faults(FAULTS)
    who = [x.attackers(np.array([1, 1, 1, 2, 4]), (0, n)) for n, x in enumerate(faults)]
    flippers = np.flatnonzero(who[0]).tolist()
    for record in result.records:
        assert record["attackers"] == np.flatnonzero(np.any(who, axis=0)).tolist()
        assert record["rejected"] == flippers
        assert record["few_owners"] > 0, "components of rank 3 and 4 have one owner"
    assert 0 <= result.records[-1]["backdoor_accuracy"] <= 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"federation.updates": ("geometric_median",),
             "federation.method": "fed_plora"},
            "does not weigh clients by them",
        ),
        (
            {"federation.faults": ("backdoor(share=0.2, trigger=[5], target=9)",)},
            "has the target 9, but task 'made_up' has the classes 0..3",
        ),
        (
            {"federation.faults": (f"backdoor(share=0.2, trigger={list(range(40))})",)},
            "does not fit into texts",
        ),
    ],
)  # fmt: skip
def test_incompatible_attacks_and_defences_are_refused(changes, words, shared):
    with pytest.raises(InputError) as caught:
        run(tiny_runs.change(tiny_runs.CONFIG, changes), **shared)
    assert words in str(caught.value) and "\n" not in str(caught.value)
