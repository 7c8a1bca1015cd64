"""The example with a model and a loss of one's own, shortened; its result file is of its code."""

import json

import jax
import pytest

from experiments.examples import own_model


@pytest.mark.parametrize("method", ["hlora", "fed_plora"])
def test_clients_of_four_ranks_adapt_a_model_of_ones_own(method: str):
    with jax.numpy_dtype_promotion("standard"):  # optax needs it, and this is the user's code
        found = own_model.main(number=6, steps=100, method=method)
    assert found["base_on_upright"] > 0.9
    assert found["base_on_turned"] < 0.3
    assert found["adapted_on_turned"] > found["base_on_turned"] + 0.2


def test_the_result_file_is_that_of_the_experiment():
    held = json.loads((own_model.RESULTS / "result.json").read_text())
    assert held["rounds"] == len(held["history"]) - 1 == 30
    assert held["adapted_on_turned"] == held["history"][-1] > 0.8
