"""Small random encoders of every family, saved by `transformers`, with random adapters on them."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora, models
from fedjax_lora.core import trees
from fedjax_lora.core.types import LoRA
from fedjax_lora.interop import ModelMetadata, TrainedModel

FAMILIES = ("albert", "bert", "distilbert", "roberta")
LABELS = ("no", "maybe", "yes")
SIZES = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 18,
}
MORE: dict[str, dict[str, Any]] = {"roberta": {"pad_token_id": 1}, "albert": {"embedding_size": 12}}
IDS = np.random.default_rng(0).integers(3, 50, (5, 9)).astype(np.int32)
LENGTH = np.array([9, 3, 7, 1, 5])
MASK = np.arange(9)[None] < LENGTH[:, None]


def checkpoint(folder: Path, family: str, *, base_only: bool = False, seed: int = 0) -> Path:
    """A random PyTorch model, saved; without a head and, for BERT, a pooler if ``base_only``."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(family, **(SIZES | MORE.get(family, {})))
    torch.manual_seed(seed)
    kind = transformers.AutoModelForMaskedLM if base_only else transformers.AutoModel
    model = kind.from_config(config)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.4 * torch.randn_like(value))
    model.save_pretrained(folder / family)
    return folder / family


def load(folder: Path, *, pooling: str = "family", seed: int = 0) -> models.Pretrained:
    key = jax.random.key(seed)
    return models.load(str(folder), num_labels=3, pooling=pooling, scan_unroll=1, key=key)


def fitted(
    model: models.Pretrained,
    *,
    ranks: tuple[int, ...] = (4, 1, 2),
    layers: tuple[int, ...] | None = (0, 2),
    scale: float = 1.5,
    metadata: ModelMetadata | None = None,
) -> TrainedModel:
    """Random factors, of another rank in every layer, on some of the layers."""
    shared = model.config.family == "albert"
    spec = lora.make_spec(
        {"encoder": model.params["encoder"]},
        targets="attention",
        rank=max(ranks),
        alpha=scale * max(ranks),
        layers=None if shared else layers,
    )
    rng = np.random.default_rng(1)
    adapter, gain = {}, {}
    for target in spec.targets:
        a, b = (
            rng.normal(size=(*target.stack, *shape)).astype(np.float32) * 0.3
            for shape in ((target.inputs, spec.rank), (spec.rank, target.outputs))
        )
        here = jnp.asarray(ranks if target.stack else ranks[0], jnp.int32)
        active = lora.prefix_mask(here, spec.rank)
        mask = lora.factor_mask({target.path: active & spec.layer_mask(target)})
        adapter |= lora.keep({target.path: LoRA(jnp.asarray(a), jnp.asarray(b))}, mask)
        gain[target.path] = jnp.where(mask[target.path].b[..., 0], scale, 0.0).astype(jnp.float32)
    head = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), model.params["head"]
    )
    return TrainedModel(
        pretrained=model,
        metadata=about(model) if metadata is None else metadata,
        targets=spec.targets,
        adapter=adapter,
        gain=gain,
        head=head,
    )


def about(model: models.Pretrained, **fields: Any) -> ModelMetadata:
    values: dict[str, Any] = {
        "base": str(model.folder),
        "base_sha256": model.fingerprint,
        "pooling": model.config.pooling,
        "classes": LABELS,
        "task": "mood",
        "results": {"accuracy": 0.5},
    }
    return ModelMetadata(**values | fields)


def logits(one: TrainedModel) -> np.ndarray:
    """Logits by an independent way: the merged parameters in the plain module."""
    run = jax.jit(lambda p: one.pretrained.module.apply({"params": p}, IDS, MASK))
    return np.asarray(run(jax.tree.map(jnp.asarray, one.merged_params)))


def torch_logits(model: Any) -> np.ndarray:
    import torch

    mask = torch.tensor(MASK, dtype=torch.long)
    with torch.no_grad():
        return model(input_ids=torch.tensor(IDS).long(), attention_mask=mask).logits.numpy()


def same(one: TrainedModel, other: TrainedModel) -> None:
    """The same tensors, bit for bit."""
    assert {s.path: s for s in one.targets} == {s.path: s for s in other.targets}
    for path, pair in one.adapter.items():
        np.testing.assert_array_equal(pair.a, other.adapter[path].a)
        np.testing.assert_array_equal(pair.b, other.adapter[path].b)
        np.testing.assert_array_equal(one.gain[path], other.gain[path])
    for path, leaf in trees.flat(dict(one.head)).items():
        np.testing.assert_array_equal(leaf, trees.flat(dict(other.head))[path])


def replaced(one: ModelMetadata, **fields: Any) -> ModelMetadata:
    return dataclasses.replace(one, **fields)
