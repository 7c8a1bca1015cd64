"""Activation functions are those of `transformers`."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora.models.activations import ACTIVATIONS

TRAINED = {"prelu", "xielu"}  # they have parameters of their own, which no module here has


def test_every_parameter_free_activation_of_transformers_is_known():
    from transformers.activations import ACT2CLS

    assert set(ACT2CLS) - TRAINED == set(ACTIVATIONS)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_values_equal_transformers(name):
    import torch
    from transformers.activations import ACT2FN

    x = np.linspace(-12, 12, 241, dtype=np.float32)
    want = ACT2FN[name](torch.tensor(x)).numpy()
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x)), want, rtol=2e-6, atol=2e-6)
