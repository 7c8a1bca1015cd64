"""Adapters whose initialisation has changed the base, as adapters of the unchanged base.

PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775) begin with factors computed from a matrix and
subtract their product from it. PEFT computes and subtracts the same product again when it loads
such an adapter, so the loaded model is ``W - s A0 B0 + s A B``. Here the product of rank `r` that
was subtracted becomes further components, so that the adapter, of rank `2r`, is one of ``W``.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from fedjax_lora.core import quantization
from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.core.types import PyTree
from fedjax_lora.interop.peft_writer import Factors

__all__ = ["add_change_of_base"]


def add_change_of_base(
    init: str | None, factors: Mapping[str, Factors], kernel_of: Callable[[str], PyTree]
) -> dict[str, Factors]:
    """Add the change of the base by an initialisation to the factors.

    Args:
      init: ``"pissa"``, ``"olora"``, or None if the base was not changed.
      factors: factors by name of the matrix.
      kernel_of: the base's kernel by name, ``[i, o]``; only its shape is used if it is abstract.

    Returns:
      Factors of the same function on the unchanged base, of twice the rank if `init` is given.

    Raises:
      InputError: a rank is higher than the initialisation can have, or the base is quantized, so
        that its matrices are no longer those which the initialisation has changed.
    """
    if init is None:
        return dict(factors)
    raise_all(
        f"init_lora_weights is {init!r}, whose rank is at most that of the matrix",
        [
            f"{name} has rank {pair.rank} for a matrix {len(pair.a)} x {pair.b.shape[1]}"
            for name, pair in factors.items()
            if pair.rank > min(len(pair.a), pair.b.shape[1])
        ],
    )
    return {name: _with_change(init, pair, kernel_of(name)) for name, pair in factors.items()}


def _with_change(init: str, pair: Factors, kernel: Any) -> Factors:
    if quantization.is_quantized(kernel):
        raise InputError(
            f"init_lora_weights is {init!r}, which is repeated with the base's own matrices, and "
            "this base is quantized; take float32 as its storage, or save the adapter with "
            "save_pretrained(folder, path_initial_model_for_weight_conversion=INITIAL)."
        )
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(kernel)):
        a, b = np.zeros_like(pair.a), np.zeros_like(pair.b)
    else:
        a, b = _INITS[init](np.asarray(kernel, np.float64), pair.rank, pair.scale)
    return Factors(
        np.concatenate([pair.a, -a.astype(np.float32)], axis=1),
        np.concatenate([pair.b, b.astype(np.float32)]),
        pair.scale,
    )


def _pissa(kernel: np.ndarray, rank: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The first singular triplets, whose product with the scale is the best of this rank."""
    u, s, vt = np.linalg.svd(kernel, full_matrices=False)
    root = np.sqrt(s[:rank] / scale)
    return u[:, :rank] * root, root[:, None] * vt[:rank]


def _olora(kernel: np.ndarray, rank: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The first columns and rows of the QR decomposition of PyTorch's ``[o, i]`` matrix."""
    q, r = np.linalg.qr(kernel.T)
    return r[:rank].T, q[:, :rank].T


_INITS: Mapping[str, Any] = MappingProxyType({"pissa": _pissa, "olora": _olora})
