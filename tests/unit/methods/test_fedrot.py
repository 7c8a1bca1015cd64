"""FedRot-LoRA: rotated factors of one model agree, and nothing but their average changes."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import methods
from fedjax_lora.core import linalg
from fedjax_lora.core.types import LoRA
from fedjax_lora.lora import LoraSpec, LoraTarget
from tests._helpers import cohorts
from tests._helpers.cohorts import assert_close, make_cohort

SPEC = LoraSpec(targets=(LoraTarget("x", 9, 8, None),), rank=3, alpha=3.0)


def turned(seed: int) -> np.ndarray:
    """A rotation by up to some thirty degrees about each axis."""
    q = np.random.default_rng(seed).normal(size=(3, 3)) * 0.3
    return np.linalg.qr(np.eye(3) + q - q.T)[0] * np.sign(np.linalg.det(np.eye(3) + q - q.T))


def averaged(name: str, pairs: list[LoRA], rank: list[int], round: int = 1):
    """The server's factors after a round whose clients return these."""
    method, aggregate = cohorts.compiled(name, SPEC)
    first = cohorts.random_adapter(SPEC, 1)
    server = methods.ServerState(cohorts.on_device(first), {})
    cohort = make_cohort(SPEC, rank, round=round)
    start = method.broadcast(server, (), cohort)
    result = {"x": cohorts.pair(*(np.stack(x) for x in zip(*pairs, strict=True)))}
    return first["x"], aggregate(server, (), cohort, start, result).server.adapter["x"]


@pytest.mark.parametrize("round", [0, 1], ids=["meets b", "meets a"])
def test_rotated_copies_of_the_servers_factors_average_to_themselves(round: int):
    """Plain averaging shrinks them: it knows nothing of the rotations."""
    first = cohorts.random_adapter(SPEC, 1)["x"]
    pairs = [LoRA(first.a @ q, q.T @ first.b) for q in map(turned, range(2))]
    _, ours = averaged("fedrot_lora", pairs, [3] * 2, round)
    assert_close(ours.a, first.a, 5e-6)
    assert_close(ours.b, first.b, 5e-6)
    _, plain = averaged("fedit", pairs, [3] * 2, round)
    assert np.linalg.norm(np.asarray(plain.a) @ plain.b - first.a @ first.b) > 0.1


def test_a_client_of_low_rank_rotates_its_own_components_only():
    first = cohorts.random_adapter(SPEC, 1)["x"]
    q = np.eye(3)
    q[:2, :2] = [[0.8, 0.6], [-0.6, 0.8]]
    low = LoRA((first.a @ q) * [1, 1, 0], (q.T @ first.b) * [[1], [1], [0]])
    _, ours = averaged("fedrot_lora", [low, first], [2, 3])
    assert_close(ours.a, first.a, 5e-6)
    assert_close(ours.b, first.b, 5e-6)


def test_nothing_is_rotated_towards_factors_that_are_zero():
    """The first round of a fresh adapter: its result is the plain average."""
    (method, rotating), (_, plain) = (cohorts.compiled(x, SPEC) for x in ("fedrot_lora", "fedit"))
    first = {"x": cohorts.random_adapter(SPEC, 1)["x"]._replace(b=np.zeros((3, 8), np.float32))}
    server = methods.ServerState(cohorts.on_device(first), {})
    cohort = make_cohort(SPEC, [3, 3])
    start = method.broadcast(server, (), cohort)
    result = cohorts.on_device(cohorts.train(start, cohorts.random_adapter(SPEC, 5, 2)))
    ours, want = (
        aggregate(server, (), cohort, start, result).server.adapter
        for aggregate in (rotating, plain)
    )
    cohorts.assert_trees_close(ours, want, 1e-6)


def test_the_nearest_rotation_of_a_reflection():
    """The polar factor may be a reflection; the proper one turns its weakest direction round."""
    mirror = jnp.diag(jnp.array([3.0, 2.0, -1.0]))
    assert_close(linalg.nearest_orthogonal(mirror), np.diag([1.0, 1.0, -1.0]), 1e-6)
    assert_close(linalg.nearest_orthogonal(mirror, proper=True), np.eye(3), 1e-6)
