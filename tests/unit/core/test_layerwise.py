"""Layers one by one or spread over devices: the same numbers, less work for each device."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fedjax_lora import federated, methods
from fedjax_lora.core import layerwise
from fedjax_lora.core.layerwise import map_layers
from fedjax_lora.core.types import LoRA
from fedjax_lora.lora import LoraSpec, LoraTarget
from fedjax_lora.methods import Cohort

pytestmark = pytest.mark.optimized

DEVICES, CLIENTS, RANK = 8, 8, 2
WIDE, NARROW = (40, 24), (12, 12)  # stacks of 16: two thin QR, or the dense product


def numbers(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def in_both_worlds(fn: Any, *arrays: Any) -> tuple[Any, Any]:
    """The result on one device, and with the layers over eight."""
    mesh = federated.client_mesh(DEVICES)

    def spread(*arrays: Any) -> Any:
        with layerwise.spread_over(mesh):
            return fn(*arrays)

    there = jax.device_put(arrays, federated.everywhere(mesh))
    return jax.jit(fn)(*arrays), jax.jit(spread)(*there)


@pytest.mark.parametrize("count", [1, 3, 8, 13])
@pytest.mark.parametrize("axis", [0, 1])
def test_results_are_in_layer_order_for_any_number_of_devices(count: int, axis: int):
    """Also if the devices do not divide the layers: padding layers are not in the result."""
    shape = (count, 5, 4) if axis == 0 else (5, count, 4)
    x, y = numbers(*shape), numbers(*shape, seed=1)

    def layer(x: jax.Array, y: jax.Array) -> LoRA:
        return LoRA(x @ y.T, jnp.max(x - y))

    for found in in_both_worlds(lambda x, y: map_layers(layer, x, y, axis=axis), x, y):
        assert found.a.shape == (count, 5, 5) and found.b.shape == (count,)
        for n in range(count):
            want = layer(x.take(n, axis), y.take(n, axis))
            np.testing.assert_allclose(found.a[n], want.a, rtol=1e-6, atol=1e-6)
            np.testing.assert_array_equal(found.b[n], want.b)


def test_without_a_mesh_all_layers_are_computed_on_one_device():
    with layerwise.spread_over(None):
        assert jax.sharding.get_abstract_mesh().empty
    with layerwise.spread_over(federated.client_mesh(DEVICES)):
        assert jax.sharding.get_abstract_mesh().size == DEVICES
    assert jax.sharding.get_abstract_mesh().empty


def test_nested_map_stays_on_its_device():
    """A client's own decomposition, inside the `shard_map` that trains the cohort."""
    x = numbers(DEVICES, 3, 4, 4)
    mine = lambda x: map_layers(lambda m: m @ m.mT, x, axis=1)  # noqa: E731
    mesh = federated.client_mesh(DEVICES)
    spec = PartitionSpec(federated.AXIS)

    @jax.jit
    def outer(x: jax.Array) -> jax.Array:
        with layerwise.spread_over(mesh):
            return jax.shard_map(
                lambda x: jnp.swapaxes(mine(x), 0, 1), mesh=mesh, in_specs=spec, out_specs=spec
            )(x)

    np.testing.assert_allclose(outer(x), x @ x.mT, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------ a server's step


@functools.cache
def step(layers: int, size: tuple[int, int], devices: int) -> tuple[Any, Any]:
    """HLoRA's aggregation with the clients sharded as a round leaves them: compiled, and run."""
    target = LoraTarget("x", *size, (True,) * layers)
    lora_spec = LoraSpec(targets=(target,), rank=RANK, alpha=2.0)
    method = methods.make("hlora", lora_spec)
    mesh = federated.client_mesh(devices) if devices > 1 else None
    shared = federated.everywhere(mesh)
    split = shared if mesh is None else NamedSharding(mesh, PartitionSpec(federated.AXIS))
    cohort = Cohort(
        id=jnp.arange(CLIENTS, dtype=jnp.int32),
        rank=jnp.asarray([1, 2] * (CLIENTS // 2), jnp.int32),
        weight=jnp.arange(CLIENTS, dtype=jnp.float32),
        scale=jnp.ones(CLIENTS),
        round=jnp.int32(0),
        key=jax.random.key(0),
    )
    draw = lambda s, *c: numbers(*c, *s.shape)  # noqa: E731
    server = method.init(jax.tree.map(draw, lora_spec.shapes()), {})
    start = method.broadcast(server, (), cohort)
    result = jax.tree.map(lambda x: x + numbers(*x.shape, seed=2), start.adapter)

    def aggregate(server: Any, start: Any, result: Any) -> Any:
        with layerwise.spread_over(mesh):
            return method.aggregate(server, (), cohort, start, result).server.adapter["x"]

    arguments = [
        jax.device_put(tree, where)
        for tree, where in ((server, shared), (start, split), (result, split))
    ]
    placed = {} if mesh is None else {"out_shardings": shared}
    compiled = jax.jit(aggregate, **placed).lower(*arguments).compile()
    return compiled, jax.device_get(compiled(*arguments))


def decompositions(compiled: Any) -> int:
    """How many layers one device decomposes: the length of the loop around the LAPACK calls."""
    text = compiled.as_text()
    assert "lapack_sgesdd" in text
    loops = re.findall(r'known_trip_count":\{"n":"(\d+)"', text)
    assert len(loops) <= 1
    return int(loops[0]) if loops else 1


@pytest.mark.parametrize("size", [WIDE, pytest.param(NARROW, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("layers", "share"),
    [(13, 2), *(pytest.param(*x, marks=pytest.mark.slow) for x in [(16, 2), (5, 1)])],
)
def test_devices_share_the_decompositions(size: tuple[int, int], layers: int, share: int):
    alone, want = step(layers, size, 1)
    spread, ours = step(layers, size, DEVICES)
    assert decompositions(alone) == layers
    assert decompositions(spread) == share
    assert "all-to-all" in spread.as_text()
    for x, y in zip(ours, want, strict=True):
        assert x.shape == y.shape
    product = want.a @ want.b
    np.testing.assert_allclose(ours.a @ ours.b, product, atol=1e-5 * np.max(np.abs(product)))


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_no_device_ever_holds_all_layers_of_all_clients(size: tuple[int, int]):
    """Clients' factors are exchanged for layers, not gathered."""
    layers = 16
    text = step(layers, size, DEVICES)[0].as_text()
    sizes = [
        np.prod([int(n) for n in shape.split(",")])
        for shape in re.findall(r"f32\[([\d,]+)\]", text)
    ]
    everything = CLIENTS * layers * size[0] * RANK
    assert everything // DEVICES in sizes
    assert max(sizes) < everything // 2


def test_memory_holds_one_layer_at_a_time():
    """The server's step needs the clients' factors and one layer's stack, not a second copy."""
    memory = {n: step(n, WIDE, 1)[0].memory_analysis() for n in (5, 16)}
    stack = 4 * CLIENTS * RANK * sum(WIDE)
    more = memory[16].temp_size_in_bytes - memory[5].temp_size_in_bytes
    results = 4 * 11 * RANK * sum(WIDE)  # the new factors of the eleven layers
    assert more < 4 * results < 11 * stack
