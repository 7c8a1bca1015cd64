"""Metadata of a trained model: what a folder needs besides tensors to be used without its run."""

import dataclasses
import datetime
import json
import pathlib
import typing
from typing import Any

from fedjax_lora import models
from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.core.registry import fits
from fedjax_lora.core.untrusted_files import read_json
from fedjax_lora.data.prompts import DATE

__all__ = ["FILE", "ModelMetadata", "infer", "read"]

FILE = "fedjax_lora.json"
_MAX_LENGTH = 512  # tokens, for a model whose training length is unknown


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """Tokenisation, meaning of the outputs, and origin of a model.

    Attributes:
      base: base model: an alias of `fedjax_lora.models.MODELS`, a checkpoint folder or a hub id.
      base_sha256: fingerprint of the base's parameters.
      layers: number of layers of the base that are used; None for all.
      storage: type of the base's matrices in memory, as in `fedjax_lora.runs.config.ModelConfig`.
      pooling: ``"family"`` or ``"mean"``, as in `fedjax_lora.runs.config.ModelConfig`.
      max_length: number of tokens that texts are cut to.
      classes: class names in the order of the outputs; empty for a regression or language model.
      language: whether the model is a language model.
      prompt_format: prompt format of a language model, a name of
        `fedjax_lora.data.prompts.FORMATS` or ``"auto"``.
      chat_date: date that a chat template prints in prompts, ``YYYY-MM-DD``.
      answer_tokens: largest number of tokens of a language model's answer.
      pair: whether an example consists of two texts.
      task: name of the task.
      metric: name of the task's metric.
      hub: id of the task's data on the Hugging Face hub, or ``""``.
      training: description of the training for the model card, text by topic.
      results: scores of the last evaluation by name; None for a score that is not finite.
    """

    base: str
    base_sha256: str
    layers: int | None = None
    storage: str = "float32"
    pooling: str = "family"
    max_length: int = 64
    classes: tuple[str, ...] = ()
    language: bool = False
    prompt_format: str = "auto"
    chat_date: str = DATE
    answer_tokens: int = 128
    pair: bool = False
    task: str = ""
    metric: str = "accuracy"
    hub: str = ""
    training: dict[str, str] = dataclasses.field(default_factory=dict)
    results: dict[str, float | None] = dataclasses.field(default_factory=dict)

    @property
    def regression(self) -> bool:
        """Whether the single output is a score instead of a class."""
        return not self.classes and not self.language

    def write(self, folder: pathlib.Path) -> None:
        """Write ``fedjax_lora.json`` into an existing folder."""
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        (folder / FILE).write_text(text, encoding="utf-8")


def read(folder: pathlib.Path) -> ModelMetadata | None:
    """Read the metadata of a folder; None if it has no ``fedjax_lora.json``.

    Raises:
      InputError: the file is damaged, or has missing or unknown fields or values of a wrong type.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    values = read_json(file)
    if not isinstance(values, dict):
        raise InputError(f"{file} must hold one JSON object.")
    hints = typing.get_type_hints(ModelMetadata)
    missing = {"base", "base_sha256"} - set(values)
    raise_all(
        f"{file} cannot be used",
        [
            *(f"{name} is missing" for name in sorted(missing)),
            *(f"{name} is unknown" for name in sorted(set(values) - set(hints))),
            *(
                f"{name} cannot be {value!r}"
                for name, value in values.items()
                if name in hints and not _is_valid(name, value, hints[name])
            ),
        ],
    )
    checked: dict[str, Any] = values | {"classes": tuple(values.get("classes", ()))}
    twice = {name for name in checked["classes"] if checked["classes"].count(name) > 1}
    raise_all(f"{file} gives several classes the same name", sorted(twice))
    return ModelMetadata(**checked)


def infer(
    pretrained: models.Pretrained,
    base: str,
    *,
    classes: tuple[str, ...] = (),
    language: bool = False,
) -> ModelMetadata:
    """Return the metadata of a model whose folder has no ``fedjax_lora.json``.

    Args:
      pretrained: the base model.
      base: name or folder of the base model.
      classes: names in the order of the outputs; empty for a regression or language model.
      language: whether it is a language model.
    """
    return ModelMetadata(
        base=base,
        base_sha256=pretrained.fingerprint,
        pooling=pretrained.config.pooling,
        classes=classes,
        language=language,
        max_length=min(_MAX_LENGTH, pretrained.config.max_tokens),
    )


def _is_date(value: Any) -> bool:
    try:
        datetime.date.fromisoformat(value)
    except (ValueError, TypeError):
        return False
    return True


def _is_valid(name: str, value: Any, hint: Any) -> bool:
    """Whether a JSON value fits a field and its type."""
    if typing.get_origin(hint) is dict:
        value_type = typing.get_args(hint)[1]
        return isinstance(value, dict) and all(fits(x, value_type) for x in value.values())
    if name in ("layers", "max_length", "answer_tokens") and isinstance(value, int) and value < 1:
        return False
    if name == "chat_date" and not _is_date(value):
        return False
    if typing.get_origin(hint) is tuple:
        return isinstance(value, list) and all(isinstance(x, str) for x in value)
    return fits(value, hint)
