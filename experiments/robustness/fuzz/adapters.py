"""PEFT adapters from the grammar of `LoraConfig`, for every family and task.

The values of an option may depend on the family: ``{query}``, ``{key}`` and ``{feed}`` stand for
names of its layers, ``{layer}`` for the name of its list of layers, ``{head}`` for the output layer
of its head and ``{classifier}`` for the head as a whole.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import peft

from experiments.robustness.fuzz import bases, grammar
from experiments.robustness.fuzz.case import Case

PART = "adapters"


class Names(NamedTuple):
    """Names of modules in a family, as options of PEFT use them."""

    query: str
    key: str
    feed: str
    layer: str
    embedding: str
    norm: str
    whole: str


_BERT = Names(
    "query", "key", "intermediate.dense", "layer", "word_embeddings", "LayerNorm",
    "encoder.layer.0.attention.self.query",
)  # fmt: skip
_DECODER = Names(
    "q_proj", "k_proj", "up_proj", "layers", "embed_tokens", "input_layernorm",
    "layers.0.self_attn.q_proj",
)  # fmt: skip
NAMES: Mapping[str, Names] = {
    "bert": _BERT,
    "roberta": _BERT,
    "distilbert": Names(
        "q_lin", "k_lin", "lin1", "layer", "word_embeddings", "sa_layer_norm",
        "transformer.layer.0.attention.q_lin",
    ),
    "albert": Names(
        "query", "key", "ffn", "albert_layers", "word_embeddings", "full_layer_layer_norm",
        "albert_layer_groups.0.albert_layers.0.attention.query",
    ),
    **dict.fromkeys(bases.DECODERS, _DECODER),
}  # fmt: skip

LORA: dict[str, list[Any]] = {
    "target_modules": [
        ["{query}", "{key}"],
        "all-linear",
        ["{query}"],
        ["{feed}", "{query}"],
        r".*\.({query}|{key})",
        r".*{layer}\.(0|1)\..*{query}",
        r".*{layer}s?\.[0-9]+\..*({feed}|{query})$",
        ["{whole}", "{feed}"],
        ["{head}", "{query}"],
        ["{embedding}", "{query}"],
        ["lm_head", "{query}"],
        ["{layer}.0.{feed}", "{key}"],
        "{whole_pattern}",
        ["pooler", "pooler.dense", "{key}"],
        None,
    ],
    "r": [4, 1, 2, 8, 24, 3],
    "lora_alpha": [8, 1, 16, 0.5, 7, 1000],
    "lora_dropout": [0.0, 0.3],
    "use_rslora": [False, True],
    "rank_pattern": [
        {},
        {"{query}": 2},
        {r".*{layer}\.1\..*": 6},
        {r".*{layer}\.(0|1)\..*{key}": 3},
        {r"{layer}\.[0-3]\..*{query}": 1, "{key}": 2},
        {r"^.*{query}$": 5},
        {"nothing": 3},
        {r"(.*\.)?{query}": 3, r".*": 2},
    ],
    "alpha_pattern": [
        {},
        {"{query}": 32},
        {r".*{layer}\.0\..*": 3.5},
        {r".*{layer}\.(0|1)\..*{key}": 12},
        {r"{layer}\.[01]\..*{query}": 1, ".*": 24},
        {r"^.*{query}$": 5},
    ],
    "layers_to_transform": [None, 0, [1], [0, 1]],
    "layers_pattern": [None, "{layer}", ["{layer}", "h"]],
    "exclude_modules": [None, ["{key}"], r".*\.0\..*{query}", ["{head}"], ["{layer}.1.{query}"]],
    "modules_to_save": [
        None,
        ["{classifier}"],
        ["pooler"],
        ["{embedding}"],
        ["lm_head"],
        ["{norm}"],
        ["{classifier}", "pre_classifier", "pooler"],
    ],
    "bias": ["none", "all", "lora_only"],
    "lora_bias": [False, True],
    "fan_in_fan_out": [False, True],
    "init_lora_weights": [
        True, False, "gaussian", "pissa", "pissa_niter_4", "olora", "orthogonal", "loftq", "eva",
        "corda", "lora_ga", "mica",
    ],
    "use_dora": [False, True],
    "trainable_token_indices": [None, [1, 5], {"{embedding}": [2]}],
    "target_parameters": [None, ["{query}.weight"]],
    "layer_replication": [None, [[0, 2], [1, 2]]],
    "alora_invocation_tokens": [None, [5, 6]],
    "use_qalora": [False, True],
    "loftq_config": [{}, {"loftq_bits": 4}],
    "use_bdlora": [None, {"target_modules_bd_a": ["{query}"], "nblocks": 2, "match_strict": False}],
    "kasa_config": [None, {}],
    "ensure_weight_tying": [False, True],
    "inference_mode": [False, True],
    "revision": [None, "main"],
}  # fmt: skip
"""Values of the fields of `LoraConfig`; the first one is the usual value."""

NOT_DRAWN: Mapping[str, str] = {
    "task_type": "drawn as `task` and `stated`, because the model's class depends on it",
    "peft_type": "always LORA",
    "auto_mapping": "written by PEFT",
    "peft_version": "written by PEFT; files of older versions are drawn as `file`",
    "base_model_name_or_path": "the base is drawn as `base`",
    "megatron_config": "needs Megatron-LM",
    "megatron_core": "needs Megatron-LM",
    "eva_config": "only read while an adapter is initialised from data",
    "corda_config": "only read while an adapter is initialised from data",
    "lora_ga_config": "only read while an adapter is initialised from data",
    "velora_config": "only read during training",
    "monteclora_config": "samples at random in every forward pass",
    "arrow_config": "routes between several adapters; not saved with one",
    "runtime_config": "not saved",
    "qalora_group_size": "only read with use_qalora",
    "target_r": "of AdaLoRA",
}
"""Fields of `LoraConfig` that are not drawn, with the reason."""

OTHERS: dict[str, list[Any]] = {
    "stated": ["as it is", None],
    "dtype": ["float32", "float16", "bfloat16"],
    "file": ["safetensors", "bin"],
    "place": ["folder", "subfolder"],
    "age": ["new", "old", "oldest", "future"],
    "embeddings": ["auto", True, False],
    "unpadded": [False, True],
    "tied": [False, True],
    "base": ["with head", "bare", "pretraining"],
}
"""Options that are not of `LoraConfig`: of the file and of the base."""

MILD = (
    "target_modules", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern",
    "alpha_pattern", "layers_to_transform", "exclude_modules", "inference_mode", "stated", "dtype",
    "place", "age", "unpadded", "tied", "base",
)  # fmt: skip
"""Options that are also drawn in cases that are about another one."""

TASKS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        bases.ENCODERS,
        ("SEQ_CLS",) * 12 + ("TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"),
    ),
    **dict.fromkeys(
        bases.DECODERS,
        ("SEQ_CLS", "CAUSAL_LM") * 6 + ("TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"),
    ),
}
"""Tasks of PEFT by family, as often as they are drawn."""


def undrawn() -> set[str]:
    """Fields of `LoraConfig` that are neither drawn nor left out."""
    return {field.name for field in dataclasses.fields(peft.LoraConfig)} - {*LORA, *NOT_DRAWN}


def cases() -> Iterator[Case]:
    """Endlessly many cases: each value of each option in turn, for changing families."""
    focuses = grammar.focuses({**LORA, **OTHERS})
    mild = {name: (LORA | OTHERS)[name] for name in MILD}
    number = 0
    while True:
        rng = np.random.default_rng([number, 1])
        family = bases.FAMILIES[(number + number // len(focuses)) % len(bases.FAMILIES)]
        task = str(rng.choice(TASKS[family]))
        about, value = focuses[number % len(focuses)]
        drawn = {"about": about, **grammar.draw(mild, rng), about: value}
        yield Case(PART, number, {"family": family, "task": task, **named(drawn, family, task)})
        number += 1


def named(value: Any, family: str, task: str) -> Any:
    """Replace the placeholders in option values by the family's names."""
    if isinstance(value, dict):
        return {named(k, family, task): named(x, family, task) for k, x in value.items()}
    if isinstance(value, list):
        return [named(x, family, task) for x in value]
    if not isinstance(value, str):
        return value
    names = NAMES[family]._asdict()
    names["whole_pattern"] = r".*" + names["whole"].replace(".", r"\.").replace("0", r"\d+")
    names["head"] = _head(family, task)
    names["classifier"] = names["head"].removesuffix(".out_proj")
    for name, replacement in names.items():
        value = value.replace("{" + name + "}", replacement)
    return value


def _head(family: str, task: str) -> str:
    if task == "QUESTION_ANS":
        return "qa_outputs"
    if task == "SEQ_CLS" and family == "roberta":
        return "classifier.out_proj"
    if task == "CAUSAL_LM":
        return "lm_head"
    return "classifier" if family in bases.ENCODERS else "score"
