"""A client in PyTorch and PEFT: one model object for all clients, one adapter per rank."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

TARGETS = ["query", "value"]


def network(model: str, ranks: Sequence[int]) -> tuple[Any, dict[int, dict[str, Any]]]:
    """Load a model with one adapter per rank; returns it with the parameters of each adapter.

    Returns:
      The model, without dropout, and the trained parameters by rank: ``factors`` ``[r, i]`` and
      ``[o, r]`` by module name, the ``head``, and ``all``.
    """
    net: Any = AutoModelForSequenceClassification.from_pretrained(model)
    ranks = list(dict.fromkeys(ranks))
    for rank in ranks:
        config = LoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules=TARGETS,
            modules_to_save=["classifier"],
        )
        name = f"r{rank}"
        if rank == ranks[0]:
            net = get_peft_model(net, config, adapter_name=name)
        else:
            net.add_adapter(name, config)
    net.eval()  # no dropout; gradients flow all the same
    parts = {}
    for rank in ranks:
        net.set_adapter(f"r{rank}")
        trained = dict(net.named_parameters())
        own = {n: p for n, p in trained.items() if p.requires_grad}
        factors = {
            n.removeprefix("base_model.model.").split(".lora_A.")[0]: (
                p,
                own[n.replace("_A", "_B")],
            )
            for n, p in own.items()
            if ".lora_A." in n
        }
        head = [p for n, p in own.items() if ".modules_to_save." in n]
        parts[rank] = {"factors": factors, "head": head, "all": list(own.values())}
    return net, parts


def logits(net: Any, data: dict[str, Any], rows: np.ndarray) -> Any:
    """Compute the logits of some examples, padded to the longest of them.

    Args:
      net: from `network`.
      data: ``ids`` and ``types``, tensors ``[E, T]``, and ``length``, NumPy ``[E]``.
      rows: indices of the examples.
    """
    length = data["length"][rows]
    longest = int(length.max())
    mask = torch.from_numpy(np.arange(longest)[None] < length[:, None]).long()
    inputs = {"input_ids": data["ids"][rows, :longest], "attention_mask": mask}
    if "roberta" not in net.config.model_type:
        inputs["token_type_ids"] = data["types"][rows, :longest]
    return net(**inputs).logits


def train(
    net: Any, params: list, batches: Sequence[np.ndarray], data: dict[str, Any], rate: float
) -> float:
    """Train one client; returns its mean loss over the examples.

    Args:
      net: from `network`, with the client's adapter set.
      params: the trained parameters.
      batches: the rows of each step.
      data: see `logits`; with ``label``, a tensor ``[E]``.
      rate: learning rate.
    """
    optimizer = torch.optim.AdamW(params, lr=rate, weight_decay=0.0, foreach=True)
    total, count = 0.0, 0
    for rows in batches:
        loss = torch.nn.functional.cross_entropy(logits(net, data, rows), data["label"][rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        total, count = total + loss.item() * len(rows), count + len(rows)
    return total / count
