"""Reading of PEFT checkpoints from untrusted sources.

Nothing is unpickled, no name in the files is used as a path, and a tensor is read only after its
shape has been compared with that of the base model.
"""

import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from fedjax_lora.core.errors import InputError, first_names, raise_all
from fedjax_lora.core.json_values import Record
from fedjax_lora.core.untrusted_files import check_regular_file, first_line
from fedjax_lora.interop import peft_config
from fedjax_lora.interop.peft_names import plain_names
from fedjax_lora.interop.peft_writer import CONFIG, WEIGHTS, Factors

__all__ = ["load", "read", "shapes"]

_FLOAT_TYPES = ("F64", "F32", "F16", "BF16")

_Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by plain name, see `plain_names`."""


def load(
    folder: str | pathlib.Path, *, modules: Mapping[str, tuple[int, int]], tensors: _Shapes
) -> tuple[dict[str, Factors], dict[str, np.ndarray]]:
    """Read a PEFT checkpoint for a known base.

    Args:
      folder: the checkpoint.
      modules: all matrices of the base that can be adapted, ``(i, o)`` by Hugging Face module
        name.
      tensors: shapes of the other tensors that may be stored, by Hugging Face name.

    Returns:
      The factors by module name, and the other tensors by Hugging Face name in PyTorch's layout.

    Raises:
      InputError: the folder or a file is missing or damaged, the weights are pickled, the adapter
        is not LoRA or uses an unsupported feature, or tensors do not fit the base; the message
        names all of these tensors.
    """
    path = pathlib.Path(folder)
    config = peft_config.read_config(path)
    values = _read(path / WEIGHTS, lambda x: _adapter_problems(x, modules, tensors, config))
    factors = {}
    for name in modules:
        if f"{name}.lora_A.weight" in values:
            a, b = (values.pop(f"{name}.lora_{x}.weight").T for x in "AB")
            scale = peft_config.module_scale(config, name, a.shape[1])
            factors[name] = Factors(a, b, scale)
    return factors, values


def read(file: pathlib.Path, shapes: _Shapes) -> dict[str, np.ndarray]:
    """Read a safetensors file as float32.

    Args:
      file: the file.
      shapes: the tensors that it may hold, and their shapes.

    Raises:
      InputError: the file is damaged, or holds other tensors or shapes.
    """
    return _read(file, lambda x: _shape_problems(x, shapes, set(shapes), {}))


def shapes(file: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Read the shape of every tensor of a safetensors file, by plain name.

    Only the header of the file is read.

    Raises:
      InputError: the file is missing or damaged.
    """
    return {name: shape for name, (shape, _) in _headers(_open(file), file).items()}


def _read(
    file: pathlib.Path, shape_problems: Callable[[_Shapes], Iterable[str]]
) -> dict[str, np.ndarray]:
    """Read all tensors as float32, by plain name, if their shapes are right."""
    opened = _open(file)
    headers = _headers(opened, file)
    type_problems = [
        f"{name} is stored as {dtype}, not as floating-point numbers"
        for name, (_, dtype) in headers.items()
        if dtype not in _FLOAT_TYPES
    ]
    stored = {name: shape for name, (shape, _) in headers.items()}
    raise_all(f"{file} does not fit the model", [*type_problems, *shape_problems(stored)])
    values = {
        name: np.asarray(opened.get_tensor(stored), np.float32)
        for stored, name in plain_names(opened.keys(), file).items()
    }
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


def _headers(opened: Any, file: pathlib.Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every tensor, by plain name."""
    names = plain_names(opened.keys(), file)
    slices = {name: opened.get_slice(stored) for stored, name in names.items()}
    return {name: (tuple(x.get_shape()), x.get_dtype()) for name, x in slices.items()}


def _adapter_problems(
    stored: _Shapes,
    modules: Mapping[str, tuple[int, int]],
    tensors: _Shapes,
    config: Record,
) -> Iterator[str]:
    """Differences between the shapes in a file and those of the base and the config."""
    known = {f"{name}.lora_{x}.weight" for name in modules for x in "AB"} | set(tensors)
    for name, shape in modules.items():
        pair = [stored.get(f"{name}.lora_{x}.weight") for x in "AB"]
        if pair != [None, None]:
            yield from _pair_problems(name, pair, shape, config)
    yield from _shape_problems(stored, tensors, known, config)
    if not any(".lora_A." in name for name in stored):
        yield "it adapts no layer"
    else:
        yield from _target_problems(stored, modules, config)


def _target_problems(stored: _Shapes, modules: Iterable[str], config: Record) -> Iterator[str]:
    """Yield modules whose factors are stored although PEFT would not load them, and the reverse."""
    adapted = {name for name in modules if f"{name}.lora_A.weight" in stored}
    targeted = {name for name in modules if peft_config.is_targeted(config, name)}
    if unused := sorted(adapted - targeted):
        yield (
            f"it adapts {first_names(unused)}, which {CONFIG} leaves out (target_modules, "
            "layers_to_transform, exclude_modules, modules_to_save)"
        )
    if missing := sorted(targeted - adapted):
        yield f"it lacks the factors of {first_names(missing)}, which {CONFIG} asks for"


def _pair_problems(
    name: str,
    pair: list[tuple[int, ...] | None],
    shape: tuple[int, int],
    config: Record,
) -> Iterator[str]:
    """Differences between the shapes of two factors and the shape and rank of their matrix."""
    if None in pair:
        yield f"{name} has only one of its two factors"
        return
    inputs, outputs = shape
    rank = pair[0][0] if pair[0] else 0
    if pair != [(rank, inputs), (outputs, rank)] or rank < 1:
        yield f"{name} has factors {pair[0]} and {pair[1]} for a matrix {inputs} x {outputs}"
    elif (stated := peft_config.module_rank(config, name)) != rank:
        yield f"{name} has rank {rank}, but {CONFIG} says {stated}"


def _shape_problems(
    stored: _Shapes, shapes: _Shapes, known: set[str], config: Record
) -> Iterator[str]:
    """Tensors of a wrong shape, and tensors that are not among the known ones."""
    for name, shape in shapes.items():
        if name in stored and stored[name] != shape:
            yield f"{name} is {stored[name]}, not {shape}"
    unknown = sorted(set(stored) - known)
    modules = [f".{module}." for module in config.get("modules_to_save") or ()]
    saved = [name for name in unknown if any(module in f".{name}" for module in modules)]
    if others := sorted({*unknown} - {*saved}):
        yield f"the model has no {first_names(others)}"
    if saved:
        yield (
            f"modules_to_save brings {first_names(saved)}, but only a head, and a pooler that the "
            "base lacks, can come with an adapter"
        )
