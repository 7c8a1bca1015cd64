"""Activation functions by their Hugging Face names."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax

_exact_gelu = functools.partial(jax.nn.gelu, approximate=False)
_tanh_gelu = functools.partial(jax.nn.gelu, approximate=True)

# "gelu" is the exact one (erf) and "gelu_new" the tanh approximation: a checkpoint trained with
# one of them is a different function with the other.
ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {
        "gelu": _exact_gelu,
        "gelu_python": _exact_gelu,
        "gelu_new": _tanh_gelu,
        "gelu_fast": _tanh_gelu,
        "gelu_pytorch_tanh": _tanh_gelu,
        "relu": jax.nn.relu,
        "silu": jax.nn.silu,
        "swish": jax.nn.silu,
    }
)
