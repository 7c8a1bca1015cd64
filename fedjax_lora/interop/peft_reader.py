"""Reading a PEFT checkpoint that may come from anywhere.

Nothing is unpickled, no name in the files becomes a path, and a tensor's shape is compared with
what the base model has before the tensor is read.
"""

import math
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from fedjax_lora.core.atomic_io import brief, need_file, read_json
from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.interop.peft_writer import CONFIG, PREFIX, WEIGHTS, Factors

_LARGEST_CONFIG = 4 << 20  # bytes
_DEFAULT = 8  # PEFT's, of ranks and alphas
_FLOATING = ("F64", "F32", "F16", "BF16")
# Features that change what an adapter computes, and that two plain factors cannot say.
_UNSUPPORTED = (
    "use_dora",
    "use_qalora",
    "lora_bias",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
)
# A pattern of a stranger's config must not take exponential time: no groups, little repetition.
_PATTERN = re.compile(r"[\w.\-^$\\*+|]{1,200}")


def load(
    folder: str | pathlib.Path,
    *,
    modules: Mapping[str, tuple[int, int]],
    tensors: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, Factors], dict[str, np.ndarray]]:
    """Read a PEFT checkpoint for a known base.

    Args:
      folder: the checkpoint.
      modules: the matrices of the base that can be adapted, ``(i, o)`` by Hugging Face name.
      tensors: what else may be stored, shapes by Hugging Face name.

    Raises:
      InputError: no such folder, a damaged file, pickled weights, another kind of adapter than
        LoRA, a feature that is not supported, or tensors that do not fit the base, all of them
        named.
    """
    path = pathlib.Path(folder)
    config = read_config(path)
    stored = _read(path / WEIGHTS, lambda found: _misfits(found, modules, tensors, config))
    factors = {}
    for name in modules:
        if f"{name}.lora_A.weight" in stored:
            a, b = (stored.pop(f"{name}.lora_{x}.weight").T for x in "AB")
            factors[name] = Factors(a, b, _scale(config, name, a.shape[1]))
    return factors, stored


def read(file: pathlib.Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file, as float32, which must be among these and of these shapes.

    Raises:
      InputError: a damaged file, other tensors, or other shapes.
    """
    return _read(file, lambda found: _other_shapes(found, shapes, set(shapes)))


def shapes(file: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a safetensors file by its bare name; none is read.

    Raises:
      InputError: a missing or damaged file.
    """
    return {name: shape for name, (shape, _) in _described(_open(file)).items()}


def _read(file: pathlib.Path, misfits: Callable[[Any], Iterable[str]]) -> dict[str, np.ndarray]:
    """Tensors by their bare names, if nothing is wrong with their shapes."""
    opened = _open(file)
    described = _described(opened)
    problems = [
        f"{name} is stored as {dtype}, not as floating-point numbers"
        for name, (_, dtype) in described.items()
        if dtype not in _FLOATING
    ]
    found = {name: shape for name, (shape, _) in described.items()}
    raise_all(f"{file} does not fit the model", [*problems, *misfits(found)])
    read = {_bare(n): np.asarray(opened.get_tensor(n), np.float32) for n in opened.keys()}  # noqa: SIM118
    broken = sorted(name for name, value in read.items() if not np.all(np.isfinite(value)))
    raise_all(f"{file} holds what is not a finite number", broken[:5])
    return read


def _open(file: pathlib.Path) -> Any:
    need_file(file)
    try:
        return safe_open(file, framework="np")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} is not a readable safetensors file ({brief(error)}).") from error


def _described(opened: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every tensor by its bare name."""
    slices = {_bare(name): opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
    return {name: (tuple(x.get_shape()), x.get_dtype()) for name, x in slices.items()}


def read_config(folder: str | pathlib.Path) -> dict[str, Any]:
    """The checked ``adapter_config.json`` of a folder whose weights can be read safely.

    Raises:
      InputError: absent, too large or not JSON; not LoRA; a feature or value not supported;
        pickled weights.
    """
    path = pathlib.Path(folder)
    file = path / CONFIG
    if not file.is_file():  # a pipe would be waited for
        raise InputError(f"{folder} is no PEFT adapter: it has no readable {CONFIG}.")
    if file.stat().st_size > _LARGEST_CONFIG:
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
    yield from _alpha_problems("lora_alpha", config.get("lora_alpha", _DEFAULT))
    yield from _rank_problems("r", config.get("r", _DEFAULT))
    for name, problems in (("alpha_pattern", _alpha_problems), ("rank_pattern", _rank_problems)):
        patterns = config.get(name) or {}
        if not isinstance(patterns, dict):
            yield f"{name} is not an object"
            continue
        for key, value in patterns.items():
            yield from problems(key, value)
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
    if not _PATTERN.fullmatch(pattern) or sum(pattern.count(c) for c in "*+") > 3:
        return False
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    """A matrix's alpha by its rank, or by the root of that."""
    alpha = _of_module(config, name, "alpha_pattern", "lora_alpha")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_module(config: Mapping[str, Any], name: str, patterns: str, default: str) -> Any:
    """PEFT's rule: the first pattern that matches the end of the name, else the default."""
    for pattern, value in (config.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return config.get(default, _DEFAULT)


def _bare(name: str) -> str:
    return name.removeprefix(PREFIX)


def _misfits(
    found: Mapping[str, tuple[int, ...]],
    modules: Mapping[str, tuple[int, int]],
    tensors: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any],
) -> Iterator[str]:
    """Everything in which an adapter's shapes differ from what base and config say."""
    known = {f"{name}.lora_{x}.weight" for name in modules for x in "AB"} | set(tensors)
    for name, (inputs, outputs) in modules.items():
        pair = [found.get(f"{name}.lora_{x}.weight") for x in "AB"]
        if None in pair:
            if pair != [None, None]:
                yield f"{name} has only one of its two factors"
            continue
        rank = pair[0][0] if pair[0] else 0
        if pair != [(rank, inputs), (outputs, rank)] or not 1 <= rank <= min(inputs, outputs):
            yield f"{name} has factors {pair[0]} and {pair[1]} for a matrix {inputs} x {outputs}"
        elif (said := _of_module(config, name, "rank_pattern", "r")) != rank:
            yield f"{name} has rank {rank}, but {CONFIG} says {said}"
    yield from _other_shapes(found, tensors, known)
    if not any(".lora_A." in name for name in found):
        yield "it adapts no layer"


def _other_shapes(
    found: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]], known: set[str]
) -> Iterator[str]:
    for name, shape in shapes.items():
        if name in found and found[name] != shape:
            yield f"{name} is {found[name]}, not {shape}"
    if unknown := sorted(set(found) - known):
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        yield f"no place for {', '.join(unknown[:5])}{more}"
