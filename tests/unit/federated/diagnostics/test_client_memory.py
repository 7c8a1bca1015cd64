"""Bytes that a client sends and holds in memory."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import methods
from fedjax_lora.federated import optimizers
from fedjax_lora.federated.diagnostics import estimate_client_memory, trained_entries
from tests._helpers.cohorts import GLOBAL, R, make_server
from tests._helpers.mixed_ranks import cohort_for

BASE = {"kernel": jnp.zeros((10, 10)), "half": jnp.zeros(7, jnp.bfloat16)}  # 414 bytes
HEAD = {"kernel": jnp.zeros((5, 3)), "bias": jnp.zeros(3)}  # 18 numbers


def start_of(name: str, cohort):
    method = methods.make(name, GLOBAL)
    server = make_server(method, GLOBAL)
    return server, method.broadcast(server, method.init_clients(len(cohort.rank)), cohort)


def sent(start, client: int) -> dict[str, np.ndarray]:
    """What a client trained, entry by entry, as it would go into a message."""
    message = {}
    for target in GLOBAL.targets:
        masks, values = start.trainable[target.path], start.adapter[target.path]
        for name, mask, value in zip("ab", masks, values, strict=True):
            own = np.asarray(value)[client]
            trained = np.broadcast_to(np.asarray(mask)[client], own.shape)
            message[f"{target.path}.{name}"] = own[trained]
        if start.coefficients:
            own = np.asarray(start.coefficients[target.path])[client]
            chosen = np.asarray(masks.b)[client, ..., 0]
            if start.trained_coefficients:
                core = np.asarray(start.trained_coefficients[target.path])[client]
                chosen = np.broadcast_to(core, own.shape)
            message[f"{target.path}.coefficients"] = own[chosen]
    return message


@pytest.mark.parametrize("name", methods.METHODS)
def test_count_of_trained_parameters_equals_what_is_sent(name: str):
    """For the bytes see `test_properties.test_traffic_equals_the_size_of_what_is_sent`."""
    cohort = cohort_for(name)
    _, start = start_of(name, cohort)
    counts = trained_entries(GLOBAL, start)
    for k in range(len(counts)):
        assert counts[k] == sum(x.size for x in sent(start, k).values())
    assert len(set(counts)) > 1 or len(set(np.asarray(cohort.rank))) == 1 or name == "lora_a2"


@pytest.mark.parametrize(
    ("optimizer", "per_number", "scalars"),
    [
        ("sgd", 0, 0),
        ("sgd(momentum=0.9)", 4, 0),
        ("adamw(weight_decay=0.1)", 8, 4),
        ("lion", 4, 4),
    ],
)
@pytest.mark.parametrize("train_head", [True, False])
def test_memory_estimate_is_the_sum_of_its_parts(
    optimizer: str, per_number: int, scalars: int, train_head: bool
):
    cohort = cohort_for("zero_padding")
    _, start = start_of("zero_padding", cohort)
    got = estimate_client_memory(
        GLOBAL, start, base=BASE, head=HEAD, train_head=train_head,
        optimizer=optimizers.optimizer(optimizer, clip=1.0),
    )  # fmt: skip
    adapter = np.asarray(cohort.rank, np.int64) * GLOBAL.component_size
    trained = adapter + 18 * train_head
    np.testing.assert_array_equal(got.base, 414)
    np.testing.assert_array_equal(got.adapter, 4 * adapter)
    np.testing.assert_array_equal(got.head, 72)
    np.testing.assert_array_equal(got.trained, trained)
    np.testing.assert_array_equal(got.gradient, 4 * trained)
    np.testing.assert_array_equal(got.optimizer, per_number * trained + scalars)
    np.testing.assert_array_equal(
        got.total, 414 + 72 + 4 * adapter + (4 + per_number) * trained + scalars
    )


@pytest.mark.parametrize("name", methods.METHODS)
def test_memory_estimate_includes_trained_parameters(name: str):
    cohort = cohort_for(name)
    _, start = start_of(name, cohort)
    got = estimate_client_memory(
        GLOBAL, start, base=BASE, head=HEAD, train_head=False, optimizer=optimizers.optimizer("sgd")
    )
    assert np.all(got.adapter >= got.gradient)
    most = R if name == "fed_sb" else 1  # coefficients of a component
    assert np.all(got.adapter <= 4 * R * (GLOBAL.component_size + most * GLOBAL.matrices))
    assert np.all(got.trained > 0)


def test_fed_plora_holds_all_modules_and_trains_its_own():
    cohort = cohort_for("fed_plora")
    _, start = start_of("fed_plora", cohort)
    got = estimate_client_memory(
        GLOBAL, start, base={}, head={}, train_head=True, optimizer=optimizers.optimizer("adamw")
    )
    trained = np.asarray(cohort.rank) * GLOBAL.component_size
    np.testing.assert_array_equal(got.adapter, 4 * R * GLOBAL.component_size)
    np.testing.assert_array_equal(got.trained, trained)
    np.testing.assert_array_equal(got.optimizer, 8 * trained + 4)


def test_large_bases_are_counted_exactly():
    """Byte counts exceed 32 bits."""
    base = {"kernel": jax.ShapeDtypeStruct((1 << 20, 1 << 13), jnp.float32)}
    _, start = start_of("zero_padding", cohort_for("zero_padding"))
    got = estimate_client_memory(
        GLOBAL, start, base=base, head={}, train_head=True, optimizer=optimizers.optimizer("sgd")
    )
    assert set(got.base.tolist()) == {4 * math.prod((1 << 20, 1 << 13))}
