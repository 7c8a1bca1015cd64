"""Run an unmodified Flax Linen model with an adapter added to its activations.

The base is never merged per client: under `vmap` over clients with the base unbatched, each frozen
matmul stays one large product over all clients' tokens. ``nn.intercept_methods`` sees every layer
call; a layer whose path holds a variable in the collection ``lora`` gets the low-rank term added.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_lora.core import trees
from fedjax_lora.core.errors import raise_all
from fedjax_lora.core.types import Adapter, Gain

COLLECTION = "lora"


def apply(
    module: nn.Module,
    params: Mapping[str, Any],
    adapter: Adapter,
    gain: Gain,
    *args: Any,
    fixed: Gain | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> Any:
    """``module.apply({"params": params}, *args, **kwargs)`` with the adapter's terms added.

    Args:
      module: any Linen module whose adapted layers are called as ``layer(x)``. Stacked layers must
        be scanned with ``variable_axes={True: 0}``, so that further collections are scanned too.
      params: the base parameters.
      adapter: factors by path, see `fedjax_lora.lora.init`.
      gain: per component, see `fedjax_lora.lora.uniform_gain`.
      *args: inputs of the module.
      fixed: gains of components that take part without dropout (modules folded into the base).
        With ``dropout`` 0 they may as well be part of ``gain``.
      dropout: rate at which inputs of the components in ``gain`` are dropped; needs an rng named
        ``dropout`` in ``kwargs["rngs"]``.
      **kwargs: passed on to ``module.apply``.

    Raises:
      InputError: an adapter for a layer that the parameters do not have (it would do nothing).
    """
    _check_paths(params, adapter)
    extra = {
        path: {"a": pair.a, "b": pair.b, "gain": gain[path]}
        | ({} if fixed is None else {"fixed": fixed[path]})
        for path, pair in adapter.items()
    }
    variables = {"params": params, COLLECTION: trees.nested(extra)}
    with nn.intercept_methods(_add_low_rank_term(dropout)):
        return module.apply(variables, *args, **kwargs)


def _check_paths(params: Mapping[str, Any], adapter: Adapter) -> None:
    layers = {path.rpartition("/")[0] for path in trees.flat(params)}
    absent = [path for path in adapter if path not in layers]
    raise_all("The adapter belongs to another model", [f"{path} is no layer" for path in absent])


def _add_low_rank_term(rate: float) -> Callable[..., Any]:
    def interceptor(next_fun: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        y = next_fun(*args, **kwargs)
        layer = context.module
        if context.method_name != "__call__" or not layer.has_variable(COLLECTION, "a"):
            return y
        read = lambda name: layer.get_variable(COLLECTION, name)  # noqa: E731
        x = args[0]
        gain = read("gain")
        if rate == 0.0:
            total = gain + read("fixed") if layer.has_variable(COLLECTION, "fixed") else gain
            return y + low_rank_term(x, read("a"), read("b"), total).astype(y.dtype)
        kept = _drop(x, layer.make_rng("dropout"), rate)
        y = y + low_rank_term(kept, read("a"), read("b"), gain).astype(y.dtype)
        if layer.has_variable(COLLECTION, "fixed"):
            y = y + low_rank_term(x, read("a"), read("b"), read("fixed")).astype(y.dtype)
        return y

    return interceptor


def low_rank_term(
    x: Float[Array, "*n i"],
    a: Float[Array, "i R"],
    b: Float[Array, "R o"],
    gain: Float[Array, "R"],
) -> Float[Array, "*n o"]:
    """``((x @ a) * gain) @ b`` in the dtype of ``x``."""
    a, b, gain = (z.astype(x.dtype) for z in (a, b, gain))
    hidden = x @ a
    return (hidden * gain.reshape((1,) * (hidden.ndim - 1) + gain.shape)) @ b


def _drop(x: Array, key: Array, rate: float) -> Array:
    kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros((), x.dtype))
