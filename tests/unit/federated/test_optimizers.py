"""Optimizers and schedules by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_lora.core.errors import InputError
from fedjax_lora.federated.optimizers import SCHEDULES, optimizer, schedule

PARAMS = {"w": jnp.array([[3.0, -4.0], [0.5, 2.0]])}
GRADS = {"w": jnp.array([[0.3, -1.0], [2.0, 0.1]])}


def two_updates(chosen: optax.GradientTransformation) -> list[np.ndarray]:
    @jax.jit
    def run(params, grads):
        state, seen = chosen.init(params), []
        for _ in range(2):
            with jax.numpy_dtype_promotion("standard"):
                updates, state = chosen.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            seen.append(updates["w"])
        return seen

    return [np.asarray(x) for x in run(PARAMS, GRADS)]


@pytest.mark.parametrize(
    ("spec", "same"),
    [
        ("sgd", optax.sgd(1.0)),
        ("sgd(momentum=0.9, nesterov=True)", optax.sgd(1.0, momentum=0.9, nesterov=True)),
        ("adamw(weight_decay=0.1, b1=0.8)", optax.adamw(1.0, weight_decay=0.1, b1=0.8)),
        ("lion", optax.lion(1.0)),
        ("rmsprop(decay=0.5)", optax.rmsprop(1.0, decay=0.5)),
    ],
)
def test_named_optimizers_equal_optax_at_learning_rate_one(spec, same):
    for got, want in zip(two_updates(optimizer(spec)), two_updates(same), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["adabelief", "adafactor", "lamb", "radam", "yogi", "sign_sgd"])
def test_further_optax_optimizers_are_found_by_name(name):
    for update in two_updates(optimizer(name)):
        assert np.all(np.isfinite(update)) and np.any(update != 0)


@pytest.mark.parametrize(("clip", "length"), [(None, 2.258), (100.0, 2.258), (0.5, 0.5)])
def test_gradients_are_clipped_before_the_optimizer(clip, length):
    update = two_updates(optimizer("sgd", clip=clip))[0]
    assert np.linalg.norm(update) == pytest.approx(length, abs=1e-3)
    np.testing.assert_allclose(update / np.linalg.norm(update), -GRADS["w"] / 2.2583, rtol=1e-3)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("adamv", "did you mean 'adam"),
        ("chain", "Unknown optimizer 'chain'"),
        ("constant_schedule", "Unknown optimizer"),
        ("__name__", "Unknown optimizer"),
        ("_deprecated_dpsgd", "Unknown optimizer"),
        ("adamw(weight_decay=0.1", "is not written as name or name(option=value, ...)"),
        ("adamw(decay=0.1)", "unexpected keyword argument 'decay'; options: learning_rate, b1"),
        ("adamw(learning_rate=0.1)", "multiple values for keyword argument 'learning_rate'"),
        ("adamw(weight_decay='much')", "Optimizer \"adamw(weight_decay='much')\""),
        ("lbfgs", "missing 3 required keyword-only arguments"),
    ],
)
def test_invalid_optimizers_are_refused_in_one_sentence(spec, words):
    with pytest.raises(InputError) as error:
        optimizer(spec)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert "Known: _" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ("constant", {0: 1, 5: 1, 10: 1}),
        ("linear", {0: 1, 5: 0.5, 10: 0}),
        ("linear(end=0.2)", {0: 1, 5: 0.6, 10: 0.2}),
        ("cosine", {0: 1, 5: 0.5, 10: 0}),
        ("cosine(end=0.1)", {0: 1, 5: 0.55, 10: 0.1}),
        ("warmup_cosine(warmup=2, start=0.2)", {0: 0.2, 1: 0.6, 2: 1, 6: 0.5, 10: 0}),
        ("warmup_cosine(warmup=0)", {0: 1, 5: 0.5, 10: 0}),
        ("exponential", {0: 1, 1: 0.99, 10: 0.99**10}),
        ("exponential(per_round=0.5)", {0: 1, 1: 0.5, 3: 0.125}),
    ],
)
def test_schedules_have_their_values_at_given_rounds(spec, values):
    factor = schedule(spec, rounds=10)
    for t, want in values.items():
        assert float(factor(t)) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_default_schedules_stay_between_zero_and_one(name):
    factor = schedule(name, rounds=7)
    values = [float(factor(t)) for t in range(8)]
    assert all(0 <= value <= 1 for value in values) and max(values) == 1


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("cosin", "did you mean 'cosine'"),
        ("linear(stop=0)", "'stop'"),
        ("linear(end='low')", "end is float, got 'low'"),
        ("linear(rounds=3)", "'rounds'"),
        ("warmup_cosine(warmup=10)", "warms up for 10 of 10 rounds"),
        ("warmup_cosine(warmup=-1)", "warms up for -1 of 10 rounds"),
        ("exponential(per_round=0)", "per_round above 0, got 0"),
    ],
)
def test_invalid_schedule_is_refused_in_one_sentence(spec, words):
    with pytest.raises(InputError) as error:
        schedule(spec, rounds=10)
    assert words in str(error.value)


def test_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(InputError, match="warms up for 3 of 3 rounds"):
        schedule("warmup_cosine", rounds=3)
