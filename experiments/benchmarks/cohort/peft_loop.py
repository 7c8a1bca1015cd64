"""What a user would run instead: one client after another in PyTorch and PEFT."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from experiments.benchmarks.cohort.work import RATE, Case, Work

TARGETS = ["query", "value"]


def contender(case: Case, model: str, work: Work, start: dict[str, np.ndarray]) -> Callable:
    """A round from the beginning; returns the mean loss over the clients."""
    net, parts = _network(case, model)
    tensors = {name: torch.from_numpy(getattr(work, name)) for name in ("ids", "types")}
    tensors["label"] = torch.from_numpy(work.label).long()
    classes = int(work.label.max()) + 1
    assert net.config.num_labels >= classes
    first = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in start.items()}
    head = [p.detach().clone() for p in parts[case.ranks[0]]["head"]]

    def round() -> float:
        losses, sums = [], {name: [0, 0] for name in start}
        for k, rank in enumerate(work.rank.tolist()):
            own = parts[rank]
            net.set_adapter(f"r{rank}")
            with torch.no_grad():
                for name, (a, b) in own["factors"].items():
                    a.copy_(first[name][:rank])
                    b.zero_()
                for p, value in zip(own["head"], head, strict=True):
                    p.copy_(value)
            losses.append(_train(net, own["all"], work, tensors, k))
            with torch.no_grad():
                for name, (a, b) in own["factors"].items():
                    _add(sums[name], a, b, case)
        return float(np.mean(losses))

    return round


def _network(case: Case, model: str) -> tuple[Any, dict[int, dict[str, Any]]]:
    """One model object with an adapter for each rank, and the parameters of each adapter."""
    net: Any = AutoModelForSequenceClassification.from_pretrained(model)
    for rank in dict.fromkeys(case.ranks):
        config = LoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules=TARGETS,
            modules_to_save=["classifier"],
        )
        name = f"r{rank}"
        if rank == case.ranks[0]:
            net = get_peft_model(net, config, adapter_name=name)
        else:
            net.add_adapter(name, config)
    net.eval()  # no dropout; gradients flow all the same
    parts = {}
    for rank in dict.fromkeys(case.ranks):
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


def _train(net: Any, params: list, work: Work, tensors: dict[str, Any], k: int) -> float:
    """One client's steps; returns its mean loss over examples."""
    optimizer = torch.optim.AdamW(params, lr=RATE, weight_decay=0.0, foreach=True)
    total, count = 0.0, 0
    for s in range(int(work.steps[k])):
        rows = work.index[k, s][work.valid[k, s]]
        length = work.length[rows]
        longest = int(length.max())
        mask = torch.from_numpy(np.arange(longest)[None] < length[:, None]).long()
        inputs = {"input_ids": tensors["ids"][rows, :longest], "attention_mask": mask}
        if "roberta" not in net.config.model_type:
            inputs["token_type_ids"] = tensors["types"][rows, :longest]
        logits = net(**inputs).logits
        loss = torch.nn.functional.cross_entropy(logits, tensors["label"][rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        total, count = total + loss.item() * len(rows), count + len(rows)
    return total / count


def _add(total: list, a: Any, b: Any, case: Case) -> None:
    """Zero padding: the server's sum of what a client sends."""
    pad = max(case.ranks) - a.shape[0]
    total[0] = total[0] + torch.nn.functional.pad(a, (0, 0, 0, pad))
    total[1] = total[1] + torch.nn.functional.pad(b, (0, pad))
