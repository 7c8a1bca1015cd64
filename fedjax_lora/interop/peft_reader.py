"""Reading of PEFT checkpoints from untrusted sources.

Nothing is unpickled, no name in the files is used as a path, and a tensor is read only after its
shape has been compared with that of the base model.
"""

import math
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.core.untrusted_files import check_regular_file, first_line, read_json
from fedjax_lora.interop.peft_writer import CONFIG, PREFIX, WEIGHTS, Factors

__all__ = ["load", "read", "read_config", "shapes"]

_MAX_CONFIG_BYTES = 4 << 20
_PEFT_DEFAULT = 8  # of ``r`` and ``lora_alpha``
_FLOAT_TYPES = ("F64", "F32", "F16", "BF16")
# Features that change what an adapter computes in a way that two factors cannot express.
_UNSUPPORTED = (
    "use_dora",
    "use_qalora",
    "lora_bias",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
)
# A pattern of an untrusted config must not take exponential time: no groups, little repetition.
_PATTERN = re.compile(r"[\w.\-^$\\*+|]{1,200}")

_Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by name, without PEFT's prefix."""


def load(
    folder: str | pathlib.Path, *, modules: Mapping[str, tuple[int, int]], tensors: _Shapes
) -> tuple[dict[str, Factors], dict[str, np.ndarray]]:
    """Read a PEFT checkpoint for a known base.

    Args:
      folder: the checkpoint.
      modules: matrices of the base that can be adapted, ``(i, o)`` by Hugging Face module name.
      tensors: shapes of the other tensors that may be stored, by Hugging Face name.

    Returns:
      The factors by module name, and the other tensors by Hugging Face name in PyTorch's layout.

    Raises:
      InputError: the folder or a file is missing or damaged, the weights are pickled, the adapter
        is not LoRA or uses an unsupported feature, or tensors do not fit the base; the message
        names all of these tensors.
    """
    path = pathlib.Path(folder)
    config = read_config(path)
    values = _read(path / WEIGHTS, lambda x: _adapter_problems(x, modules, tensors, config))
    factors = {}
    for name in modules:
        if f"{name}.lora_A.weight" in values:
            a, b = (values.pop(f"{name}.lora_{x}.weight").T for x in "AB")
            factors[name] = Factors(a, b, _scale(config, name, a.shape[1]))
    return factors, values


def read(file: pathlib.Path, shapes: _Shapes) -> dict[str, np.ndarray]:
    """Read a safetensors file as float32.

    Args:
      file: the file.
      shapes: the tensors that it may hold, and their shapes.

    Raises:
      InputError: the file is damaged, or holds other tensors or shapes.
    """
    return _read(file, lambda x: _shape_problems(x, shapes, set(shapes)))


def shapes(file: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Read the shape of every tensor of a safetensors file, by name without PEFT's prefix.

    Only the header of the file is read.

    Raises:
      InputError: the file is missing or damaged.
    """
    return {name: shape for name, (shape, _) in _headers(_open(file)).items()}


def _read(
    file: pathlib.Path, shape_problems: Callable[[_Shapes], Iterable[str]]
) -> dict[str, np.ndarray]:
    """Read all tensors as float32, by name without PEFT's prefix, if their shapes are right."""
    opened = _open(file)
    headers = _headers(opened)
    type_problems = [
        f"{name} is stored as {dtype}, not as floating-point numbers"
        for name, (_, dtype) in headers.items()
        if dtype not in _FLOAT_TYPES
    ]
    stored = {name: shape for name, (shape, _) in headers.items()}
    raise_all(f"{file} does not fit the model", [*type_problems, *shape_problems(stored)])
    values = {_bare(n): np.asarray(opened.get_tensor(n), np.float32) for n in opened.keys()}  # noqa: SIM118
    not_finite = sorted(name for name, value in values.items() if not np.all(np.isfinite(value)))
    raise_all(f"{file} holds numbers that are not finite", not_finite[:5])
    return values


def _open(file: pathlib.Path) -> Any:
    check_regular_file(file)
    try:
        return safe_open(file, framework="np")
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{file} is not a readable safetensors file ({first_line(error)})."
        ) from error


def _headers(opened: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every tensor, by name without PEFT's prefix."""
    slices = {_bare(name): opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
    return {name: (tuple(x.get_shape()), x.get_dtype()) for name, x in slices.items()}


def read_config(folder: str | pathlib.Path) -> dict[str, Any]:
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
    raise_all(f"{file} cannot be used", _config_problems(config))
    if not (path / WEIGHTS).is_file() and (path / "adapter_model.bin").is_file():
        raise InputError(
            f"{path} holds its adapter as a pickle (adapter_model.bin), which can run code when "
            "it is read; save it again with PEFT's safe_serialization=True."
        )
    return config


def _config_problems(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("peft_type") != "LORA":
        yield f"peft_type is {config.get('peft_type')!r}, not 'LORA'"
    for name in _UNSUPPORTED:
        if config.get(name):
            yield f"{name} is not supported"
    if config.get("bias", "none") != "none":
        yield f"bias is {config['bias']!r} (only 'none')"
    yield from _alpha_problems("lora_alpha", config.get("lora_alpha", _PEFT_DEFAULT))
    yield from _rank_problems("r", config.get("r", _PEFT_DEFAULT))
    for name, problems in (("alpha_pattern", _alpha_problems), ("rank_pattern", _rank_problems)):
        yield from _pattern_problems(name, config.get(name) or {}, problems)


def _pattern_problems(
    name: str, patterns: Any, value_problems: Callable[[str, Any], Iterator[str]]
) -> Iterator[str]:
    if not isinstance(patterns, dict):
        yield f"{name} is not an object"
        return
    for key, value in patterns.items():
        yield from value_problems(key, value)
        if not _is_safe(key):
            yield f"{name} {key!r} is no simple pattern; write the module's whole name"


def _alpha_problems(key: str, alpha: Any) -> Iterator[str]:
    number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not number or not math.isfinite(alpha) or alpha <= 0:
        yield f"alpha of {key!r} is {alpha!r}, not a number above 0"


def _rank_problems(key: str, rank: Any) -> Iterator[str]:
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        yield f"rank of {key!r} is {rank!r}, not a whole number above 0"


def _is_safe(pattern: str) -> bool:
    """Whether a pattern is a regular expression that takes little time to match."""
    if not _PATTERN.fullmatch(pattern) or sum(pattern.count(c) for c in "*+") > 3:
        return False
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    """Alpha divided by the rank, or by its square root with rank-stabilised LoRA."""
    alpha = _module_value(config, name, "alpha_pattern", "lora_alpha")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _module_value(config: Mapping[str, Any], name: str, patterns: str, default: str) -> Any:
    """The value of the first pattern that matches the end of the name (PEFT's rule)."""
    for pattern, value in (config.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return config.get(default, _PEFT_DEFAULT)


def _bare(name: str) -> str:
    return name.removeprefix(PREFIX)


def _adapter_problems(
    stored: _Shapes,
    modules: Mapping[str, tuple[int, int]],
    tensors: _Shapes,
    config: Mapping[str, Any],
) -> Iterator[str]:
    """Differences between the shapes in a file and those of the base and the config."""
    known = {f"{name}.lora_{x}.weight" for name in modules for x in "AB"} | set(tensors)
    for name, shape in modules.items():
        pair = [stored.get(f"{name}.lora_{x}.weight") for x in "AB"]
        if pair != [None, None]:
            yield from _pair_problems(name, pair, shape, config)
    yield from _shape_problems(stored, tensors, known)
    if not any(".lora_A." in name for name in stored):
        yield "it adapts no layer"


def _pair_problems(
    name: str,
    pair: list[tuple[int, ...] | None],
    shape: tuple[int, int],
    config: Mapping[str, Any],
) -> Iterator[str]:
    """Differences between the shapes of two factors and the shape and rank of their matrix."""
    if None in pair:
        yield f"{name} has only one of its two factors"
        return
    inputs, outputs = shape
    rank = pair[0][0] if pair[0] else 0
    if pair != [(rank, inputs), (outputs, rank)] or not 1 <= rank <= min(inputs, outputs):
        yield f"{name} has factors {pair[0]} and {pair[1]} for a matrix {inputs} x {outputs}"
    elif (stated := _module_value(config, name, "rank_pattern", "r")) != rank:
        yield f"{name} has rank {rank}, but {CONFIG} says {stated}"


def _shape_problems(stored: _Shapes, shapes: _Shapes, known: set[str]) -> Iterator[str]:
    """Tensors of a wrong shape, and tensors that are not among the known ones."""
    for name, shape in shapes.items():
        if name in stored and stored[name] != shape:
            yield f"{name} is {stored[name]}, not {shape}"
    if unknown := sorted(set(stored) - known):
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        yield f"the model has no {', '.join(unknown[:5])}{more}"
