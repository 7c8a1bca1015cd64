"""The example with an NNX model, shortened."""

import jax
import pytest

from experiments.examples import nnx_model


@pytest.mark.slow
def test_nnx_model_trains_with_clients_of_three_ranks():
    with jax.numpy_dtype_promotion("standard"):  # NNX's optimizer needs it
        before, after = nnx_model.main(rounds=10, steps=100)
    assert before < 0.6
    assert after > before + 0.15
