"""Memory of a client on its own device during local training.

The simulation stores the base once and every adapter at rank `R`. These are the numbers of a real
client, computed from its masks at the start of the round by the same code for every method.
Activations are not counted: they depend on batch, length and implementation, not on the method.
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
    """Memory per client in bytes, ``int64[c]``; ``trained`` is a number of parameters."""

    base: np.ndarray  # the frozen model, the same for all clients
    adapter: np.ndarray  # both factors of the active components
    head: np.ndarray
    trained: np.ndarray  # number of trained parameters, adapter and head
    gradient: np.ndarray
    optimizer: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """Total bytes, ``int64[c]``."""
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
    """Estimate the memory of each client of a cohort, on the host.

    A component that is active but not trained (folded, in Fed-PLoRA) counts as part of the adapter,
    not as a copy of the kernel it is folded into.

    Args:
      spec: the adapted layers.
      start: start parameters and masks of the clients.
      base: the frozen model without its head, arrays or shapes.
      head: the task head, arrays or shapes.
      train_head: whether clients train the head.
      optimizer: of local training. The size of its arrays is scaled from the whole adapter and head
        to the trained parameters; its scalars are added.
    """
    trained = trained_entries(spec, start)
    active = [
        np.count_nonzero(np.asarray(start.gain[s.path]).reshape(len(trained), -1), axis=1)
        * (s.inputs + s.outputs + _coefficients_of_each(start, s.path))
        for s in spec.targets
    ]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), head)
    per_number, scalars = _state_bytes(optimizer, ClientParams(spec.shapes(), shapes))
    if train_head:
        trained = trained + sum(x.size for x in jax.tree.leaves(head))
    for_all = lambda size: np.full_like(trained, size)  # noqa: E731
    return ClientMemory(
        base=for_all(trees.size_bytes(base)),
        adapter=FLOAT_BYTES * sum(active, start=for_all(0)),
        head=for_all(trees.size_bytes(head)),
        trained=trained,
        gradient=FLOAT_BYTES * trained,
        optimizer=np.rint(per_number * trained).astype(np.int64) + scalars,
    )


def trained_entries(spec: LoraSpec, start: ClientInit) -> np.ndarray:
    """Count the adapter parameters that each client trains, from its masks: ``int64[c]``."""

    def leaf(mask: Any, full: Any) -> np.ndarray:
        rows = np.asarray(mask).reshape(len(mask), -1)
        return np.count_nonzero(rows, axis=1) * (full.size // rows.shape[1])

    counts = jax.tree.leaves(jax.tree.map(leaf, start.trainable, spec.shapes()))
    if start.coefficients:
        trains = start.trained_coefficients or lora.masked_components(start.trainable)
        counts += [leaf(trains[path], x[0]) for path, x in start.coefficients.items()]
    return np.sum(counts, axis=0, dtype=np.int64)


def _coefficients_of_each(start: ClientInit, path: str) -> int:
    """How many coefficients a component has: one, a row of a core, or none."""
    if not start.coefficients:
        return 0
    sizes, gain = start.coefficients[path], start.gain[path]
    return sizes.shape[-1] if sizes.ndim > gain.ndim else 1


def _state_bytes(optimizer: optax.GradientTransformation, params: Any) -> tuple[float, int]:
    """Bytes of the optimizer's state per trained number, and of its scalars."""
    with jax.numpy_dtype_promotion("standard"):  # optax relies on JAX's standard promotion rules
        state = jax.tree.leaves(jax.eval_shape(optimizer.init, params))
    numbers = sum(x.size for x in jax.tree.leaves(params))
    arrays = [x for x in state if x.ndim > 0]
    scalars = [x for x in state if x.ndim == 0]
    return trees.size_bytes(arrays) / numbers, trees.size_bytes(scalars)
