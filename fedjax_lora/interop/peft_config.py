"""PEFT's ``adapter_config.json``: what it says of an adapter, and what of that can be computed.

Every option of PEFT's ``LoraConfig`` is either honoured here, without effect on what a saved
adapter computes, or refused by name.
"""

import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.core.json_values import Record
from fedjax_lora.core.untrusted_files import read_json
from fedjax_lora.interop import patterns
from fedjax_lora.interop.peft_writer import CONFIG, WEIGHTS

__all__ = ["changes_base", "is_targeted", "module_rank", "module_scale", "read_config", "task_of"]

_MAX_CONFIG_BYTES = 4 << 20
_PEFT_DEFAULT = 8  # of ``r`` and ``lora_alpha``

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
    "fan_in_fan_out",  # PEFT itself turns it off for linear layers
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
_REPEATABLE_INITS = ("olora", "pissa")
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

_TASK_OF_CLASS: tuple[tuple[str, str], ...] = (
    ("ForSequenceClassification", "SEQ_CLS"),
    ("ForCausalLM", "CAUSAL_LM"),
    ("LMHeadModel", "CAUSAL_LM"),
    ("ForTokenClassification", "TOKEN_CLS"),
    ("ForQuestionAnswering", "QUESTION_ANS"),
    ("ForConditionalGeneration", "SEQ_2_SEQ_LM"),
    ("Model", "FEATURE_EXTRACTION"),
)
# What PEFT adapts in the models of this library if the config does not say.
_DEFAULT_TARGETS = ("query", "value", "q_proj", "v_proj")
_PLAIN_NAME = re.compile(r"[\w.]+")


def read_config(folder: str | pathlib.Path) -> Record:
    """Read and check the ``adapter_config.json`` of a folder.

    Raises:
      InputError: the file is missing, too large or not JSON; the adapter is not LoRA or uses an
        unsupported feature or value; or the weights are pickled.
    """
    path = pathlib.Path(folder)
    file = path / CONFIG
    if not file.is_file():  # reading a pipe would block
        raise InputError(f"{folder} is no PEFT adapter: it has no readable {CONFIG}.")
    if file.stat().st_size > _MAX_CONFIG_BYTES:
        raise InputError(f"{file} is larger than any PEFT config; it is not one.")
    config = read_json(file)
    if not isinstance(config, dict):
        raise InputError(f"{file} must hold one JSON object.")
    raise_all(f"{file} cannot be used", _problems(config))
    if not (path / WEIGHTS).is_file() and (path / "adapter_model.bin").is_file():
        raise InputError(
            f"{path} holds its adapter as a pickle (adapter_model.bin), which can run code when "
            "it is read; save it again with PEFT's safe_serialization=True."
        )
    return config


def task_of(config: Record) -> str | None:
    """Return PEFT's task type of an adapter; None if the config does not say.

    Without a ``task_type`` PEFT stores the class of the model instead; the name of a class that
    belongs to no task type is returned as it is.
    """
    if config.get("task_type"):
        return str(config["task_type"])
    mapping = config.get("auto_mapping")
    name = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    if not isinstance(name, str):
        return None
    return next((task for end, task in _TASK_OF_CLASS if name.endswith(end)), name)


def changes_base(config: Record) -> str | None:
    """Return how the adapter's initialisation changes the base: ``pissa``, ``olora`` or None."""
    init = str(config.get("init_lora_weights", True)).lower()
    return init if init in _REPEATABLE_INITS else None


def is_targeted(config: Record, name: str) -> bool:
    """Whether PEFT puts an adapter on the module of this name, by its own rules.

    Args:
      config: from `read_config`.
      name: the module's name in the base model.
    """
    if _is_excluded(config, name):
        return False
    targets = config.get("target_modules")
    targets = _DEFAULT_TARGETS if targets is None else targets
    if targets == "all-linear":
        return True
    if isinstance(targets, str):
        return patterns.is_match(targets, name)
    return name in targets or (_is_listed(targets, name) and _is_in_layers(config, name))


def _is_excluded(config: Record, name: str) -> bool:
    """Whether a module is left out by name, or trained as a whole."""
    saved = config.get("modules_to_save") or ()
    return _is_listed(config.get("exclude_modules") or [], name) or any(
        re.fullmatch(rf"(|.*\.){module}(|\..*)", name) for module in saved
    )


def _is_listed(modules: str | Sequence[str], name: str) -> bool:
    """Whether a name fits a pattern, or is or ends with one of several names."""
    if isinstance(modules, str):
        return patterns.is_match(modules, name)
    return any(name == module or name.endswith(f".{module}") for module in modules)


def _is_in_layers(config: Record, name: str) -> bool:
    """Whether the first layer number in a name is one of ``layers_to_transform``, if given."""
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    stacks = config.get("layers_pattern") or []
    for stack in [stacks] if isinstance(stacks, str) else stacks or [None]:
        place = r".*?\.[^.]*" if stack is None else rf"(?:^|.*?\.){stack}"
        if found := re.match(rf"{place}\.(\d+)\.", name):
            return int(found[1]) in (layers if isinstance(layers, list) else [layers])
    return False


def module_rank(config: Record, name: str) -> int:
    """Return the rank of a module's adapter."""
    return _module_value(config, name, "rank_pattern", "r")


def module_scale(config: Record, name: str, rank: int) -> float:
    """Return alpha divided by the rank, or by its square root with rank-stabilised LoRA."""
    alpha = _module_value(config, name, "alpha_pattern", "lora_alpha")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _module_value(config: Record, name: str, pattern_field: str, default: str) -> Any:
    """The value of the first pattern that matches the end of the name (PEFT's rule)."""
    for pattern, value in (config.get(pattern_field) or {}).items():
        if patterns.is_match(pattern, name, before=r"(.*\.)?(", after=")"):
            return value
    return config.get(default, _PEFT_DEFAULT)


def _problems(config: Record) -> Iterator[str]:
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
    yield from _alpha_problems("lora_alpha", config.get("lora_alpha", _PEFT_DEFAULT))
    yield from _rank_problems("r", config.get("r", _PEFT_DEFAULT))
    for name, problems in (("alpha_pattern", _alpha_problems), ("rank_pattern", _rank_problems)):
        yield from _pattern_problems(name, config.get(name) or {}, problems)
    yield from _target_problems(config)


def _init_problems(init: Any) -> Iterator[str]:
    """Yield an initialisation after which the saved factors are not the whole change."""
    if init is None or isinstance(init, bool) or init in _PLAIN_INITS:
        return
    name = str(init).lower()
    if name in _REPEATABLE_INITS:
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
