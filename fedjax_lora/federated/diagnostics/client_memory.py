"""What a real client would have to hold in memory to do its part of a round.

The simulation holds the base once and every adapter at rank `R`; these are the numbers of a client
alone on its device, from the masks it begins with, by the same code for every method. Activations
are not counted: they depend on batch, length and implementation, not on the method.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from fedjax_lora import lora
from fedjax_lora.core import trees
from fedjax_lora.core.types import ClientParams, Params
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods import ClientInit
from fedjax_lora.methods.base import FLOAT_BYTES


class ClientMemory(NamedTuple):
    """Bytes per client, ``int64[c]``, but for ``trained``."""

    base: np.ndarray  # the frozen model, the same for all
    adapter: np.ndarray  # components that act, both factors
    head: np.ndarray
    trained: np.ndarray  # how many numbers the client trains, adapter and head
    gradient: np.ndarray
    optimizer: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """Bytes of everything, ``int64[c]``."""
        return self.base + self.adapter + self.head + self.gradient + self.optimizer


def estimate_client_memory(
    spec: LoraSpec,
    start: ClientInit,
    *,
    base: Params,
    head: Params,
    train_head: bool,
    optimizer: optax.GradientTransformation,
) -> ClientMemory:
    """The memory of each client of a cohort, on the host.

    A module that acts but is not trained (folded, in Fed-PLoRA) counts as part of the adapter, not
    as a copy of the kernel it is folded into.

    Args:
      spec: the sites.
      start: what the clients begin with.
      base: the frozen model without its head, arrays or shapes.
      head: the task head, arrays or shapes.
      train_head: whether clients train it.
      optimizer: of local training. Its state is what it is for the whole adapter and head, in
        proportion to the numbers trained, plus its scalars.
    """
    trained = trained_entries(spec, start)
    acting = [
        np.count_nonzero(np.asarray(start.gain[s.path]).reshape(len(trained), -1), axis=1)
        * (s.inputs + s.outputs + bool(start.coefficients))
        for s in spec.targets
    ]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), head)
    per_number, scalars = _state_bytes(optimizer, ClientParams(spec.shapes(), shapes))
    if train_head:
        trained = trained + sum(x.size for x in jax.tree.leaves(head))
    alike = lambda size: np.full_like(trained, size)  # noqa: E731
    return ClientMemory(
        base=alike(trees.size_bytes(base)),
        adapter=FLOAT_BYTES * sum(acting, start=alike(0)),
        head=alike(trees.size_bytes(head)),
        trained=trained,
        gradient=FLOAT_BYTES * trained,
        optimizer=np.rint(per_number * trained).astype(np.int64) + scalars,
    )


def trained_entries(spec: LoraSpec, start: ClientInit) -> np.ndarray:
    """How many numbers of its adapter each client trains, by the masks: ``int64[c]``."""

    def leaf(mask: Any, full: Any) -> np.ndarray:
        rows = np.asarray(mask).reshape(len(mask), -1)
        return np.count_nonzero(rows, axis=1) * (full.size // rows.shape[1])

    counts = jax.tree.leaves(jax.tree.map(leaf, start.trainable, spec.shapes()))
    if start.coefficients:
        trains = lora.masked_components(start.trainable)
        counts += [leaf(trains[path], x[0]) for path, x in start.coefficients.items()]
    return np.sum(counts, axis=0, dtype=np.int64)


def _state_bytes(optimizer: optax.GradientTransformation, params: Any) -> tuple[float, int]:
    """Bytes of the optimizer's state per trained number, and of its scalars."""
    with jax.numpy_dtype_promotion("standard"):  # as optax is written
        state = jax.tree.leaves(jax.eval_shape(optimizer.init, params))
    numbers = sum(x.size for x in jax.tree.leaves(params))
    arrays = [x for x in state if x.ndim > 0]
    scalars = [x for x in state if x.ndim == 0]
    return trees.size_bytes(arrays) / numbers, trees.size_bytes(scalars)
