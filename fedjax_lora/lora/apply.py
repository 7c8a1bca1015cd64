"""Run an unmodified Flax Linen model with an adapter, without merging the base.

Every adapted kernel is replaced by an `AdaptedKernel`, and ``nn.intercept_methods`` adds the
low-rank term to the output of the linear layers that Flax has. Under `vmap` over clients with the
base unbatched, each frozen matmul stays one large product over all clients' tokens.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
from flax.errors import ScopeParamNotFoundError
from flax.linen import module as linen_module

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import Adapter, Gain, Params, PyTree
from fedjax_lora.lora import kernels, products
from fedjax_lora.lora.kernels import AdaptedKernel
from fedjax_lora.lora.params import merge


def apply(
    module: nn.Module,
    params: Params,
    adapter: Adapter,
    gain: Gain,
    *args: PyTree,
    fixed: Gain | None = None,
    dropout: float = 0.0,
    allow_unused: bool = False,
    **kwargs: Any,
) -> PyTree:
    """Return ``module.apply({"params": params}, *args, **kwargs)`` of the adapted model.

    The result is that of the merged parameters, see `fedjax_lora.lora.merge`. Layers that run the
    ``__call__`` of ``nn.Dense``, ``nn.DenseGeneral`` or ``nn.Einsum`` add the low-rank term to
    their output. Any other use of an adapted kernel (another method, a tied kernel, a layer of
    your own, a ``dot_general`` of your own) reads the merged kernel, one per client under `vmap`.

    Args:
      module: any Linen module, its layers lifted by ``nn.scan``, ``nn.vmap``, ``nn.remat`` or
        ``nn.jit`` or not. Layers of a stack are on the first axis of their parameters.
      params: the base parameters.
      adapter: factors by path, see `fedjax_lora.lora.init`.
      gain: multipliers of the components, see `fedjax_lora.lora.uniform_gain`.
      *args: inputs of the module.
      fixed: gains of components whose inputs are not dropped (modules folded into the base). With
        ``dropout`` 0 they may as well be part of ``gain``.
      dropout: rate at which inputs of the components in ``gain`` are dropped; needs a key named
        ``dropout`` in ``kwargs["rngs"]``.
      allow_unused: accept adapters that this call does not use, for example because ``method``
        runs a part of the model.
      **kwargs: passed on to ``module.apply``.

    Raises:
      InputError: an adapter without a kernel of its size, an adapter that no part of the
        computation uses, or a layer that cannot be adapted (convolutions, kernels with batch axes,
        einsums that are no product with a matrix).

    >>> import jax, jax.numpy as jnp, flax.linen as nn
    >>> from fedjax_lora import lora
    >>> net, x = nn.Sequential([nn.Dense(3)]), jnp.ones((1, 4))
    >>> params = net.init(jax.random.key(0), x)["params"]
    >>> spec = lora.make_spec(params, targets="layers_0", rank=1)
    >>> adapter = jax.tree.map(jnp.ones_like, lora.init(spec, jax.random.key(1)))
    >>> y = apply(net, params, adapter, lora.uniform_gain(spec), x)
    >>> (y - net.apply({"params": params}, x)).round(4).tolist()  # 4 inputs of 1
    [[4.0, 4.0, 4.0]]
    """

    def run(trace: object, *inputs: Any) -> Any:
        variables = kernels.attach(params, adapter, gain, fixed=fixed, dropout=dropout, trace=trace)
        with _intercepted():
            return module.apply({"params": variables}, *inputs, **kwargs)

    output = check_reached(run, adapter, args, allow_unused=allow_unused)
    if not kwargs.get("mutable"):
        return output
    output, variables = cast(tuple[Any, Any], output)
    return output, kernels.detach(variables)


@contextlib.contextmanager
def _intercepted() -> Iterator[None]:
    """``nn.intercept_methods(_add_term)``, which ends with the context also under ``python -O``.

    Flax takes an interceptor away inside of an ``assert``, which is not executed then: every later
    program of the process would add its adapter once more.
    """
    interceptors = linen_module._global_interceptor_stack
    before = len(interceptors)
    try:
        with nn.intercept_methods(_add_term):
            yield
    finally:
        while len(interceptors) > before:
            interceptors.pop()


# In JAX's errors about an array-like object in place of an array, and about arithmetic on the keys
# that guard an `AdaptedKernel`; in Flax's about the path of one of its leaves.
_SIGNS_OF_ARITHMETIC = ("__jax_array__", "key<", "abstract method astype", "/kernel/")


def check_reached(
    run: Callable[..., PyTree], adapter: Adapter, args: Sequence[PyTree], *, allow_unused: bool
) -> PyTree:
    """Return ``run(None, *args)`` and check that it used every adapter.

    Args:
      run: ``(trace, *args) -> output`` of a model whose kernels carry this ``trace``.
      adapter: factors by path.
      args: inputs of the model.
      allow_unused: skip the check.

    Raises:
      InputError: with the paths of all adapters that no part of the computation uses.
    """
    with kernels.reached_paths() as reached:
        try:
            output = run(None, *args)
        except (TypeError, ValueError, NotImplementedError, ScopeParamNotFoundError) as error:
            if not (adapter and any(sign in str(error) for sign in _SIGNS_OF_ARITHMETIC)):
                raise
            paths = sorted(set(adapter) - reached) or sorted(adapter)
            raise InputError(
                f"The model computes with the kernel of {' or '.join(paths)} in a way that an "
                "adapter cannot follow; write jnp.asarray(kernel) where a function takes only "
                "arrays, do not compute with whole parameter trees inside of the model, or leave "
                "the layer out of the targets."
            ) from error
    if allow_unused or reached >= set(adapter):
        return output
    # A jitted function inside the model may have been traced before: trace it again to see.
    with kernels.reached_paths() as reached:
        jax.eval_shape(lambda: (run(object(), *args), None)[1])
    if unused := sorted(set(adapter) - reached):
        raise InputError(
            f"The adapter of {', '.join(unused)} has no effect: the model does not use this "
            "kernel in this call; leave it out of the targets, or pass allow_unused=True if "
            "another call uses it."
        )
    return output


def apply_merged(
    apply_fn: Callable[..., PyTree],
    params: Params,
    adapter: Adapter,
    gain: Gain,
    *args: PyTree,
    **kwargs: Any,
) -> PyTree:
    """Return ``apply_fn`` of the merged parameters: for models of any library.

    Slower than `apply`: under `vmap` over clients every client has its own merged kernels, in
    memory and in every product. Gradients with respect to the adapter are right.

    Args:
      apply_fn: ``(params, *args, **kwargs) -> output``, pure.
      params: nested dictionaries; adapted kernels are leaves named ``kernel``, ``[i, o]``. A
        function of other parameters can rename them, see the example.
      adapter: factors by path.
      gain: multipliers of the components by path.
      *args: inputs of ``apply_fn``.
      **kwargs: further inputs of ``apply_fn``.

    Raises:
      InputError: an adapter path without a kernel, or with one of another size.

    A function in the style of Haiku, which names a kernel ``w``:

    >>> import jax, jax.numpy as jnp
    >>> from fedjax_lora import lora
    >>> def forward(params, x):
    ...     return x @ params["linear"]["w"]
    >>> def apply_fn(params, x):
    ...     return forward({name: {"w": p["kernel"]} for name, p in params.items()}, x)
    >>> params = {"linear": {"kernel": jnp.ones((4, 3))}}
    >>> spec = lora.make_spec(params, targets="linear", rank=2)
    >>> adapter, gain = lora.init(spec, jax.random.key(0)), lora.uniform_gain(spec)
    >>> lora.apply_merged(apply_fn, params, adapter, gain, jnp.ones(4))
    Array([4., 4., 4.], dtype=float32)
    """
    return apply_fn(merge(params, adapter, gain), *args, **kwargs)


def _add_term(next_fun: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    """Interceptor of method calls: adds the low-rank term of an adapted layer."""
    form_of = _FORMS.get(getattr(context.orig_method, "func", None))
    layer = context.module
    if form_of is None or not layer.has_variable("params", "kernel") or has_own_product(layer):
        return next_fun(*args, **kwargs)
    kernel = layer.get_variable("params", "kernel")
    if not isinstance(kernel, AdaptedKernel):
        return next_fun(*args, **kwargs)
    form = form_of(layer, kernel, args, kwargs)
    with kernels.base_kernels_only():
        y = next_fun(*args, **kwargs)
    x = args[0] if args else kwargs["inputs"]
    return y + kernel.term(form, x, lambda: _dropout_key(layer, kernel)).astype(y.dtype)


def has_own_product(layer: Any) -> bool:
    """Return whether a layer is given another function than `jax.lax.dot_general` to multiply with.

    It may quantize or scale, so it is applied to the merged kernel.
    """
    functions = [getattr(layer, name, None) for name in ("dot_general", "dot_general_cls")]
    return any(function not in (None, jax.lax.dot_general) for function in functions)


def _dropout_key(layer: nn.Module, kernel: AdaptedKernel) -> Any:
    if not layer.has_rng("dropout"):
        raise InputError(
            f"{kernel.path} has no key for the LoRA dropout; pass rngs={{'dropout': key}}, and "
            "split it for the layers of a scan or vmap (split_rngs={'dropout': True})."
        )
    return layer.make_rng("dropout")


def _dense(layer: Any, kernel: AdaptedKernel, args: tuple, kwargs: dict) -> products.Term:
    del layer, kernel, args, kwargs
    return products.last_axis


def _dense_general(layer: Any, kernel: AdaptedKernel, args: tuple, kwargs: dict) -> products.Term:
    del kernel, args, kwargs
    axes = (layer.axis,) if isinstance(layer.axis, int) else layer.axis
    return products.general(axes, layer.batch_dims)


def _einsum(layer: Any, kernel: AdaptedKernel, args: tuple, kwargs: dict) -> products.Term:
    del kernel
    equation = args[1] if len(args) > 1 else kwargs.get("einsum_str")
    return products.einsum(equation or layer.einsum_str)


def _convolution(layer: Any, kernel: AdaptedKernel, args: tuple, kwargs: dict) -> products.Term:
    del layer, args, kwargs
    raise products.convolution_error(kernel.path)


def _function(method: Any) -> Callable:
    """The function that Flax wraps to make a method."""
    return method.__wrapped__


# By function, not by class: a subclass that computes something else has another __call__, and one
# that calls super().__call__ reaches the function of its base.
_FORMS: Mapping[Any, Callable[..., products.Term]] = {
    _function(nn.Dense.__call__): _dense,
    _function(nn.DenseGeneral.__call__): _dense_general,
    _function(nn.Einsum.__call__): _einsum,
    _function(nn.Conv.__call__): _convolution,  # also ConvLocal's
    _function(nn.ConvTranspose.__call__): _convolution,
}
"""How each linear layer of Flax multiplies by its kernel."""
