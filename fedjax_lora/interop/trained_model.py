"""A model to use: a base, what was trained on it, and what came of it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import data, federated, lora, models
from fedjax_lora.core import quantization, trees
from fedjax_lora.core.types import Adapter, Array, ClientParams, Gain, Kernels, Params
from fedjax_lora.data.batching import length_buckets
from fedjax_lora.evaluation import predict as prediction
from fedjax_lora.interop import matrices
from fedjax_lora.lora import LoraTarget


class TrainedModel(NamedTuple):
    """A base model with an adapter and a head.

    Attributes:
      model: the base, whose own head is not used.
      targets: where the adapter is.
      adapter: ``a: [(L,) i, R]``, ``b: [(L,) R, o]`` by path.
      gain: what each component is multiplied by, ``[(L,) R]``; 0 where it takes no part.
      head: parameters of the task head.
      kernels: base kernels that a method has changed, at the sites; {} for most.
    """

    model: models.Pretrained
    targets: tuple[LoraTarget, ...]
    adapter: Adapter
    gain: Gain
    head: Params
    kernels: Kernels = {}  # noqa: RUF012  (never changed)

    @property
    def base(self) -> Params:
        """The base's parameters without a head, with the changed kernels."""
        changed = {f"{path}/kernel": kernel for path, kernel in self.kernels.items()}
        params = trees.replace(self.model.params, changed)
        return {name: part for name, part in params.items() if name != "head"}

    @property
    def merged(self) -> Params:
        """All parameters of a plain model that computes the same."""
        return lora.merge(self.base, self.adapter, self.gain) | {"head": self.head}

    def in_one_adapter(self) -> "TrainedModel":
        """The same model on the base as it was: changed kernels become part of the adapter."""
        if not self.kernels:
            return self
        base = trees.flat(self.model.params)
        before = {path: quantization.dequantize(base[f"{path}/kernel"]) for path in self.adapter}
        adapter, gain = matrices.from_kernels(before, self.kernels, self.adapter, self.gain)
        return self._replace(adapter=adapter, gain=gain, kernels={})

    def truncated(self, rank: int) -> "TrainedModel":
        """The model with the first components only, their gains unchanged.

        A model of a client of that rank is another one where the scale depends on the rank.

        Args:
          rank: how many of each layer; all of them if it has no more.
        """
        return self._replace(gain={path: _first(g, rank) for path, g in self.gain.items()})

    def share_of_kernels(self) -> float:
        """The adapter's size as a share of that of the matrices it adapts."""
        factors = matrices.split(self.targets, self.adapter, self.gain, "{}.{}".format)
        size = sum(pair.a.size + pair.b.size for pair in factors.values())
        return size / sum(
            target.adapted * target.inputs * target.outputs for target in self.targets
        )


def _first(gain: Array, rank: int) -> Array:
    return jnp.where(jnp.arange(gain.shape[-1]) < rank, gain, 0.0)


def make_outputs(
    model: models.Pretrained, tokens: data.Tokens, *, batch: int = 64
) -> Callable[[TrainedModel], np.ndarray]:
    """A function from a fitted model on this base to its logits, ``float32[E, C]``.

    Args:
      model: the base.
      tokens: the texts.
      batch: how many are computed at once.
    """
    lengths = length_buckets(tokens.length, longest=tokens.ids.shape[1])
    predict = prediction.make_predict(
        federated.text_classification(model.module, lengths), batch=batch
    )
    placed = jax.device_put(tokens)

    def outputs(fitted: TrainedModel) -> np.ndarray:
        return predict(fitted.base, placed, ClientParams(fitted.adapter, fitted.head), fitted.gain)

    return outputs
