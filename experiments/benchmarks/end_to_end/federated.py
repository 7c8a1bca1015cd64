"""Federated LoRA in PyTorch and PEFT: the server's steps and a client's local training."""

from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoTokenizer

from experiments.benchmarks import peft_client
from experiments.benchmarks.end_to_end.work import Work

EVAL_BATCH = 64

Arrays = list[np.ndarray]
"""A message: ``[r, i]`` and ``[o, r]`` of every module in turn, then the head."""


class Worker(NamedTuple):
    """State of a process: the model and the tokens of its splits."""

    net: Any
    parts: dict[int, dict[str, Any]]
    tokens: dict[str, dict[str, Any]]


def tools(work: Work, splits: tuple[str, ...]) -> Worker:
    """Load the model and tokenise the splits."""
    net, parts = peft_client.network(work.model, work.ranks)
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    return Worker(net, parts, {name: _tokens(work, name, tokenizer) for name in splits})


def _tokens(work: Work, name: str, tokenizer: Any) -> dict[str, Any]:
    made = tokenizer(
        work.texts[name], truncation=True, max_length=work.tokens, padding=True, return_tensors="pt"
    )
    return {
        "ids": made["input_ids"],
        "types": made["token_type_ids"],
        "length": made["attention_mask"].sum(dim=1).numpy(),
        "label": torch.tensor(work.labels[name]),
    }


def first(work: Work, tools: Worker) -> Arrays:
    """The server's initial model; the second factors are zero."""
    own = tools.parts[work.ranks[-1]]
    factors = [
        (work.start[name], np.zeros(b.shape, "f4")) for name, (_, b) in own["factors"].items()
    ]
    head = [p.detach().numpy().copy() for p in own["head"]]
    return [x for pair in factors for x in pair] + head


def cut(model: Arrays, rank: int, modules: int) -> Arrays:
    """Cut a model to a client's rank."""
    factors = model[: 2 * modules]
    return [x[:rank] if at % 2 == 0 else x[:, :rank] for at, x in enumerate(factors)] + (
        model[2 * modules :]
    )


def visit(
    tools: Worker, received: Arrays, batches: list[np.ndarray], rank: int, rate: float
) -> tuple[Arrays, float]:
    """Train a client; returns its arrays and its mean loss."""
    values = put(tools, received, rank)
    loss = peft_client.train(
        tools.net, tools.parts[rank]["all"], batches, tools.tokens["train"], rate
    )
    return [p.detach().numpy().copy() for p in values], loss


def put(tools: Worker, model: Arrays, rank: int) -> list[Any]:
    """Activate a model of this rank; returns its parameters in the same order."""
    own = tools.parts[rank]
    tools.net.set_adapter(f"r{rank}")
    params = [p for pair in own["factors"].values() for p in pair] + own["head"]
    with torch.no_grad():
        for p, value in zip(params, model, strict=True):
            p.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    return params


def mean(sent: list[Arrays], weight: np.ndarray, most: Arrays) -> Arrays:
    """Average the clients' arrays, padded with zeros to the shapes of `most`."""
    total = [np.zeros_like(x) for x in most]
    for arrays, share in zip(sent, weight / weight.sum(), strict=True):
        for at, x in enumerate(arrays):
            total[at][tuple(map(slice, x.shape))] += share * x
    return total


def evaluate(tools: Worker, model: Arrays, rank: int) -> dict[str, float]:
    """Accuracy and loss on the test examples, in batches of about the same length."""
    put(tools, model, rank)
    data = tools.tokens["test"]
    order = np.argsort(data["length"], kind="stable")
    hits, loss = 0, 0.0
    with torch.inference_mode():
        for at in range(0, len(order), EVAL_BATCH):
            rows = order[at : at + EVAL_BATCH]
            out, label = peft_client.logits(tools.net, data, rows), data["label"][rows]
            hits += int((out.argmax(dim=1) == label).sum())
            loss += torch.nn.functional.cross_entropy(out, label, reduction="sum").item()
    return {"accuracy": hits / len(order), "loss": loss / len(order)}
