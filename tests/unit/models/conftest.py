"""Small random PyTorch models, saved as `transformers` saves them, to compare with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

SIZES = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "num_labels": 3,
}
EPSILON = {"layer_norm_eps": 0.03}  # large enough to be seen, and not the default
FAMILY_SIZES: dict[str, dict[str, Any]] = {
    "bert": EPSILON,
    "roberta": {
        "pad_token_id": 1,
        "max_position_embeddings": 18,
        "type_vocab_size": 1,
        **EPSILON,
    },
    "deberta-v2": {
        "relative_attention": True,
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "position_buckets": 6,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "type_vocab_size": 0,
        **EPSILON,
    },
    "distilbert": {"hidden_dim": 40},
    "albert": {"embedding_size": 12, "hidden_act": "gelu_new", **EPSILON},
    "electra": {"embedding_size": 12, **EPSILON},
}
FAMILY_SIZES |= {
    "camembert": FAMILY_SIZES["roberta"],
    "xlm-roberta": FAMILY_SIZES["roberta"],
    "mpnet": FAMILY_SIZES["roberta"],
}


NAMES = {
    "albert": "Albert", "bert": "Bert", "camembert": "Camembert", "deberta-v2": "DebertaV2",
    "distilbert": "DistilBert",
    "electra": "Electra", "mpnet": "MPNet", "roberta": "Roberta", "xlm-roberta": "XLMRoberta",
}  # fmt: skip


class Batch(NamedTuple):
    """Texts of odd lengths, padded on the right, and one of them on the left."""

    input_ids: np.ndarray
    attention_mask: np.ndarray
    token_types: np.ndarray


def batch(*, pad: int = 0, segments: int = 2, tokens: int = 11, left: bool = True) -> Batch:
    """Texts of 11, 3, 7 and 1 tokens, the third padded on the left if asked to."""
    rng = np.random.default_rng(0)
    mask = np.arange(tokens)[None] < np.array([[tokens], [3], [7], [1]])
    mask[2] = mask[2, ::-1] if left else mask[2]
    ids = np.where(mask, rng.integers(3, 50, mask.shape), pad).astype(np.int32)
    second = np.arange(tokens)[None] >= np.array([[5], [2], [4], [1]])
    types = np.where(mask & second, min(1, segments - 1), 0).astype(np.int32)
    return Batch(ids, mask, types)


def build(family: str, task: str = "SequenceClassification", **overrides: Any) -> Any:
    """A PyTorch model with every parameter random, LayerNorms and biases included."""
    import torch
    import transformers

    name = f"{NAMES[family]}Model" if task == "base" else f"{NAMES[family]}For{task}"
    config = transformers.AutoConfig.for_model(family, **(SIZES | FAMILY_SIZES[family] | overrides))
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for label, value in model.named_parameters():
            value.normal_(0, 0.3)
            if "norm" in label.lower() and label.endswith("weight"):
                value.add_(1.0)
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """Build a model and save it: ``folder, model = saved('bert', task, **config)``."""

    def save(family: str, task: str = "SequenceClassification", **overrides: Any):
        model = build(family, task, **overrides)
        model.save_pretrained(tmp_path / family)
        return tmp_path / family, model

    return save


@pytest.fixture
def texts() -> Callable[..., Batch]:
    """`batch`: padded token ids."""
    return batch


@pytest.fixture
def torch_outputs() -> Callable[..., tuple[np.ndarray, np.ndarray | None]]:
    """Last hidden states and logits of a PyTorch model; no logits for a base model."""

    def run(model: Any, batch: Batch, *, token_types: bool = True):
        import torch

        inputs = {
            "input_ids": torch.tensor(batch.input_ids, dtype=torch.long),
            "attention_mask": torch.tensor(batch.attention_mask, dtype=torch.long),
            "output_hidden_states": True,
        }
        if token_types and model.config.model_type != "distilbert":
            inputs["token_type_ids"] = torch.tensor(batch.token_types, dtype=torch.long)
        with torch.no_grad():
            out = model(**inputs)
        logits = out.logits.float().numpy() if "logits" in out else None
        return out.hidden_states[-1].float().numpy(), logits

    return run
