"""The base is in memory once, however many clients are trained together.

Everything is measured on the compiled program of a wave; nothing is run, and no weight is made.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import federated, lora, methods
from fedjax_lora.core import trees
from fedjax_lora.data import Tokens
from fedjax_lora.federated.ranks import client_scoring
from fedjax_lora.models import SequenceClassifier
from fedjax_lora.runs.cost import hlo
from tests._helpers.encoder_layer import (
    CONFIG,
    HIDDEN,
    RANK,
    ROWS,
    WIDTH,
    WORDS,
    base_and_head,
    cohort,
    inner,
    spec,
    struct,
    traced,
    training,
)

pytestmark = pytest.mark.optimized


@functools.cache
def memory(count: int) -> int:
    """Bytes of everything that is alive at once in a wave of this size."""
    stats = traced(count).lower().compile().memory_analysis()
    return (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        + stats.temp_size_in_bytes
        - stats.alias_size_in_bytes
    )


def per_client() -> float:
    return (memory(8) - memory(2)) / 6


def test_memory_per_client_is_its_adapter_and_activations():
    """Less than one adapted kernel: not even that is copied."""
    made, (base, head) = spec(), base_and_head()
    trained = trees.size_bytes(made.shapes()) + trees.size_bytes(head)
    states = 8 * trained  # before, after, gradient, update, and two moments that a loop renews
    wide = 4 * HIDDEN  # the feed-forward layer
    activations = 4 * ROWS * WIDTH * (10 * HIDDEN + 4 * wide)
    kernel = 4 * HIDDEN * HIDDEN
    assert trained < per_client() < states + activations < 0.6 * kernel
    assert 40 * kernel < trees.size_bytes(base)


def test_base_is_in_memory_once():
    base = trees.size_bytes(base_and_head()[0])
    assert memory(2) - 2 * per_client() == pytest.approx(base, rel=0.01)


def arrays(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """The shape of every array that a program makes."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield tuple(getattr(variable.aval, "shape", ()))
        for value in equation.params.values():
            for sub in inner(value):
                yield from arrays(sub)


def copies(jaxpr: Any, count: int) -> set[tuple[int, ...]]:
    """Shapes that are a large base parameter's with a client axis."""
    large = {
        tuple(n for n in x.shape if n > 1)
        for x in jax.tree.leaves(base_and_head()[0])
        if np.prod(x.shape) >= HIDDEN * HIDDEN
    }
    return {
        shape
        for shape in set(arrays(jaxpr))
        if count in shape and tuple(n for n in shape if n not in (1, count)) in large
    }


def test_no_array_is_the_base_with_a_client_axis():
    count = 3
    program = traced(count).jaxpr.jaxpr
    seen = set(arrays(program))
    assert len(seen) > 50  # the walk does enter loops, branches and scans
    assert (count, 1, HIDDEN, RANK) in seen  # gradients of the factors
    assert copies(program, count) == set()


def test_no_array_is_the_base_with_a_client_axis_when_scoring():
    count, tokens, number = 3, struct(16, WIDTH, dtype=jnp.int32), struct(16, dtype=jnp.int32)
    objective = federated.text_classification(SequenceClassifier(CONFIG), (WIDTH,))
    rows = client_scoring.bucket_by_length(np.full(15, WIDTH), (WIDTH,), batch=5)
    validate = client_scoring.make_validate_fn(objective, rows)
    run = federated.execute(validate, federated.Execution(clients_per_step=count))
    data = Tokens(tokens, tokens, number, number)
    program = jax.jit(run).trace(base_and_head()[0], data, cohort(count), struct()).jaxpr.jaxpr
    assert (count, 5, WIDTH, HIDDEN) in set(arrays(program))
    assert copies(program, count) == set()


def test_search_detects_a_base_merged_per_client():
    """A base merged for each client, which this library avoids, is found by the search."""
    count, (base, _), made = 3, base_and_head(), cohort(3)
    merged = jax.vmap(lora.merge, in_axes=(None, 0, 0))
    program = jax.jit(merged).trace(base, made.params.adapter, made.gain).jaxpr.jaxpr
    assert copies(program, count) >= {(count, 1, HIDDEN, HIDDEN), (count, WORDS, HIDDEN)}


# ------------------------------------------------------------------------------------ whole rounds


@functools.cache
def compiled_round(shape: tuple[int, int] | None) -> Any:
    """A round of eight clients on a mesh of this shape, or on one device."""
    made, (base, head), count = spec(), base_and_head(), 8
    method = methods.make("zero_padding", made)
    mesh = federated.client_mesh(8, shape) if shape else None
    mode = "sharded" if shape else "vmap"
    execution = federated.Execution(mode=mode, clients_per_step=1, mesh=mesh)
    fn = federated.compile_round(method, training(), execution=execution)
    begin = lambda *given: federated.init_state(method, *given, clients=20, heads="average")  # noqa: E731
    state = jax.eval_shape(begin, made.shapes(), {}, head)
    number = functools.partial(struct, count, dtype=jnp.int32)
    tokens = Tokens(*[struct(16, WIDTH, dtype=jnp.int32)] * 2, *[struct(16, dtype=jnp.int32)] * 2)
    plan = federated.Plan(
        number(), number(), struct(count), cohort(count).batches, struct(),
        struct(dtype=jnp.int32),
    )  # fmt: skip
    if mesh is not None:
        put = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)  # noqa: E731
        everywhere = lambda x: put(x, federated.everywhere(mesh))  # noqa: E731
        base = jax.tree.map(put, base, federated.base_sharding(base, mesh))
        tokens, state = jax.tree.map(everywhere, (tokens, state))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return fn.lower(base, tokens, state, plan, key).compile()


def round_memory(shape: tuple[int, int] | None) -> tuple[int, int]:
    """Bytes on a device that go into a round, and that it makes."""
    stats = compiled_round(shape).memory_analysis()
    made_here = stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    return stats.argument_size_in_bytes, made_here


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        pytest.param(None, 1, marks=pytest.mark.slow),
        ((4, 2), 2),
        pytest.param((8, 1), 1, marks=pytest.mark.slow),
        pytest.param((2, 4), 4, marks=pytest.mark.slow),
    ],
)
def test_round_makes_no_copy_of_the_base(shape, parts):
    """The program's input is the base or a device's shard; no temporary is as large as a layer."""
    given, made = round_memory(shape)
    base = base_and_head()[0]
    kernels = sum(x.size * 4 for p, x in trees.flat(base).items() if p.endswith("/kernel"))
    size = trees.size_bytes(base)
    assert size / parts < given < 1.03 * size / parts
    assert made < 0.5 * kernels


def exchanged(text: str) -> list[hlo.Collective]:
    """The arrays that devices exchange in a compiled program."""
    return [one for line in text.splitlines() for one in hlo.read_collectives(line)]


def matrices() -> set[tuple[int, ...]]:
    """Shapes of the base's matrices: of a whole stack, and of one layer."""
    shapes = {x.shape for path, x in trees.flat(base_and_head()[0]).items() if len(x.shape) > 1}
    return shapes | {(1, *shape) for shape in shapes} | {shape[-2:] for shape in shapes}


def test_a_cut_base_is_never_gathered():
    """Devices that share a base send each other activations, and no matrix of the base."""
    sent = exchanged(compiled_round((4, 2)).as_text())
    assert sent and all(one.shape not in matrices() for one in sent)


def test_gathered_matrix_is_detected():
    base, mesh = base_and_head()[0], federated.client_mesh(8, (4, 2))
    put = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)  # noqa: E731
    cut = jax.tree.map(put, base, federated.base_sharding(base, mesh))
    kernel = next(x for path, x in trees.flat(cut).items() if path.endswith("/kernel"))
    gather = jax.jit(lambda x: x + 1, out_shardings=federated.everywhere(mesh))
    text = gather.lower(kernel).compile().as_text()
    assert {one.shape for one in exchanged(text)} & matrices()
