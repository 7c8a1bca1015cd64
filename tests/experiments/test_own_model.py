"""The examples with a custom model and method, shortened; the committed result matches the code."""

import json

import jax
import pytest

from experiments.examples import own_method, own_model


@pytest.fixture(autouse=True)
def as_users_have_it():
    """The examples are a user's code: with JAX's own promotion of types and shapes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("method", ["hlora", pytest.param("fed_plora", marks=pytest.mark.slow)])
def test_custom_model_trains_with_clients_of_four_ranks(method: str):
    found = own_model.main(rounds=6, steps=100, method=method)
    assert found["base_on_upright"] > 0.9
    assert found["base_on_turned"] < 0.3
    assert found["adapted_on_turned"] > found["base_on_turned"] + 0.2


def test_committed_result_matches_the_experiment():
    saved = json.loads((own_model.RESULTS / "own_model.json").read_text())
    assert saved["rounds"] == len(saved["history"]) - 1 == 30
    assert saved["adapted_on_turned"] == saved["history"][-1] > 0.8


@pytest.mark.slow
def test_custom_method_trains_and_differs_from_the_masked_mean():
    losses = own_method.main(rounds=3)
    assert all(after[-1] < after[0] for after in losses.values())
    own, mean = losses["movement_weighted"], losses["masked_mean"]
    assert own[0] == mean[0] and own[1:] != mean[1:]
    assert losses["movement_weighted(power=0.0)"][1:] != own[1:]
