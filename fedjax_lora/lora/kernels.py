"""Base kernels that carry their low-rank term.

`AdaptedKernel` takes the place of a kernel in the parameter tree. It is a pytree with the base
kernel and the factors as leaves, so whatever slices, maps or recomputes parameters (a scan over
layers, a vmap over an ensemble, rematerialisation) does the same to the factors.

A linear layer reads the base kernel alone (`base_kernels_only`) and adds `AdaptedKernel.term` to
its output, so the base is never merged. Any other code that reads the kernel gets the merged array
``W + (a * gain) @ b``: right for every use, at the cost of one merged kernel per client.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fedjax_lora.core import quantization, trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import Adapter, Gain, LoRA, Params, PyTree
from fedjax_lora.lora import params as lora_params
from fedjax_lora.lora import products

_BASE_ONLY: contextvars.ContextVar[bool] = contextvars.ContextVar("base_only", default=False)
_REACHED: contextvars.ContextVar[set[str] | None] = contextvars.ContextVar("reached", default=None)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("kernel", "a", "b", "gain", "fixed", "key", "guard"),
    meta_fields=("path", "dropout", "trace"),
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AdaptedKernel:
    """A base kernel with its low-rank term, not multiplied out.

    Attributes:
      kernel: the base kernel, ``[(L,) i..., o...]``, an array or codes.
      a: ``[(L,) i, R]``, where `i` is the product of the input axes.
      b: ``[(L,) R, o]``, where `o` is the product of the output axes.
      gain: multiplier of each component, ``[(L,) R]``.
      fixed: gains of components whose inputs are not dropped, or None.
      key: key of the input dropout, ``[(L,)]``; None where the layer draws one itself.
      guard: keys, ``[(L,) R]``, that are never used. They can be sliced and mapped as the factors
        can, but arithmetic on them is an error in JAX, so a model that computes with the leaves
        of its parameters cannot silently change each factor instead of the merged kernel.
      path: path of the layer.
      dropout: rate at which inputs of the components in ``gain`` are dropped.
      trace: distinguishes traces, see `reached_paths`.
    """

    # JAX also builds it from other leaves, such as axes of a vmap.
    kernel: PyTree
    a: PyTree
    b: PyTree
    gain: PyTree
    fixed: PyTree
    key: PyTree
    guard: PyTree
    path: str
    dropout: float = 0.0
    trace: object = None

    def __repr__(self) -> str:
        return f"AdaptedKernel({self.path!r})"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the base kernel."""
        return lora_params.shape_of(self.kernel)

    @property
    def ndim(self) -> int:
        """The number of axes of the base kernel."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the base kernel."""
        return self.kernel.dtype

    @property
    def total_gain(self) -> Array:
        """The multipliers of all components, those that are never dropped included."""
        return self.gain if self.fixed is None else self.gain + self.fixed

    def mark_reached(self) -> None:
        """Record that the computation uses this kernel."""
        reached = _REACHED.get()
        if reached is not None:
            reached.add(self.path)

    def read(self) -> PyTree:
        """Return the base kernel inside a linear layer, and the merged array elsewhere.

        Raises:
          InputError: a merged kernel is read while inputs are dropped.
        """
        self.mark_reached()
        if _BASE_ONLY.get():
            return self.kernel
        if self.dropout:
            raise InputError(
                f"The kernel of {self.path} is read outside of a Flax linear layer, where inputs "
                "cannot be dropped; set the LoRA dropout to 0 or leave the layer out of the "
                "targets."
            )
        return lora_params.add_product(self.kernel, LoRA(self.a, self.b), self.total_gain)

    def term(self, form: products.Term, x: Array, draw_key: Callable[[], Array]) -> Array:
        """Return what the adapter adds to the output of its layer.

        Args:
          form: the layer's product with the factors, see `fedjax_lora.lora.products`.
          x: the layer's input.
          draw_key: returns the key of the input dropout; called only where there is any.
        """
        self.mark_reached()
        if not self.dropout:
            return form(x, self, self.total_gain)
        y = form(products.drop(x, draw_key(), self.dropout), self, self.gain)
        return y if self.fixed is None else y + form(x, self, self.fixed)

    def __jax_array__(self) -> Array:
        kernel = self.read()
        return quantization.dequantize(kernel, kernel.dtype)

    def __getitem__(self, index: Any) -> Any:
        # NNX reads a variable as variable[...].
        return self if index is Ellipsis else jnp.asarray(self)[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.read(), name)


def _forward_operator(name: str) -> None:
    def operator(self: AdaptedKernel, *others: Any) -> Any:
        return getattr(jnp.asarray(self), name)(*others)

    setattr(AdaptedKernel, name, operator)


# Python looks operators up in the class, where __getattr__ does not reach.
for _name in ("add", "sub", "mul", "truediv", "pow", "matmul"):
    _forward_operator(f"__{_name}__")
    _forward_operator(f"__r{_name}__")
for _name in ("neg", "abs", "lt", "le", "gt", "ge"):
    _forward_operator(f"__{_name}__")


@contextlib.contextmanager
def base_kernels_only() -> Iterator[None]:
    """Read kernels without their low-rank terms, which the caller adds to the layer's output."""
    token = _BASE_ONLY.set(True)
    try:
        yield
    finally:
        _BASE_ONLY.reset(token)


@contextlib.contextmanager
def reached_paths() -> Iterator[set[str]]:
    """Collect the paths of the adapted kernels that are used while the context is active.

    The set is filled while Python runs, that is at trace time. A trace that JAX has cached (of a
    jitted function inside the model) adds nothing; kernels with another ``trace`` have another
    tree structure, with which JAX traces again.
    """
    reached: set[str] = set()
    token = _REACHED.set(reached)
    try:
        yield reached
    finally:
        _REACHED.reset(token)


def attach(
    params: Params,
    adapter: Adapter,
    gain: Gain,
    *,
    fixed: Gain | None = None,
    dropout: float = 0.0,
    keys: Mapping[str, Array] | None = None,
    trace: object = None,
) -> Params:
    """Return the parameters with an `AdaptedKernel` in place of each adapted kernel.

    Args:
      params: the base parameters.
      adapter: factors by path.
      gain: multipliers of the components by path.
      fixed: gains of components whose inputs are not dropped.
      dropout: rate at which inputs of the components in ``gain`` are dropped.
      keys: keys of the dropout by path, where layers do not draw their own.
      trace: distinguishes traces, see `reached_paths`.

    Raises:
      InputError: an adapter path without a kernel, or with one of another size.
    """
    lora_params.check_fit(params, adapter)
    base = trees.flat(params)
    kernels = {
        path: AdaptedKernel(
            base[f"{path}/kernel"],
            *pair,
            gain[path],
            fixed and fixed[path],
            keys and keys[path],
            jnp.broadcast_to(jax.random.key(0), gain[path].shape),
            path,
            dropout,
            trace,
        )
        for path, pair in adapter.items()
    }
    return lora_params.replace_kernels(params, kernels)


def detach(variables: PyTree) -> PyTree:
    """The tree with base kernels in place of `AdaptedKernel` nodes."""
    is_adapted = lambda x: isinstance(x, AdaptedKernel)  # noqa: E731
    return jax.tree.map(lambda x: x.kernel if is_adapted(x) else x, variables, is_leaf=is_adapted)
