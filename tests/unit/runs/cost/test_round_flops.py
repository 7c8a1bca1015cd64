"""The arithmetic of a round: counted in the trace, by hand, and by XLA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import federated
from fedjax_lora.core import flops
from fedjax_lora.core.types import BatchShape
from fedjax_lora.data.batch_shapes import padded_shapes
from fedjax_lora.federated import Clients
from fedjax_lora.runs.cost import round_flops
from tests._helpers import encoder_layer as layer
from tests._helpers import problems

HIDDEN, ROWS, WIDTH, RANK = layer.HIDDEN, layer.ROWS, layer.WIDTH, layer.RANK


def by_hand() -> int:
    """A step of a client of `encoder_layer.CONFIG`, one layer with adapters on query and value.

    Products are counted as they appear, each twice its multiplications. Nothing below the adapters
    needs a gradient, so none goes through the kernels of query, key and value.
    """
    tokens = ROWS * WIDTH
    dense = lambda i, o: 2 * tokens * i * o  # noqa: E731
    square, wide = dense(HIDDEN, HIDDEN), dense(HIDDEN, 4 * HIDDEN)
    mixing = 2 * ROWS * WIDTH**2 * HIDDEN  # scores, or weighted values, of all heads
    low = dense(HIDDEN, RANK)
    forward = 4 * square + 2 * wide + 2 * mixing + 2 * (2 * low)
    # Through attention: to the values and the weights, and from these to the queries.
    backward = square + 2 * wide + 3 * mixing + 2 * (3 * low)
    head = 3 * (2 * ROWS * HIDDEN * layer.CONFIG.num_labels)  # it is trained
    return forward + backward + head


def of_step() -> tuple:
    objective = federated.text_classification(layer.SequenceClassifier(layer.CONFIG), (WIDTH,))
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), layer.cohort(1))
    tokens, number = layer.struct(16, WIDTH, dtype=jnp.int32), layer.struct(16, dtype=jnp.int32)
    data = layer.Tokens(tokens, tokens, number, number)
    index = layer.struct(ROWS, dtype=jnp.int32)
    batch = jax.eval_shape(lambda data, index: objective.take(data, index, WIDTH), data, index)

    def loss(trained, base, client: Clients, batch, valid):
        return objective.loss(base, trained, client.gain, None, batch, valid, client.key)

    valid = layer.struct(ROWS, dtype=bool)
    return jax.grad(loss), (one.params, layer.base_and_head()[0], one, batch, valid)


def test_traced_flops_match_a_hand_count():
    step, args = of_step()
    assert flops.of(step, *args) == by_hand()


def test_traced_flops_of_a_group_of_clients_match_xla():
    """And a few per cent more: norms, activations, softmax and the optimizer, element by element.

    XLA counts the loop over the steps once. Clients add up, and the base's products are not done
    for each of them again: that would be counted here too.
    """
    for count in (1, 3):
        counted = layer.traced(count).lower().cost_analysis()["flops"]
        assert 1.0 < counted / (count * by_hand()) < 1.05


def plan_with(*work: list[list[int]], longest: list[list[int]]) -> federated.Plan:
    """A plan whose clients take these batches, whose longest texts have so many tokens."""
    count = len(work)
    batches = problems.batches_of(*work, size=4, steps=2, longest=np.array(longest))
    some = np.ones(count, np.int32)
    return federated.Plan(some, some, some, batches, np.float32(0), np.int32(0))


def test_group_of_clients_steps_in_the_shape_of_its_largest_batch():
    shapes = (
        BatchShape(2, 8, 16),
        BatchShape(2, 16, 32),
        BatchShape(4, 8, 32),
        BatchShape(4, 16, 64),
    )
    each = dict(zip(shapes, (1, 100, 10, 1000), strict=True))
    count = functools.partial(round_flops.cohort_sum, by_shape=each)
    plan = plan_with(
        [[0, 1, 2], [3]],  # four rows short, then two rows long
        [[0]],  # two rows long
        [[0, 1]],
        [],
        longest=[[8, 9], [16, 1], [3, 1], [16, 16]],
    )
    assert count(plan, parts=1, clients_per_step=1) == (10 + 100) + 100 + 1
    assert count(plan, parts=1, clients_per_step=2) == 2 * (1000 + 100) + 2 * 1
    assert count(plan, parts=2, clients_per_step=1) == (10 + 100) + 100
    assert (
        count(plan, parts=2, clients_per_step=2)
        == count(plan, parts=2, clients_per_step=9)
        == 2 * (1000 + 100)
    )


def test_product_rate_is_measured():
    rate = round_flops.product_rate("float32", seconds=0.05)
    assert 1e8 < rate < 1e15


@pytest.mark.parametrize(("lengths", "rows"), [((16,), (4,)), ((8, 16), (2, 4))])
def test_program_has_one_step_for_each_batch_shape(lengths, rows):
    """As many as --explain reports: one for each length and batch size."""
    made = problems.bag()
    start = problems.make_clients(made, problems.plan_for(made))
    train = problems.training("bag", shapes=padded_shapes(rows, lengths))
    program = jax.make_jaxpr(train)(made.base, made.data, start, 0.1).jaxpr

    def branches(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "cond":
                yield len(equation.params["branches"])
            for value in equation.params.values():
                for inner in layer.inner(value):
                    yield from branches(inner)

    shapes = len(lengths) * len(rows)
    assert [count for count in branches(program) if count > 2] == [shapes] * (shapes > 2)
