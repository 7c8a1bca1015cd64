"""Checks of PEFT's ``adapter_config.json``.

Every option of PEFT's ``LoraConfig`` is either honoured, without effect on what a saved adapter
computes, or refused by name.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from fedjax_lora.core.json_values import Record
from fedjax_lora.interop import patterns

__all__ = ["PEFT_DEFAULT", "REPEATABLE_INITS", "problems"]

PEFT_DEFAULT = 8
"""PEFT's default of ``r`` and ``lora_alpha``."""

# Features that change what an adapter computes in a way that two factors cannot express.
_UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "enable_lora",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
)
_HONOURED = (
    "bias",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "modules_to_save",
    "peft_type",
    "alpha_pattern",
    "r",
    "rank_pattern",
    "target_modules",
    "task_type",
    "use_rslora",
)
# They matter in training, before the first step, or for kinds of layers that no model here has.
_WITHOUT_EFFECT = (
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",  # PEFT itself sets it by the kind of layer
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "merge_weights",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "unsloth_fixed",
    "unsloth_version",
)
_KNOWN = frozenset((*_UNSUPPORTED, *_HONOURED, *_WITHOUT_EFFECT))

# Initialisations that leave the base as it is, so that the saved factors are the whole change.
_PLAIN_INITS = ("eva", "gaussian", "mica", "orthogonal")
# The base is changed by factors that PEFT computes from the base again when it loads an adapter.
REPEATABLE_INITS = ("olora", "pissa")
_SAVE_CONVERTED = (
    "save it with save_pretrained(folder, path_initial_model_for_weight_conversion=INITIAL), where "
    "INITIAL is the folder of the adapter as it was before training"
)
_LOST_INITS: Mapping[str, str] = MappingProxyType(
    {
        "pissa_niter_": _SAVE_CONVERTED,
        "corda": _SAVE_CONVERTED,
        "lora_ga": _SAVE_CONVERTED,
        "loftq": "save the merged model (merge_and_unload), or the quantized base as a checkpoint "
        "of its own with an adapter whose init_lora_weights is true",
    }
)

_PLAIN_NAME = re.compile(r"[\w.]+")


def problems(config: Record) -> Iterator[str]:
    """Yield what of a config cannot be computed, as parts of a sentence."""
    if config.get("peft_type") != "LORA":
        yield f"peft_type is {config.get('peft_type')!r}, not 'LORA'"
        return
    for name in _UNSUPPORTED:
        if config.get(name):
            yield f"{name} is not supported"
    for name in config.keys() - _KNOWN:
        if config[name]:
            yield f"{name} is {config[name]!r}, an option that is not known here"
    if config.get("bias", "none") != "none":
        yield f"bias is {config['bias']!r} (only 'none')"
    if not isinstance(config.get("use_rslora"), bool | None):
        yield f"use_rslora is {config['use_rslora']!r}, not true or false"
    yield from _init_problems(config.get("init_lora_weights", True))
    yield from _alpha_problems("lora_alpha", config.get("lora_alpha", PEFT_DEFAULT))
    yield from _rank_problems("r", config.get("r", PEFT_DEFAULT))
    for name, check in (("alpha_pattern", _alpha_problems), ("rank_pattern", _rank_problems)):
        yield from _pattern_problems(name, config.get(name) or {}, check)
    yield from _target_problems(config)


def _init_problems(init: Any) -> Iterator[str]:
    """Yield an initialisation after which the saved factors are not the whole change."""
    name = str(init).lower()
    if init is None or isinstance(init, bool) or name in (*_PLAIN_INITS, *REPEATABLE_INITS):
        return
    for start, advice in _LOST_INITS.items():
        if name.startswith(start):
            yield (
                f"init_lora_weights is {init!r}, which changed the base before training in a way "
                f"that the file does not hold; {advice}"
            )
            return
    yield f"init_lora_weights is {init!r}, which is not known here"


def _pattern_problems(
    field: str, values: Any, value_problems: Callable[[str, Any], Iterator[str]]
) -> Iterator[str]:
    if not isinstance(values, dict):
        yield f"{field} is not an object"
        return
    for pattern, value in values.items():
        yield from value_problems(pattern, value)
        if problem := patterns.problem(pattern):
            yield f"{field} {pattern!r} {problem}"


def _alpha_problems(key: str, alpha: Any) -> Iterator[str]:
    number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not number or not math.isfinite(alpha) or alpha <= 0:
        yield f"alpha of {key!r} is {alpha!r}, not a number above 0"


def _rank_problems(key: str, rank: Any) -> Iterator[str]:
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        yield f"rank of {key!r} is {rank!r}, not a whole number above 0"


def _target_problems(config: Record) -> Iterator[str]:
    """Yield what is wrong with the options that say which modules are adapted."""
    for name in ("target_modules", "exclude_modules"):
        value = config.get(name)
        if isinstance(value, str):
            problem = patterns.problem(value)
            yield from [f"{name} {value!r} {problem}"] if problem else []
        elif not _is_names(value):
            yield f"{name} is {value!r}, not a pattern or a list of names"
    modules = config.get("modules_to_save")
    if not _is_names(modules) or not all(map(_PLAIN_NAME.fullmatch, modules or ())):
        yield f"modules_to_save is {modules!r}, not a list of plain names"
    yield from _layer_problems(config)


def _layer_problems(config: Record) -> Iterator[str]:
    """Yield what is wrong with the options that choose layers by number."""
    layers = config.get("layers_to_transform")
    numbers = layers if isinstance(layers, list) else [layers]
    if layers is not None and not all(type(number) is int for number in numbers):
        yield f"layers_to_transform is {layers!r}, not layer numbers"
    elif layers is not None and isinstance(config.get("target_modules"), str):
        yield "layers_to_transform is given with a pattern as target_modules, which PEFT refuses"
    yield from _stack_problems(config.get("layers_pattern") or [])


def _stack_problems(stacks: Any) -> Iterator[str]:
    names = [stacks] if isinstance(stacks, str) else stacks
    if not _is_names(names) or not all(map(_PLAIN_NAME.fullmatch, names)):
        yield f"layers_pattern is {stacks!r}, not plain names"


def _is_names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(x, str) for x in value))
