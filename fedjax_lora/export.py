"""A finished run's global adapter as a PEFT checkpoint of its base model."""

import pathlib

import jax
import numpy as np

from fedjax_lora import models, storage, trees
from fedjax_lora.adapters import Template, peft
from fedjax_lora.rounds import FederatedState
from fedjax_lora.types import Params, Trained


def save_adapter(
    folder: str | pathlib.Path,
    model: models.Pretrained,
    name: str,
    template: Template,
    state: FederatedState,
    trained: Trained,
) -> None:
    """Write the global adapter and the task head for ``peft.PeftModel.from_pretrained``.

    A method that changes the base (FLoRA) leaves one adapter that does what its changes do.

    Args:
      folder: made if it does not exist.
      model: the pretrained base.
      name: what it was loaded as: an alias, a folder or a hub id.
      template: where the adapters are.
      state: the last state.
      trained: the global adapter and head, see `fedjax_lora.experiment.global_model`.
    """
    adapter = jax.device_get(trained.adapter)
    if state.server.kernels:
        base = trees.flat(model.params)
        before = {path: np.asarray(storage.full(base[f"{path}/kernel"])) for path in adapter}
        adapter = peft.from_kernels(template, before, jax.device_get(state.server.kernels), adapter)
    peft.save(
        folder,
        template,
        adapter,
        name_of=lambda path, layer: models.hf_module(model.config, path, layer),
        base_model=models.MODELS[name].hub if name in models.MODELS else name,
        saved_modules=head_tensors(model, trained.head),
        task_type="SEQ_CLS" if model.config.num_labels else "CAUSAL_LM",
    )


def head_tensors(model: models.Pretrained, head: Params) -> dict[str, np.ndarray]:
    """The head's parameters by Hugging Face name, kernels as ``[o, i]``."""
    tensors = {}
    for path, leaf in trees.flat({"head": jax.device_get(head)}).items():
        value = np.asarray(leaf).T if path.endswith("kernel") else np.asarray(leaf)
        tensors[models.hf_name(model.config, path)] = value
    return tensors
