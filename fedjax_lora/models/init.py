"""New parameters, initialised as Hugging Face does: normal kernels and tables, zero biases."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora.core import quantization, trees
from fedjax_lora.models.module_types import Config, module_of


def random_params(config: Config, key: jax.Array) -> dict[str, Any]:
    """Random parameters of the module that a config describes."""
    return tree(draw(config, shapes(config), key))


def tree(values: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by path as a tree; a model without a head has an empty one."""
    return {"head": {}} | trees.nested(values)


def abstract_params(config: Config, storage: str = "float32") -> dict[str, Any]:
    """The parameters as `jax.ShapeDtypeStruct` leaves: to count bytes, or to compile with."""

    def leaf(path: str, shape: tuple[int, ...]) -> Any:
        made = jax.ShapeDtypeStruct(shape, quantization.dtype_of(path, storage))
        if not quantization.is_encoded(path, storage):
            return made
        codes = jax.eval_shape(
            lambda x: quantization.encode(x, storage), jax.ShapeDtypeStruct(shape[-2:], jnp.float32)
        )
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*shape[:-2], *x.shape), x.dtype), codes)

    return tree({path: leaf(path, shape) for path, shape in shapes(config).items()})


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by path; nothing is computed."""
    ids, mask = np.zeros((1, 1), np.int32), np.ones((1, 1), np.bool_)
    init = lambda key: module_of(config).init(key, ids, mask)  # noqa: E731
    made: Any = jax.eval_shape(init, jax.random.key(0))
    return {path: leaf.shape for path, leaf in trees.flat(made["params"]).items()}


def draw(config: Config, paths: Iterable[str], key: jax.Array) -> dict[str, jax.Array]:
    """The parameters at `paths`, which are drawn together: a different set, different values."""
    wanted = {path: shape for path, shape in sorted(shapes(config).items()) if path in set(paths)}
    # One draw for all of them compiles much faster than one for each.
    random = {path: math.prod(shape) for path, shape in wanted.items() if _is_random(path)}
    numbers = config.initializer_range * jax.random.normal(key, (sum(random.values()),))
    cuts = np.cumsum([*random.values()])[:-1].tolist()
    parts = dict(zip(random, jnp.split(numbers, cuts), strict=True)) if random else {}
    return {
        path: parts[path].reshape(shape) if path in parts else _constant(path, shape)
        for path, shape in wanted.items()
    }


def _is_random(path: str) -> bool:
    return path.endswith(("/kernel", "/embedding"))


def _constant(path: str, shape: tuple[int, ...]) -> jax.Array:
    return jnp.ones(shape) if path.endswith("/scale") else jnp.zeros(shape)
