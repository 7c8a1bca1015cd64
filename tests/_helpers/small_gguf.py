"""GGUF files of small PyTorch decoders, written as llama.cpp's converter writes them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip
"""Sizes of rows that the types of GGUF divide into blocks of 32."""


def write(
    file: Path,
    model: Any,
    type: str = "F32",
    *,
    extra: Mapping[str, Any] | None = None,
    more_tensors: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write a decoder of `transformers`: matrices in the type, vectors in float32."""
    import gguf

    config = model.config
    kind = config.model_type
    writer = gguf.GGUFWriter(file, kind)
    writer.add_name("small")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if kind != "qwen2":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_rope_dimension_count(config.head_dim)
    for key, value in (extra or {}).items():
        add(writer, key, value)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        _add_tensor(writer, *_converted(name, value.numpy(), config), type)
    for name, value in (more_tensors or {}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def tokenizer_facts(
    tokens: Sequence[str],
    *,
    model: str = "gpt2",
    control: Sequence[str] = (),
    **more: Any,
) -> dict[str, Any]:
    """The metadata of a tokenizer."""
    types = [3 if token in control else 1 for token in tokens]
    keys = {"model": model, "tokens": list(tokens), "token_type": types} | more
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def byte_level(pre: str, texts: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """A tokenizer of 400 tokens that splits texts as a model does, and its metadata."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    backend = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    split = PRETOKENIZE_REGEX
    split = split.replace(r"\p{N}|", r"\p{N}{1,3}|", 1) if pre == "llama-bpe" else split
    plain = pre in ("gpt-2", "smollm")
    parts: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=plain)]
    if pre == "smollm":
        parts.insert(0, pre_tokenizers.Digits(individual_digits=True))
    elif not plain:
        parts.insert(0, pre_tokenizers.Split(Regex(split), behavior="isolated"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    letters = np.random.default_rng(0).integers(ord("a"), ord("z") + 1, (400, 6)).astype(np.uint8)
    words = " ".join(f"{row.tobytes().decode()} {n * n}" for n, row in enumerate(letters))
    backend.train_from_iterator([*texts, words], trainer)
    stored = json.loads(backend.to_str())["model"]
    facts = tokenizer_facts(
        sorted(stored["vocab"], key=stored["vocab"].get),
        control=("<|start|>", "<|end|>"),
        pre=pre,
        merges=[" ".join(pair) for pair in stored["merges"]],
        bos_token_id=0,
        eos_token_id=1,
    )
    return backend, facts


def add(writer: Any, key: str, value: Any) -> None:
    """Add one key of metadata."""
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    adders |= {str: writer.add_string, list: writer.add_array}
    adders[type(value)](key, value)


def _converted(name: str, value: np.ndarray, config: Any) -> tuple[str, np.ndarray]:
    module, _, leaf = name.rpartition(".")
    layer = ""
    if module.startswith("model.layers."):
        _, _, number, module = module.split(".", 3)
        layer = f"blk.{number}."
    heads = {"self_attn.q_proj": config.num_attention_heads}
    heads["self_attn.k_proj"] = config.num_key_value_heads
    if config.model_type == "llama" and module in heads:
        halves = value.reshape(heads[module], 2, -1, *value.shape[1:])
        value = halves.swapaxes(1, 2).reshape(value.shape)
    return f"{layer}{NAMES[module]}.{leaf}", value


def _add_tensor(writer: Any, name: str, value: np.ndarray, type: str) -> None:
    import gguf

    kind = gguf.GGMLQuantizationType[type if value.ndim > 1 else "F32"]
    if kind.name == "F16":
        writer.add_tensor(name, value.astype(np.float16))
    elif kind.name == "F32":
        writer.add_tensor(name, value)
    else:
        writer.add_tensor(name, gguf.quantize(value, kind), raw_dtype=kind)
