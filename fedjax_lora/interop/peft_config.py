"""PEFT's ``adapter_config.json``: which modules it adapts, with which ranks and scales."""

import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.core.json_values import Record
from fedjax_lora.core.untrusted_files import read_json
from fedjax_lora.interop import patterns, peft_config_checks
from fedjax_lora.interop.peft_config_checks import PEFT_DEFAULT, REPEATABLE_INITS
from fedjax_lora.interop.peft_writer import CONFIG, WEIGHTS

__all__ = ["changes_base", "is_targeted", "module_rank", "module_scale", "read_config", "task_of"]

_MAX_CONFIG_BYTES = 4 << 20

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
_DEFAULT_TARGETS = ("query", "value", "q_proj", "v_proj", "c_attn")


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
    raise_all(f"{file} cannot be used", peft_config_checks.problems(config))
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
    return init if init in REPEATABLE_INITS else None


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
    return config.get(default, PEFT_DEFAULT)
