"""The record of a trained model: base, adapter, head and metadata."""

import dataclasses

import jax.numpy as jnp

from fedjax_lora import lora, models
from fedjax_lora.core import quantization, trees
from fedjax_lora.core.types import Adapter, Array, ClientParams, Gain, Kernels, Params
from fedjax_lora.evaluation.predict import AdaptedParams
from fedjax_lora.interop import matrices
from fedjax_lora.interop.metadata import ModelMetadata
from fedjax_lora.lora import LoraTarget


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A pretrained base with a trained adapter, a task head and metadata.

    A plain checkpoint is a `TrainedModel` without targets: its adapter and gain are empty.

    Attributes:
      pretrained: base model, config and tokenizer; the head in ``pretrained.params`` is not used.
      metadata: how texts are tokenised, what the outputs mean, and where the model comes from.
      targets: adapted layers.
      adapter: factors by path, ``a: [(L,) i, R]`` and ``b: [(L,) R, o]``.
      gain: multiplier of each component by path, ``[(L,) R]``; 0 for an inactive component.
      head: parameters of the task head.
      kernels: base kernels at the targets that a method has changed, ``[(L,) i, o]`` by path;
        empty for most methods.
    """

    pretrained: models.Pretrained
    metadata: ModelMetadata
    targets: tuple[LoraTarget, ...]
    adapter: Adapter
    gain: Gain
    head: Params
    kernels: Kernels = dataclasses.field(default_factory=dict)

    @property
    def base_params(self) -> Params:
        """Parameters of the base without a head, with the changed kernels in place."""
        changed = {f"{path}/kernel": kernel for path, kernel in self.kernels.items()}
        params = trees.replace(self.pretrained.params, changed)
        return {name: part for name, part in params.items() if name != "head"}

    @property
    def adapted_params(self) -> AdaptedParams:
        """Base, adapter, head and gain as `fedjax_lora.evaluation` takes them."""
        return AdaptedParams(self.base_params, ClientParams(self.adapter, self.head), self.gain)

    @property
    def merged_params(self) -> Params:
        """Parameters of a plain model that computes the same function."""
        return {**lora.merge(self.base_params, self.adapter, self.gain), "head": self.head}

    def fold_kernels(self) -> "TrainedModel":
        """Move the change of the base kernels into the adapter.

        Returns:
          A model of the same function on the unchanged base; `self` if no kernel has changed.
        """
        if not self.kernels:
            return self
        base = trees.flat(self.pretrained.params)
        before = {path: quantization.dequantize(base[f"{path}/kernel"]) for path in self.adapter}
        adapter, gain = matrices.from_kernels(before, self.kernels, self.adapter, self.gain)
        return dataclasses.replace(self, adapter=adapter, gain=gain, kernels={})

    def truncate(self, rank: int) -> "TrainedModel":
        """Deactivate all components from `rank` on; the gains of the others do not change.

        With a scale rule that depends on the rank, this is not the model of a client of that rank.

        Args:
          rank: number of components to keep in each layer.
        """
        gain = {path: _first_components(g, rank) for path, g in self.gain.items()}
        return dataclasses.replace(self, gain=gain)

    def relative_size(self) -> float:
        """Number of adapter parameters divided by that of the matrices it adapts."""
        factors = matrices.split(self.targets, self.adapter, self.gain, "{}.{}".format)
        size = sum(pair.a.size + pair.b.size for pair in factors.values())
        return size / sum(
            target.adapted * target.inputs * target.outputs for target in self.targets
        )


def _first_components(gain: Array, rank: int) -> Array:
    return jnp.where(jnp.arange(gain.shape[-1]) < rank, gain, 0.0)
