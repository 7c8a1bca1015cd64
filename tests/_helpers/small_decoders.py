"""Small random PyTorch decoders, saved as `transformers` saves them, to compare with."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_lora import lora

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
    "rms_norm_eps": 0.03,  # large enough to be seen
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_labels": 3,
}
_GEMMA = {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 5}
FAMILY_SIZES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "gemma2": {
        **_GEMMA,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 4.0,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "gemma3_text": {
        **_GEMMA,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 900.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
        },
    },
    "gpt2": {"n_inner": 40, "layer_norm_epsilon": 0.03},
    "internlm3": {
        "bias": True,
        "qkv_bias": True,
        "head_dim": 10,
        "rope_parameters": {"rope_type": "dynamic", "factor": 6.0, "rope_theta": 900.0},
    },
    "mistral": {"sliding_window": 4, "head_dim": 8},
    "opt": {"ffn_dim": 40, "word_embed_proj_dim": 24},
    "phi3": {"sliding_window": 5},
    "smollm3": {"no_rope_layers": [1, 0, 1], "tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {
        "head_dim": 10,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
    },
}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
MORE = tuple(family for family in FAMILY_SIZES if family not in FAMILIES)
"""Families of which fewer combinations are tested, or with `slow`."""
TIED = ("gemma2", "gemma3_text", "gpt2", "opt", "qwen2")


class Texts(NamedTuple):
    """Token ids without id 0, which is padding alone."""

    input_ids: np.ndarray
    attention_mask: np.ndarray


def texts(tokens: int = 11, *, left: bool = False) -> Texts:
    """Texts of 11, 3, 7 and 1 tokens."""
    rng = np.random.default_rng(0)
    mask = np.arange(tokens)[None] < np.array([[tokens], [3], [7], [1]])
    mask = mask[:, ::-1].copy() if left else mask
    return Texts(np.where(mask, rng.integers(3, 50, mask.shape), 0).astype(np.int32), mask)


def build(family: str, task: str = "CausalLM", **overrides: Any) -> Any:
    """A PyTorch model with every parameter random, norms and biases included."""
    import torch
    import transformers

    sizes = SIZES | FAMILY_SIZES[family] | overrides
    config = transformers.AutoConfig.for_model(family, attn_implementation="eager", **sizes)
    torch.manual_seed(0)
    auto = getattr(transformers, f"AutoModelFor{task}")
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for label, value in model.named_parameters():
            value.normal_(0, 0.3)
            if ("norm" in label or ".ln_" in label) and label.endswith("weight"):
                value.add_(1.0)
    return model


def saved(folder: Path, family: str, task: str = "CausalLM", **overrides: Any) -> tuple[Path, Any]:
    """A checkpoint folder and the model in it."""
    model = build(family, task, **overrides)
    model.save_pretrained(folder / family)
    return folder / family, model


def torch_logits(model: Any, batch: Texts) -> np.ndarray:
    """What PyTorch computes."""
    import torch

    mask = torch.tensor(batch.attention_mask, dtype=torch.long)
    inputs = {"input_ids": torch.tensor(batch.input_ids, dtype=torch.long), "attention_mask": mask}
    if model.config.model_type == "gpt2":  # by itself it counts padding; `generate` does not
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(**inputs)
    return out.logits.float().numpy()


def random_adapters(spec: lora.LoraSpec, key: jax.Array, *rows: int) -> Any:
    """An adapter that does something, or so many of them on a leading axis."""
    leaves, tree = jax.tree.flatten(spec.shapes())
    keys = jax.random.split(key, len(leaves))
    drawn = [
        0.3 * jax.random.normal(k, (*rows, *x.shape)) for k, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, drawn)
