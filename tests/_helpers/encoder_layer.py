"""One layer of an encoder without weights: shapes to trace and compile a cohort's training."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lora import federated, lora
from fedjax_lora.core import trees
from fedjax_lora.core.types import Batches, ClientParams, LoRA
from fedjax_lora.data import Tokens
from fedjax_lora.federated import Clients, optimizers
from fedjax_lora.lora import LoraSpec
from fedjax_lora.models import EncoderConfig, SequenceClassifier
from fedjax_lora.models.init import shapes

HIDDEN, WORDS, RANK = 512, 20_000, 4
ROWS, WIDTH, STEPS = 1, 4, 2

CONFIG = EncoderConfig(
    family="bert", vocab_size=WORDS, hidden=HIDDEN, layers=1, heads=4, intermediate=4 * HIDDEN,
    type_vocab=2, max_positions=16, pad_token_id=0, embedding_size=HIDDEN, num_labels=4,
    hidden_dropout=0.0, attention_dropout=0.0, head_dropout=0.0, initializer_range=0.02,
    pooling="mean",
)  # fmt: skip


def struct(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def base_and_head() -> tuple[dict, dict]:
    params = trees.nested({path: struct(*shape) for path, shape in shapes(CONFIG).items()})
    return {name: part for name, part in params.items() if name != "head"}, params["head"]


def spec() -> LoraSpec:
    return lora.make_spec(base_and_head()[0], rank=RANK)


def cohort(count: int) -> Clients:
    """A cohort of this size, without values."""
    add = lambda tree: jax.tree.map(lambda x: struct(count, *x.shape, dtype=x.dtype), tree)  # noqa: E731
    made, (_, head) = spec(), base_and_head()
    mask = {
        s.path: LoRA(
            struct(count, *s.stack, 1, RANK, dtype=bool),
            struct(count, *s.stack, RANK, 1, dtype=bool),
        )
        for s in made.targets
    }
    learns = jax.tree.map(lambda x: struct(count, *(1,) * x.ndim, dtype=bool), head)
    number = functools.partial(struct, count, dtype=jnp.int32)
    return Clients(
        params=ClientParams(add(made.shapes()), add(head)),
        gain={s.path: struct(count, *s.stack, RANK) for s in made.targets},
        trainable=ClientParams(mask, learns),
        rank=number(),
        batches=Batches(
            index=number(STEPS, ROWS),
            valid=struct(count, STEPS, ROWS, dtype=bool),
            steps=number(),
            longest=number(STEPS),
            tokens=number(STEPS),
        ),
        key=jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count)),
    )


def training() -> Any:
    objective = federated.text_classification(SequenceClassifier(CONFIG), (WIDTH,))
    return federated.LocalTraining(objective, optimizers.optimizer("adamw", clip=1.0))


@functools.cache
def traced(count: int) -> Any:
    tokens = struct(16, WIDTH, dtype=jnp.int32)
    number = struct(16, dtype=jnp.int32)
    data = Tokens(tokens, tokens, number, number)
    run = federated.execute(training(), federated.Execution(clients_per_step=count))
    return jax.jit(run).trace(base_and_head()[0], data, cohort(count), struct())


def inner(value: Any) -> Iterator[Any]:
    """The jaxprs inside the parameters of an equation."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from inner(item)
    elif hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr"):
        yield from inner(value.jaxpr)
