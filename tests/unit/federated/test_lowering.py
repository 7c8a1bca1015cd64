"""A method's round lowers for TPUs and GPUs, which need not be there."""

import dataclasses
import re
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import federated, lora, methods, models
from fedjax_lora.core import trees
from fedjax_lora.core.target import compiling_for, target_of
from fedjax_lora.models.init import abstract_params
from fedjax_lora.models.module_types import module_of
from tests._helpers import problems

PLATFORMS = ("tpu", "cuda")


class Chip(NamedTuple):
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    process_index: int = 0


def exported(name: str, method: str) -> jax.export.Exported:
    """The round of four clients, lowered for both platforms as on an accelerator."""
    problem = getattr(problems, name)()
    own = methods.make(method, problem.spec)
    rank = np.full(4, problem.spec.rank, np.int32)
    if methods.takes_mixed_ranks(method):
        rank = np.array([1, 2, 4, 6], np.int32)
    plan = federated.Plan(
        id=np.arange(4, dtype=np.int32),
        rank=rank,
        weight=np.ones(4, np.float32),
        batches=problems.batches_of([[0, 1]], [[2, 3]], [[4, 5]], [[6, 7]], size=4, steps=2),
        rate=np.float32(0.1),
        round=np.int32(0),
    )
    kernels = lora.kernels_of(problem.base, problem.spec)
    with compiling_for(target_of((Chip(),))):
        step = federated.compile_round(own, problems.training(name))
        state = jax.eval_shape(
            lambda adapter, kernels, head: federated.init_state(
                own, adapter, kernels, head, clients=4, heads="average"
            ),
            problem.spec.shapes(),
            kernels,
            problem.head,
        )
        key = jax.eval_shape(lambda: jax.random.key(0))
        return jax.export.export(step.compiled, platforms=PLATFORMS)(
            problem.base, problem.data, state, plan, key
        )


@pytest.mark.parametrize(
    "method", problems.one_of_each_kind({*problems.KINDS, "lora_fair", "florist", "hetlora"})
)
def test_round_of_every_method_lowers_for_accelerators(method):
    """A primitive without a rule for a platform, or a callback to Python, would be found here."""
    found = exported("bag", method)
    assert found.platforms == PLATFORMS
    assert "callback" not in found.mlir_module()


def test_round_of_an_encoder_lowers_for_accelerators():
    found = exported("encoder", "zero_padding")
    assert found.platforms == PLATFORMS and "callback" not in found.mlir_module()


def conversions(function: Any, *args: Any) -> set[tuple[int, ...]]:
    """Shapes of the arrays that a program converts from bfloat16 to float32 as a whole."""
    with compiling_for(target_of((Chip(),))), jax.numpy_dtype_promotion("standard"):
        text = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*args).mlir_module()
    found = re.findall(r"convert %\S+ : \(tensor<([\dx]+)xbf16>\) -> tensor<[\dx]+xf32>", text)
    return {tuple(map(int, shape.split("x"))) for shape in found}


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_table_of_words_is_not_converted_as_a_whole(family: str):
    """A bfloat16 table stays one, whether its rows are looked up or it is multiplied with."""
    language = family == "llama"
    model = models.tiny(family=family, num_labels=0 if language else 3)
    config = dataclasses.replace(model.config, dtype="bfloat16")
    params, module = abstract_params(config, "bfloat16"), module_of(config)
    batch = np.ones((3, 5), np.int32), np.ones((3, 5), bool)  # no state has the shape of a table

    def outputs(params: Any) -> Any:
        out: Any = module.apply({"params": params}, *batch)
        return models.logits(params, out.hidden) if language else out

    tables = [x for path, x in trees.flat(params).items() if path.endswith("/embedding")]
    assert {x.dtype for x in tables} == {np.dtype(jnp.bfloat16)}
    found = conversions(outputs, params)
    assert found and not found & {x.shape for x in tables}
    assert conversions(lambda x: x.astype(jnp.float32), tables[0]) == {tables[0].shape}


def test_python_callback_is_detected():
    call = jax.jit(lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct((), np.float32), x))
    found = jax.export.export(
        call, platforms=PLATFORMS, disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("x")]
    )
    with pytest.raises(Exception, match="callback"):
        found(np.float32(1))
