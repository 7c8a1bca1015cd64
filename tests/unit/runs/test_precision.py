"""Products are computed with the precision that a config asks for, forwards and backwards."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import lora, models
from fedjax_lora.core.types import ClientParams
from fedjax_lora.federated.objectives import TokenBatch
from fedjax_lora.runs.compilation import InputSpec


def precisions(function: Any, *args: Any) -> list[Any]:
    """Of all matrix products in the gradient of a function, loops and calls included."""

    def of(jaxpr: Any) -> list[Any]:
        found = []
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                found.append(equation.params["precision"])
            for value in equation.params.values():
                for one in value if isinstance(value, tuple | list) else (value,):
                    inner = getattr(one, "jaxpr", one)
                    found += of(inner) if hasattr(inner, "eqns") else []
        return found

    return of(jax.make_jaxpr(jax.grad(function))(*args).jaxpr)


@pytest.mark.parametrize(("family", "task"), [("bert", "classification"), ("llama", "language")])
@pytest.mark.parametrize("precision", ["default", "highest"])
def test_products_of_forward_and_backward_pass_have_the_precision(family, task, precision):
    language = task == "language"
    model = models.tiny(family=family, num_labels=0 if language else 3)
    spec = lora.make_spec(model.params, targets="all-linear", rank=2)
    inputs = InputSpec(
        module=model.module, lengths=(6,), type=task, dropout=False, lora_dropout=0.0,
        precision=precision,
    )  # fmt: skip
    ones = np.ones((2, 6), np.int32)
    batch = TokenBatch(ones, ones > 0, ones, np.zeros(2, np.int32))
    head = {} if language else model.params["head"]
    trained = ClientParams(lora.init(spec, jax.random.key(0)), head)
    with jax.default_matmul_precision(None):  # as users have it
        objective = inputs.objective()

        def loss(trained: Any) -> Any:
            valid, key = jnp.ones(2, bool), jax.random.key(0)
            gain = lora.uniform_gain(spec)
            return objective.loss(model.params, trained, gain, None, batch, valid, key)

        found = precisions(loss, trained)
    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert len(found) > 20
    assert all((one == highest) == (precision == "highest") for one in found)
