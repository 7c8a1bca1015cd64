"""Parameter initialisation as in Hugging Face: normal kernels and tables, zero biases."""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora.core import quantization, trees
from fedjax_lora.core.types import PyTree
from fedjax_lora.models.module_types import Config, module_of


def random_params(config: Config, key: jax.Array) -> dict[str, PyTree]:
    """Draw random parameters of the module that a config describes."""
    return tree(draw(config, shapes(config), key))


def tree(values: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Nest parameters by path into a tree, with an empty head if there is none."""
    return {"head": {}} | trees.nested(values)


def abstract_params(config: Config, storage: str = "float32") -> dict[str, PyTree]:
    """Parameters as `jax.ShapeDtypeStruct` leaves, for counting bytes or compiling."""

    def leaf(path: str, shape: tuple[int, ...]) -> Any:
        if not quantization.is_encoded(path, storage):
            return jax.ShapeDtypeStruct(shape, quantization.dtype_of(path, storage))
        codes = jax.eval_shape(
            lambda x: quantization.encode(x, storage), jax.ShapeDtypeStruct(shape[-2:], jnp.float32)
        )
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*shape[:-2], *x.shape), x.dtype), codes)

    return tree({path: leaf(path, shape) for path, shape in shapes(config).items()})


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter, by path; no array is computed."""
    return dict(_shapes(config))


@functools.lru_cache(maxsize=32)  # a model that is loaded asks several times, and tracing is slow
def _shapes(config: Config) -> Mapping[str, tuple[int, ...]]:
    ids, mask = np.zeros((1, 1), np.int32), np.ones((1, 1), np.bool_)
    init = lambda key: module_of(config).init(key, ids, mask)  # noqa: E731
    variables: Any = jax.eval_shape(init, jax.random.key(0))
    return {path: leaf.shape for path, leaf in trees.flat(variables["params"]).items()}


def draw(config: Config, paths: Iterable[str], key: jax.Array) -> dict[str, jax.Array]:
    """Draw the parameters at `paths` jointly: their values depend on the whole set of paths."""
    selected = {path: shape for path, shape in sorted(shapes(config).items()) if path in set(paths)}
    # A joint draw compiles much faster than one draw per parameter.
    random = {path: math.prod(shape) for path, shape in selected.items() if _is_random(path)}
    numbers = config.initializer_range * jax.random.normal(key, (sum(random.values()),))
    cuts = np.cumsum([*random.values()])[:-1].tolist()
    parts = dict(zip(random, jnp.split(numbers, cuts), strict=True)) if random else {}
    return {
        path: parts[path].reshape(shape) if path in parts else _constant(path, shape)
        for path, shape in selected.items()
    }


def _is_random(path: str) -> bool:
    return path.endswith(("/kernel", "/embedding"))


def _constant(path: str, shape: tuple[int, ...]) -> jax.Array:
    return jnp.ones(shape) if path.endswith("/scale") else jnp.zeros(shape)
