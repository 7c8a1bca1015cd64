"""Adapters made by PEFT from a few options, and what PEFT and this library compute with them.

`compare` makes a small base and an adapter, lets PEFT compute the logits, and lets this library do
the same from the same files. The outcome is either two arrays or the sentence of a refusal::

    outcome = peft_cases.compare(tmp_path, family="llama", use_rslora=True)
    outcome.check()  # equal logits
"""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import InputError, interop
from tests._helpers import small_decoders, small_encoders

TOLERANCE = 1e-4
FAMILIES = (*small_encoders.FAMILIES, *small_decoders.FAMILIES)
TARGETS = {
    "albert": ["query", "value"],
    "bert": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "roberta": ["query", "value"],
} | {family: ["q_proj", "v_proj"] for family in small_decoders.FAMILIES}


class Outcome(NamedTuple):
    """What PEFT computed, and what this library computed or why it refused."""

    theirs: np.ndarray | None
    ours: np.ndarray | None
    refusal: str | None
    folder: Path

    def check(self, tolerance: float = TOLERANCE) -> None:
        """Both computed the same, and it is not the same for every text."""
        assert self.refusal is None, self.refusal
        assert self.theirs is not None and self.ours is not None
        assert self.theirs.std(axis=0).max() > 100 * tolerance, "a vacuous comparison"
        scale = max(1.0, float(np.abs(self.theirs).max()))
        np.testing.assert_allclose(self.ours, self.theirs, atol=tolerance * scale, rtol=0)

    def check_refused(self, *words: str) -> None:
        """This library refused in one line that has the words."""
        assert self.refusal is not None, "it was not refused"
        assert "\n" not in self.refusal
        for word in words:
            assert word in self.refusal, self.refusal


def compare(
    folder: Path,
    *,
    base: Path | None = None,
    family: str = "bert",
    task: str = "SequenceClassification",
    task_type: str | None = "SEQ_CLS",
    edit: Callable[[Path], None] | None = None,
    seed: int = 0,
    **options: Any,
) -> Outcome:
    """Compare an adapter of some options in PEFT and here.

    Args:
      folder: empty folder for the files.
      base: the base's folder; None makes one.
      family: family of a base that is made.
      task: end of the class of the base in `transformers` after ``AutoModelFor``.
      task_type: PEFT's task type.
      edit: changes the adapter's folder before it is loaded.
      seed: of the adapter's random numbers.
      **options: of ``peft.LoraConfig``; by default rank 3 and alpha 6 on query and value.
    """
    base = make_base(folder, family) if base is None else base
    adapter = make_adapter(
        folder / "adapter", base, task=task, task_type=task_type, seed=seed, **options
    )
    if edit is not None:
        edit(adapter)
    try:
        ours, refusal = our_logits(adapter, base), None
    except InputError as error:
        ours, refusal = None, str(error)
    return Outcome(None if refusal else peft_logits(adapter, base, task), ours, refusal, adapter)


def make_base(folder: Path, family: str, **overrides: Any) -> Path:
    """Save a random base: an encoder without a head, or a decoder with its language head."""
    if family in small_encoders.FAMILIES:
        return small_encoders.checkpoint(folder, family)
    return small_decoders.saved(folder, family, **overrides)[0]


def in_torch(base: Path, task: str) -> Any:
    """Load a base in PyTorch, with 3 labels where its class has a number of them."""
    import transformers

    labels = {} if task == "CausalLM" else {"num_labels": 3}
    kind = getattr(transformers, f"AutoModelFor{task}" if task else "AutoModel")
    return kind.from_pretrained(base, **labels).eval()


def make_adapter(
    folder: Path,
    base: Path,
    *,
    task: str = "SequenceClassification",
    task_type: str | None = "SEQ_CLS",
    seed: int = 0,
    **options: Any,
) -> Path:
    """Save an adapter of PEFT with random factors and head; see `compare` for the arguments."""
    import peft
    import torch

    torch.manual_seed(seed)
    model = in_torch(base, task)
    family = model.config.model_type
    config = peft.LoraConfig(
        task_type=task_type,
        **{"r": 3, "lora_alpha": 6, "target_modules": TARGETS[family]} | options,
    )
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if ".lora_" in name or "modules_to_save" in name:
                value.add_(0.2 * torch.randn_like(value))
    wrapped.save_pretrained(folder)
    return folder


def peft_logits(adapter: Path, base: Path, task: str) -> np.ndarray:
    """Let PEFT load an adapter and compute the logits of `inputs`."""
    import peft
    import torch

    model = peft.PeftModel.from_pretrained(in_torch(base, task), adapter).eval()
    ids, mask = inputs(model.config.model_type)
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(ids, dtype=torch.long),
            attention_mask=torch.tensor(mask, dtype=torch.long),
        )
    return out.logits.float().numpy()[mask if out.logits.ndim == 3 else ...]


def our_logits(folder: Path, base: Path | None = None) -> np.ndarray:
    """Load a folder and compute the logits of `inputs`, of real tokens for a language model.

    Raises:
      InputError: the folder is refused.
    """
    model = interop.load_model(folder, base=None if base is None else str(base))
    module, config = model.pretrained.module, model.pretrained.config
    ids, mask = inputs(config.family)
    out = np.asarray(_apply(module)(jax.tree.map(jnp.asarray, model.merged_params), ids, mask))
    return out[mask] if out.ndim == 3 else out


@functools.cache
def _apply(module: Any) -> Any:
    """The plain forward pass, compiled once for each architecture."""
    from fedjax_lora import models

    def apply(params: Any, ids: Any, mask: Any) -> Any:
        out = module.apply({"params": params}, ids, mask)
        return models.logits(params, out.hidden) if hasattr(out, "hidden") else out

    return jax.jit(apply)


def inputs(family: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask of a few texts of different lengths."""
    if family in small_encoders.FAMILIES:
        return small_encoders.IDS, small_encoders.MASK
    batch = small_decoders.texts()
    return batch.input_ids, batch.attention_mask


def edit_config(**values: Any) -> Callable[[Path], None]:
    """An edit of ``adapter_config.json``; a value None removes nothing but is written as null."""

    def edit(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return edit


def edit_names(rename: Callable[[str], str | None]) -> Callable[[Path], None]:
    """An edit of the names of the tensors; a tensor is left out if its new name is None."""
    from safetensors.numpy import load_file, save_file

    def edit(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        tensors: Mapping[str, np.ndarray] = load_file(file)
        renamed = {rename(name): value for name, value in tensors.items()}
        save_file({name: x for name, x in renamed.items() if name is not None}, file)

    return edit
