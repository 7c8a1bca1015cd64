"""Low-rank factors in a PyTorch model, by PEFT: the loss, and the gradients of the factors."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_lora import models

RANK, ALPHA = 3, 6.0


def by_peft_name(config: Any, tree: Any) -> dict[str, np.ndarray]:
    """Factors (or their gradients) by PEFT's tensor names, in PyTorch's orientation."""
    named = {}
    for path, pair in tree.items():
        stacked = models.is_stacked(config, path)
        for layer in range(config.layers) if stacked else [None]:
            module = models.hf_module(config, path, layer)
            for side, factor in zip("AB", pair, strict=True):
                own = np.array(factor if layer is None else factor[layer])
                named[f"{module}.lora_{side}.default.weight"] = own.T
    return named


def loss_and_gradients(
    model: Any, factors: Mapping[str, np.ndarray], targets: Sequence[str], **inputs: Any
) -> tuple[float, dict[str, np.ndarray]]:
    """What PyTorch finds for integer ``inputs``, after the factors were put into the model."""
    import peft
    import torch

    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[*targets])
    wrapped = peft.get_peft_model(model, config).eval()
    lora = {
        name.removeprefix("base_model.model."): value
        for name, value in wrapped.named_parameters()
        if ".lora_" in name
    }
    assert lora.keys() == factors.keys()
    with torch.no_grad():
        for name, value in lora.items():
            value.copy_(torch.tensor(factors[name]))
    given = {name: torch.tensor(np.array(x), dtype=torch.long) for name, x in inputs.items()}
    loss = wrapped(**given).loss
    loss.backward()
    return loss.item(), {name: value.grad.numpy() for name, value in lora.items()}
