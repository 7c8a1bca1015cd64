"""New parameters, initialised as Hugging Face does: normal kernels and tables, zero biases."""

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import trees
from fedjax_lora.models.config import EncoderConfig
from fedjax_lora.models.heads import SequenceClassifier


def random_params(config: EncoderConfig, key: jax.Array) -> dict[str, Any]:
    """Random parameters ``{'encoder': ..., 'head': ...}`` of a `SequenceClassifier`."""
    return trees.nested(draw(config, shapes(config), key))


def shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by path; nothing is computed."""
    ids, mask = np.zeros((1, 1), np.int32), np.ones((1, 1), np.bool_)
    init = lambda key: SequenceClassifier(config).init(key, ids, mask)  # noqa: E731
    tree: Any = jax.eval_shape(init, jax.random.key(0))
    return {path: leaf.shape for path, leaf in trees.flat(tree["params"]).items()}


def draw(config: EncoderConfig, paths: Iterable[str], key: jax.Array) -> dict[str, jax.Array]:
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
