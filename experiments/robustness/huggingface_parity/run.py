"""Measure the differences between the logits of exported models in PyTorch and in JAX.

Run it with ``python -m experiments.robustness.huggingface_parity.run``.

Adapters with a different rank in every layer and a random head, on all-MiniLM-L6-v2 and on random
checkpoints of every family (3 layers of width 48), are exported as PEFT adapters and as merged
checkpoints, and loaded by `peft` and `transformers`.
"""

import json
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import torch
import transformers

from fedjax_lora import interop, lora, models
from fedjax_lora.interop import ModelMetadata, TrainedModel

RESULTS = pathlib.Path(__file__).parent / "results"
SIZES = {
    "vocab_size": 1000,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 40,
}
TEXTS, TOKENS, LABELS = 64, 32, 4


def checkpoint(folder: pathlib.Path, family: str) -> pathlib.Path:
    """Save a random base model of a family with `transformers`."""
    sizes: dict[str, Any] = SIZES | ({"pad_token_id": 1} if family == "roberta" else {})
    config = transformers.AutoConfig.for_model(family, **sizes)
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.3 * torch.randn_like(value))
    model.save_pretrained(folder / family)
    return folder / family


def trained(model: models.Pretrained, metadata: ModelMetadata) -> TrainedModel:
    """An adapter with initial `a`, normal `b` (s.d. 0.05) and ranks 8, 1, 2, 3, ... by layer."""
    base = {"encoder": model.params["encoder"]}
    spec = lora.make_spec(base, targets="attention", rank=8, alpha=16.0)
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) * 0.05, jnp.float32)  # noqa: E731
    adapter, gain = lora.init(spec, jax.random.key(1)), {}
    for target in spec.targets:
        depth = target.stack[0] if target.stack else 1
        rank = jnp.array([8, *range(1, depth)], jnp.int32).clip(max=8)
        here = rank if target.stack else rank[0]
        b = draw(*target.stack, 8, target.outputs)
        adapter[target.path] = adapter[target.path]._replace(b=b)
        gain[target.path] = jnp.where(lora.prefix_mask(here, 8), spec.server_scale, 0.0)
    head = jax.tree.map(lambda x: 4 * draw(*x.shape), model.params["head"])
    return TrainedModel(
        pretrained=model,
        metadata=metadata,
        targets=spec.targets,
        adapter=adapter,
        gain=gain,
        head=head,
    )


def row(name: str, folder: pathlib.Path) -> dict[str, Any]:
    """Measure the largest differences for one base model."""
    model = models.load(str(folder), num_labels=LABELS, key=jax.random.key(0))
    classes = tuple("abcd")
    metadata = ModelMetadata(base=str(folder), base_sha256=model.fingerprint, classes=classes)
    ours = trained(model, metadata)
    rng = np.random.default_rng(1)
    ids = rng.integers(3, model.config.vocab_size, (TEXTS, TOKENS)).astype(np.int32)
    mask = np.arange(TOKENS)[None] < rng.integers(2, TOKENS + 1, (TEXTS, 1))
    apply = jax.jit(lambda p, a, g: lora.apply(model.module, p, a, g, ids, mask))
    params = {**ours.base_params, "head": ours.head}
    want = np.asarray(apply(params, ours.adapter, ours.gain))
    without = np.asarray(apply(params, ours.adapter, jax.tree.map(jnp.zeros_like, ours.gain)))

    def difference(theirs: Any) -> float:
        with torch.no_grad():
            inputs = {"attention_mask": torch.tensor(mask).long()}
            logits = theirs.eval()(torch.tensor(ids).long(), **inputs).logits
        return float(np.abs(logits.numpy() - want).max())

    auto = transformers.AutoModelForSequenceClassification
    with tempfile.TemporaryDirectory() as out:
        interop.save_adapter(f"{out}/adapter", ours)
        interop.save_merged(f"{out}/merged", ours)
        base = auto.from_pretrained(folder, num_labels=LABELS)
        return {
            "model": name,
            "adapter": difference(peft.PeftModel.from_pretrained(base, f"{out}/adapter")),
            "merged": difference(auto.from_pretrained(f"{out}/merged")),
            "effect": float(np.abs(want - without).max()),
        }


def main() -> dict[str, Any]:
    """Measure all models; returns the content of the result file."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [row("all-MiniLM-L6-v2", models.resolve("minilm").folder)]
        for family in ("bert", "roberta", "distilbert", "albert"):
            rows.append(row(f"{family}, random", checkpoint(pathlib.Path(folder), family)))
    versions = {m.__name__: m.__version__ for m in (jax, torch, transformers, peft)}
    return {"texts": TEXTS, "rows": rows, "versions": versions}


if __name__ == "__main__":
    result = main()
    (RESULTS / "parity.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
