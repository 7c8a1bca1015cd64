"""Run an unmodified Flax NNX model with an adapter, without merging the base.

`split` divides a module into its parameters, nested dictionaries as everywhere in this package,
and an `AdaptedModule`, a pure function of parameters, adapter, gain and inputs:

>>> import jax, jax.numpy as jnp
>>> from flax import nnx as flax_nnx
>>> from fedjax_lora import lora
>>> layer = flax_nnx.Sequential(flax_nnx.Linear(4, 3, rngs=flax_nnx.Rngs(0)))
>>> model, params = split(layer)
>>> spec = lora.make_spec(params, targets="layers/0", rank=1)
>>> adapter = jax.tree.map(jnp.ones_like, lora.init(spec, jax.random.key(1)))
>>> x = jnp.ones((1, 4))
>>> y = model(params, adapter, lora.uniform_gain(spec), x)
>>> (y - layer(x)).round(4).tolist()  # 4 inputs of 1
[[4.0, 4.0, 4.0]]

`AdaptedModule` is what `fedjax_lora.federated.local_training` takes in place of a Linen module.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Hashable, Mapping
from typing import Any, cast

import jax
from flax import nnx
from flax.typing import PathParts
from jaxtyping import Array

from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import Adapter, Gain, Params, PyTree
from fedjax_lora.lora import kernels, products
from fedjax_lora.lora.apply import check_reached, has_own_product

__all__ = ["AdaptedModule", "split"]


@dataclasses.dataclass(frozen=True, eq=False)
class AdaptedModule:
    """An NNX module as a pure function; made by `split`.

    Attributes:
      graphdef: the structure of the module.
      variables: its parameters as NNX variables, for their types and metadata.
      rest: all other variables (batch statistics, random keys), as they were at `split`.
    """

    graphdef: nnx.GraphDef
    variables: Mapping[tuple[Hashable, ...], nnx.Variable]
    rest: nnx.State

    def __call__(
        self,
        params: Params,
        adapter: Adapter,
        gain: Gain,
        /,
        *args: PyTree,
        fixed: Gain | None = None,
        dropout: float = 0.0,
        key: Array | None = None,
        allow_unused: bool = False,
        method: str = "__call__",
        **kwargs: Any,
    ) -> PyTree:
        """Return ``module(*args, **kwargs)`` of the adapted model.

        The result is that of the merged parameters. Layers that run the ``__call__`` of
        ``nnx.Linear``, ``nnx.LinearGeneral`` or ``nnx.Einsum`` (``nnx.MultiHeadAttention`` is made
        of these) add the low-rank term to their output; any other use of an adapted kernel reads
        the merged kernel, one per client under `vmap`. Changes of state (batch statistics, counts
        of random keys) are discarded: pass ``rngs`` to layers that drop activations.

        Args:
          params: the base parameters.
          adapter: factors by path.
          gain: multipliers of the components by path.
          *args: inputs of the module.
          fixed: gains of components whose inputs are not dropped.
          dropout: rate at which inputs of the components in ``gain`` are dropped.
          key: key of this dropout.
          allow_unused: accept adapters that this call does not use.
          method: name of the method to call.
          **kwargs: further inputs of the module.

        Raises:
          InputError: an adapter without a kernel of its size, an adapter that no part of the
            computation uses, a layer that cannot be adapted, or a dropout without a key.
        """
        if dropout and key is None:
            raise InputError("The LoRA dropout of an NNX module needs a key; pass key=.")
        keys = _keys_of_layers(adapter, key) if dropout and key is not None else None

        def run(trace: object, *inputs: Any) -> Any:
            adapted = kernels.attach(
                params, adapter, gain, fixed=fixed, dropout=dropout, keys=keys, trace=trace
            )
            module = self.merge(adapted)
            _adapt_layers(module, adapter)
            return getattr(module, method)(*inputs, **kwargs)

        return check_reached(run, adapter, args, allow_unused=allow_unused)

    def merge(self, params: Params) -> nnx.Module:
        """Return a module with these parameters, for example merged ones.

        Args:
          params: nested dictionaries as `split` returns them.
        """
        values = trees.flat(params)
        flat = [(path, v.replace(values[_join(path)])) for path, v in self.variables.items()]
        state = nnx.from_flat_state(cast(list[tuple[PathParts, nnx.Variable]], flat))
        return nnx.merge(self.graphdef, state, self.rest)


def split(module: nnx.Module) -> tuple[AdaptedModule, Params]:
    """Divide a module into a pure function and its parameters.

    The module itself is not changed. Paths are attribute names and positions in lists:
    ``layers/0/attention/query``.

    Args:
      module: any NNX module.

    Returns:
      The function, and all variables of type ``nnx.Param`` as nested dictionaries of arrays.
    """
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    variables: dict[tuple[Hashable, ...], nnx.Variable] = dict(nnx.to_flat_state(params))
    values = {_join(path): variable.get_value() for path, variable in variables.items()}
    return AdaptedModule(graphdef, variables, rest), trees.nested(values)


def _join(path: tuple[Hashable, ...]) -> str:
    return "/".join(map(str, path))


def _keys_of_layers(adapter: Adapter, key: Array) -> dict[str, Array]:
    """A key for every adapted layer, ``[(L,)]``."""
    keys = {}
    for n, (path, pair) in enumerate(sorted(adapter.items())):
        own = jax.random.fold_in(key, n)
        keys[path] = jax.random.split(own, pair.a.shape[:-2]) if pair.a.ndim > 2 else own
    return keys


def _adapt_layers(module: Any, adapter: Adapter) -> None:
    """Give the adapted layers of a module classes that add the low-rank term.

    The module is one that `AdaptedModule.merge` has just built, so nobody else sees the change.
    """
    for path, layer in nnx.iter_modules(module):
        if _join(path) not in adapter or has_own_product(layer):
            continue
        if (cls := _adapted_class(type(layer))) is not None:
            layer.__class__ = cls


@functools.cache
def _adapted_class(cls: Any) -> type | None:
    """A subclass that adds the low-rank term, or None where ``__call__`` is not one of Flax's."""
    form_of = _FORMS.get(cls.__call__)
    if form_of is None:
        return None

    def call(self: Any, inputs: Array, *args: Any, **kwargs: Any) -> Array:
        kernel = self.kernel.get_value()
        form = form_of(self, kernel, args, kwargs)
        with kernels.base_kernels_only():
            y = cls.__call__(self, inputs, *args, **kwargs)
        return y + kernel.term(form, inputs, lambda: kernel.key).astype(y.dtype)

    return types.new_class(
        f"Adapted{cls.__name__}", (cls,), exec_body=lambda body: body.update(__call__=call)
    )


def _linear(layer: Any, kernel: Any, args: tuple, kwargs: dict) -> products.Term:
    del layer, kernel, args, kwargs
    return products.last_axis


def _linear_general(layer: Any, kernel: Any, args: tuple, kwargs: dict) -> products.Term:
    del kernel, args, kwargs
    return products.general(layer.axis, tuple(layer.batch_axis))


def _einsum(layer: Any, kernel: Any, args: tuple, kwargs: dict) -> products.Term:
    del kernel
    equation = args[0] if args else kwargs.get("einsum_str")
    return products.einsum(equation or layer.einsum_str)


def _convolution(layer: Any, kernel: Any, args: tuple, kwargs: dict) -> products.Term:
    del layer, args, kwargs
    raise products.convolution_error(kernel.path)


_FORMS: Mapping[Any, Callable[..., products.Term]] = {
    nnx.Linear.__call__: _linear,
    nnx.LinearGeneral.__call__: _linear_general,
    nnx.Einsum.__call__: _einsum,
    nnx.Conv.__call__: _convolution,
    nnx.ConvTranspose.__call__: _convolution,
}
"""How each linear layer of NNX multiplies by its kernel."""
