"""Checkpoints from the fields of the config classes of `transformers`, for every family."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import transformers
from transformers.activations import ACT2CLS

from experiments.robustness.fuzz import bases, grammar
from experiments.robustness.fuzz.case import Case

PART = "checkpoints"
ACTIVATIONS = [name for name in ACT2CLS if name not in ("prelu", "xielu")]  # with parameters
NAMES_OF_LABELS = {
    "three names": {0: "neg", 1: "neutral", 2: "pos"},
    "one name": {0: "score"},
    "two equal names": {0: "same", 1: "same"},
    "names of numbers": {0: "2", 1: "1", 2: "0"},
    "an empty name": {0: "", 1: "b"},
    "five names": dict(enumerate("abcde")),
}

_ANY: dict[str, list[Any]] = {
    "vocab_size": [32, 40, 37],
    "initializer_range": [0.02, 0.0, 1.0],
    "tie_word_embeddings": ["usual", True, False],
    "dtype": ["float32", "bfloat16", "float16"],
    "problem_type": [
        None, "single_label_classification", "multi_label_classification", "regression",
    ],
    "id2label": [None, *NAMES_OF_LABELS],
    "bos_token_id": ["usual", None, 5],
    "eos_token_id": ["usual", None, 5, [2, 3]],
    "output_hidden_states": [False, True],
    "return_dict": [True, False],
    "chunk_size_feed_forward": [0, 2],
    "is_encoder_decoder": [False, True],
}  # fmt: skip
_ENCODER: dict[str, list[Any]] = _ANY | {
    "hidden_size": [16, 24],
    "num_hidden_layers": [2, 1, 3],
    "num_attention_heads": [4, 1, 8],
    "intermediate_size": [24, 16, 40],
    "hidden_act": ["gelu", *(name for name in ACTIVATIONS if name != "gelu")],
    "hidden_dropout_prob": [0.1, 0.0, 0.5],
    "attention_probs_dropout_prob": [0.1, 0.0, 0.5],
    "max_position_embeddings": [32, 16, 40],
    "type_vocab_size": [2, 1, 3],
    "layer_norm_eps": [1e-12, 1e-5, 0.1],
    "pad_token_id": ["usual", None, 31, 2],
    "use_cache": [True, False],
    "classifier_dropout": [None, 0.0, 0.4],
    "is_decoder": [False, True],
    "add_cross_attention": [False, True],
}
_ALBERT = {name: x for name, x in _ENCODER.items() if name not in (
    "classifier_dropout", "is_decoder", "add_cross_attention", "use_cache",
)} | {
    "embedding_size": [8, 16, 24],
    "num_hidden_groups": [1, 2],
    "inner_group_num": [1, 2],
    "classifier_dropout_prob": [0.1, 0.0],
    "hidden_act": ["gelu_new", "gelu", "relu", "silu", "tanh"],
}  # fmt: skip
_DISTILBERT = _ANY | {
    "max_position_embeddings": [32, 16, 40],
    "sinusoidal_pos_embds": [False, True],
    "n_layers": [2, 1, 3],
    "n_heads": [4, 1, 8],
    "dim": [16, 24],
    "hidden_dim": [24, 40],
    "dropout": [0.1, 0.0],
    "attention_dropout": [0.1, 0.0],
    "activation": ["gelu", *(name for name in ACTIVATIONS if name != "gelu")],
    "qa_dropout": [0.1, 0.0],
    "seq_classif_dropout": [0.2, 0.0],
    "pad_token_id": ["usual", None, 31],
}
ROPE: Mapping[str, Any] = {
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0},
    "yarn": {
        "rope_type": "yarn", "factor": 4.0, "rope_theta": 100.0,
        "original_max_position_embeddings": 8,
    },
    "yarn, every option": {
        "rope_type": "yarn", "factor": 2.0, "rope_theta": 500.0, "beta_fast": 16.0,
        "beta_slow": 2.0, "attention_factor": 0.7, "original_max_position_embeddings": 16,
        "truncate": False,
    },
    "yarn, mscale": {
        "rope_type": "yarn", "factor": 4.0, "rope_theta": 100.0, "mscale": 0.7,
        "mscale_all_dim": 1.2, "original_max_position_embeddings": 8,
    },
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "rope_theta": 100.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
    },
    "longrope": {
        "rope_type": "longrope", "factor": 4.0, "rope_theta": 100.0,
        "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0],
        "original_max_position_embeddings": 8,
    },
    "proportional": {"rope_type": "proportional", "rope_theta": 100.0, "factor": 2.0},
    "another base": {"rope_type": "default", "rope_theta": 37.0},
    "a part": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
}  # fmt: skip
_DECODER: dict[str, list[Any]] = _ANY | {
    "hidden_size": [16, 24],
    "num_hidden_layers": [2, 1, 3],
    "num_attention_heads": [4, 2],
    "num_key_value_heads": [2, 1, 4, None],
    "intermediate_size": [24, 40],
    "hidden_act": ["silu", *(name for name in ACTIVATIONS if name != "silu")],
    "max_position_embeddings": [32, 48, 64],
    "rms_norm_eps": [1e-3, 1e-6, 0.1],
    "use_cache": [True, False],
    "pad_token_id": ["usual", None, 31, 2],
    "rope_parameters": [None, *ROPE],
    "attention_dropout": [0.0, 0.5],
}
_QWEN: dict[str, list[Any]] = _DECODER | {
    "use_sliding_window": [False, True],
    "sliding_window": [4096, 3, 1, None],
    "max_window_layers": [28, 0, 1],
    "layer_types": [
        None, ["full_attention", "sliding_attention"], ["sliding_attention", "full_attention"],
        ["sliding_attention"] * 2, ["full_attention"] * 2,
    ],
}  # fmt: skip
FIELDS: Mapping[str, Mapping[str, list[Any]]] = {
    "albert": _ALBERT,
    "bert": _ENCODER,
    "distilbert": _DISTILBERT,
    "roberta": _ENCODER,
    "llama": _DECODER | {
        "pretraining_tp": [1, 2],
        "attention_bias": [False, True],
        "mlp_bias": [False, True],
        "head_dim": [None, 8, 6],
    },
    "mistral": _DECODER | {"sliding_window": [4096, 3, 1, None], "head_dim": [None, 8, 6]},
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": [8, 4, 6], "attention_bias": [False, True]},
}  # fmt: skip
"""Values of the fields of each family's config class; the first one is the usual value."""

NOT_DRAWN: Mapping[str, str] = {
    "transformers_version": "written by transformers",
    "architectures": "written by transformers; the class is drawn as `task`",
    "label2id": "the inverse of id2label",
}
"""Fields of the config classes that are not drawn, with the reason."""

ADDED: dict[str, list[Any]] = {
    "added": [
        {},
        {"position_embedding_type": "relative_key"},
        {"position_embedding_type": "relative_key_query"},
        {"position_embedding_type": "absolute"},
        {"gradient_checkpointing": True, "torchscript": False, "finetuning_task": "mrpc"},
        {"pooler_type": "first_token_transform", "pooler_fc_size": 768, "directionality": "bidi"},
        {"pruned_heads": {"0": [1]}},
        {"attention_bias": True},
        {"sliding_window": 2},
        {"partial_rotary_factor": 0.5},
        {"rope_theta": 77.0, "rope_parameters": "absent"},
        {
            "rope_theta": 77.0,
            "rope_scaling": {"type": "linear", "factor": 2.0},
            "rope_parameters": "absent",
        },
        {"attn_implementation": "sdpa", "_attn_implementation": "sdpa"},
        {"an_unknown_field": [1, 2]},
        {"model_type": "absent"},
        {"architectures": "absent"},
        {"num_labels": 5, "id2label": "absent", "label2id": "absent"},
        {"transformers_version": "4.20.0"},
        {"auto_map": {"AutoModel": "modeling_x.X"}},
        {"torch_dtype": "bfloat16", "dtype": "absent"},
        {"task_specific_params": {}, "summary_type": "first", "output_past": True},
    ],
}  # fmt: skip
"""Keys that files have although the class has no such field; ``absent`` removes a key."""

FILE: dict[str, list[Any]] = {
    "weights": ["one file", "shards", "bin", "bin shards", "without metadata", "both"],
    "names": ["usual", "bare", "module.", "_orig_mod.", "base_model.model.", "gamma"],
    "head": ["usual", "tied copy", "other head", "no pooler", "extra buffers", "without head"],
    "padding_side": ["right", "left"],
    "tokenizer": ["usual", "no pad", "pad is end", "pad beyond", "ends texts"],
    "storage": ["as it is", "float64", "float16", "bfloat16"],
}
"""Options of the files, and of the tokenizer beside them."""

TASKS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(bases.ENCODERS, ("SEQ_CLS",) * 8 + ("MASKED_LM", "TOKEN_CLS")),
    **dict.fromkeys(bases.DECODERS, ("SEQ_CLS", "CAUSAL_LM", "CAUSAL_LM")),
}


def undrawn() -> dict[str, set[str]]:
    """Fields of the config classes that are neither drawn nor left out, by family."""
    return {
        family: {
            field.name
            for field in dataclasses.fields(type(transformers.AutoConfig.for_model(family)))
        }
        - {*FIELDS[family], *NOT_DRAWN}
        for family in bases.FAMILIES
    }


def cases() -> Iterator[Case]:
    """Endlessly many cases: each value of each field in turn, alternating between the families."""
    focuses = {
        family: grammar.focuses({**FIELDS[family], **ADDED, **FILE}) for family in bases.FAMILIES
    }
    number = 0
    while True:
        rng = np.random.default_rng([number, 2])
        turn, place = divmod(number, len(bases.FAMILIES))
        family = bases.FAMILIES[place]
        # The families begin at different fields, so that few cases already reach all of them.
        start = place * len(focuses[family]) // len(bases.FAMILIES)
        about, value = focuses[family][(start + turn) % len(focuses[family])]
        others = grammar.draw({**FIELDS[family], **FILE}, rng) if turn % 2 else {}
        drawn = {"about": about, **others, about: value}
        task = str(rng.choice(TASKS[family]))
        yield Case(PART, number, {"family": family, "task": task, **drawn})
        number += 1
