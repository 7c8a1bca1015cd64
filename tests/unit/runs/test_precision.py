"""Products are computed with the precision that a config asks for, forwards and backwards."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import lora, models
from fedjax_lora.cli.run_or_model import with_precision
from fedjax_lora.core.types import ClientParams
from fedjax_lora.evaluation import generation
from fedjax_lora.federated.objectives import TokenBatch
from fedjax_lora.runs import build
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.compilation import InputSpec, at_precision
from tests._helpers import tiny_runs

HIGHEST = (jax.lax.Precision.HIGHEST,) * 2


def precisions(function: Any, *args: Any) -> list[Any]:
    """Of all matrix products in a function, loops and calls included."""

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

    return of(jax.make_jaxpr(function)(*args).jaxpr)


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

        found = precisions(jax.grad(loss), trained)
    assert len(found) > 20
    assert all((one == HIGHEST) == (precision == "highest") for one in found)


def test_answers_are_generated_with_the_precision():
    model = models.tiny(family="llama", num_labels=0)
    ids = jnp.ones((1, 4), jnp.int32)

    def answer(params: Any) -> Any:
        return generation.generate(model.module, params, ids, ids > 0, new_tokens=2, stop=(0,))

    with jax.default_matmul_precision(None):
        found = precisions(at_precision("highest", answer), model.params)
    assert len(found) > 10 and set(found) == {HIGHEST}


def test_evaluations_of_a_run_have_its_precision(monkeypatch):
    def make(*given: Any, **options: Any) -> Any:
        return lambda state: {"precision": jax.config.jax_default_matmul_precision}

    monkeypatch.setattr(build, "make_evaluate", make)
    config = tiny_runs.change(tiny_runs.CONFIG, {"model.precision": "highest"})
    made = build.build(config, tiny_runs.assets())
    with jax.default_matmul_precision(None):
        assert made.evaluate(None) == {"precision": "highest"}


def test_commands_take_the_precision_of_the_run(tmp_path):
    def within(folder: Any, given: str | None) -> Any:
        with jax.default_matmul_precision(None), with_precision(folder, given):
            return jax.config.jax_default_matmul_precision

    highest = tiny_runs.change(tiny_runs.CONFIG, {"model.precision": "highest"})
    (tmp_path / "adapter").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(configs.to_record(highest)))
    assert within(tmp_path, None) == "highest" and within(tmp_path, "default") is None
    assert within(tmp_path / "adapter", None) is None
    assert within(tmp_path / "adapter", "highest") == "highest"
