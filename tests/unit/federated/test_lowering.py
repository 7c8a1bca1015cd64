"""Every method's round lowers for TPUs and GPUs, which need not be there."""

from typing import NamedTuple

import jax
import jax.export
import numpy as np
import pytest

from fedjax_lora import federated, lora, methods
from fedjax_lora.core.target import compiling_for, target_of
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


@pytest.mark.parametrize("method", list(methods.METHODS))
def test_round_of_every_method_lowers_for_accelerators(method):
    """A primitive without a rule for a platform, or a callback to Python, would be found here."""
    found = exported("bag", method)
    assert found.platforms == PLATFORMS
    assert "callback" not in found.mlir_module()


def test_round_of_an_encoder_lowers_for_accelerators():
    found = exported("encoder", "zero_padding")
    assert found.platforms == PLATFORMS and "callback" not in found.mlir_module()


def test_python_callback_is_detected():
    call = jax.jit(lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct((), np.float32), x))
    found = jax.export.export(
        call, platforms=PLATFORMS, disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("x")]
    )
    with pytest.raises(Exception, match="callback"):
        found(np.float32(1))
