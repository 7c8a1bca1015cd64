"""Adapters that begin with the leading singular components of the kernels they adapt (PiSSA)."""

import jax.numpy as jnp

from fedjax_lora.core import linalg
from fedjax_lora.core.types import Adapter, Array, Kernels, LoRA
from fedjax_lora.lora.params import factor_mask, keep, spread
from fedjax_lora.lora.spec import LoraSpec


def principal(spec: LoraSpec, kernels: Kernels) -> tuple[Adapter, Kernels]:
    """Divide kernels into an adapter of their `R` leading singular components and the rest.

    ``W = s a b + rest`` with ``s a b`` the best rank-`R` approximation of `W` at the server's scale
    `s`, each factor with the roots of the singular values. Training the adapter on a base with the
    ``rest`` as its kernels begins at the pretrained model, as with a zero ``b``, but moves the
    directions in which the kernels are largest:

    >>> import fedjax_lora as fl
    >>> params = {"mlp": {"kernel": jnp.diag(jnp.array([3.0, 2.0, 1.0]))}}
    >>> spec = fl.lora.make_spec(params, targets="mlp", rank=1)
    >>> adapter, rest = fl.lora.principal(spec, fl.lora.kernels_of(params, spec))
    >>> base = fl.lora.with_kernels(params, rest)  # for `federated.init`, with `adapter`
    >>> [round(float(x), 4) for x in jnp.diag(base["mlp"]["kernel"])]
    [0.0, 2.0, 1.0]

    Args:
      spec: the adapted layers. Layers that it leaves out keep their kernels.
      kernels: ``[(L,) i, o]`` by path, as `kernels_of` returns them.

    Returns:
      The adapter, ``[(L,) i, R]`` and ``[(L,) R, o]``, and the other part of the kernels.

    Meng et al., "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language
    Models", arXiv 2404.02948.
    """
    adapted = factor_mask(spread(spec, jnp.ones(spec.rank, bool)))
    found = {path: _leading(spec, kernel) for path, kernel in kernels.items()}
    adapter = keep(found, {path: adapted[path] for path in found})
    rest = {
        path: kernel - spec.server_scale * linalg.matmul(*adapter[path]).astype(kernel.dtype)
        for path, kernel in kernels.items()
    }
    return adapter, rest


def _leading(spec: LoraSpec, kernel: Array) -> LoRA:
    u, s, vt = linalg.svd(linalg.as_product(kernel), spec.rank)
    root = jnp.sqrt(s / spec.server_scale)
    return LoRA(u * root[..., None, :], vt * root[..., :, None])
