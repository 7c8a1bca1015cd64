"""Adapters written and read by PEFT, and read and written back by us."""

import copy
import functools
import json
import pathlib
import warnings
from typing import Any

import numpy as np
import peft
import torch

from experiments.robustness.fuzz import adapters, bases
from experiments.robustness.fuzz.case import Answer, Answers, Case, Refused, Subject, Unwritten
from fedjax_lora import interop

OLD_FIELDS: dict[str, tuple[str, ...]] = {
    "oldest": (
        "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "lora_alpha",
        "lora_dropout", "modules_to_save", "peft_type", "r", "target_modules", "task_type",
    ),
}  # fmt: skip
OLD_FIELDS["old"] = (
    *OLD_FIELDS["oldest"], "init_lora_weights", "layers_to_transform", "layers_pattern",
    "auto_mapping", "revision", "rank_pattern", "alpha_pattern",
)  # fmt: skip
"""Fields of ``adapter_config.json`` in PEFT 0.2 and in PEFT 0.5."""

FUTURE = {"a_new_option": None, "another_one": False, "peft_version": "9.0.0"}


def write(case: Case, folder: pathlib.Path, *, shared: pathlib.Path | None = None) -> Subject:
    """Write an adapter and its base.

    Args:
      case: from `adapters.cases`.
      folder: for the adapter and its exports.
      shared: folder of bases that several cases use; `folder` if None.

    Raises:
      Unwritten: PEFT refuses to make such an adapter.
    """
    options = case.options
    try:
        base = base_of(case, shared or folder)
        place = save_adapter(case, base, folder / "adapter")
    except Exception as error:
        raise Unwritten(f"{type(error).__name__}: {error}") from error
    return Subject(
        theirs=functools.partial(_theirs, base, options["task"], place),
        ours=functools.partial(_ours, base, options["task"], place, folder),
    )


def base_of(case: Case, folder: pathlib.Path) -> pathlib.Path:
    """The base of a case, saved if no earlier case has."""
    family, task, options = case.options["family"], case.options["task"], case.options
    kind = options.get("base", "with head")
    pretraining = "CAUSAL_LM" if family in bases.DECODERS else "MASKED_LM"
    saved = {"with head": task, "bare": "FEATURE_EXTRACTION", "pretraining": pretraining}[kind]
    pad = not options.get("unpadded", False) or family in bases.ENCODERS
    tied = options.get("tied", False) and family in bases.DECODERS
    place = folder / f"{family}-{saved}{'' if pad else '-unpadded'}{'-tied' if tied else ''}"
    if not place.exists():
        more = {"tie_word_embeddings": tied} if family in bases.DECODERS else {}
        bases.save(place, family, saved, pad=pad, **more)
    return place


def _load_base(base: pathlib.Path, task: str) -> Any:
    extra = {"num_labels": bases.LABELS} if task in ("SEQ_CLS", "TOKEN_CLS") else {}
    loaded = bases.CLASSES[task].from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager", **extra
    )
    return loaded


def save_adapter(case: Case, base: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Make the adapter with random weights by PEFT; returns the folder of its config."""
    options = case.options
    # A copy, because PEFT adds the head to the list of modules to save.
    fields = {name: copy.deepcopy(options[name]) for name in adapters.LORA if name in options}
    if "target_parameters" in fields:
        fields["target_modules"] = []
    fields = {"r": 4, "lora_alpha": 8, "target_modules": _usual_targets(options)} | fields
    if "kasa_config" in fields:
        fields["kasa_config"] = peft.tuners.lora.config.KasaConfig()
    if "use_bdlora" in fields:
        fields["use_bdlora"] = peft.tuners.lora.config.BdLoraConfig(**fields["use_bdlora"])
    stated = options["task"] if options.get("stated", "as it is") == "as it is" else None
    name = "default" if options.get("place", "folder") == "folder" else "other"
    torch.manual_seed(case.number)
    model = peft.get_peft_model(
        _load_base(base, options["task"]),
        peft.LoraConfig(task_type=stated, **fields),
        adapter_name=name,
    )
    _randomize(model, case.number, getattr(torch, options.get("dtype", "float32")))
    model.save_pretrained(
        str(folder),
        safe_serialization=options.get("file", "safetensors") == "safetensors",
        save_embedding_layers=options.get("embeddings", "auto"),
    )
    place = folder if name == "default" else folder / name
    _change_age(place / "adapter_config.json", options.get("age", "new"))
    return place


def _usual_targets(options: Any) -> Any:
    return adapters.named(adapters.LORA["target_modules"][0], options["family"], options["task"])


def _randomize(model: torch.nn.Module, seed: int, dtype: torch.dtype) -> None:
    """Draw what would have been trained, of a size at which adapters change the output."""
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            trained = value.requires_grad or ".lora_" in name or "modules_to_save" in name
            if not trained:
                continue
            if "magnitude" in name:
                value.mul_(torch.rand_like(value) + 0.5)
            else:
                value.copy_(0.3 * torch.randn_like(value) + ("norm" in name.lower()))
            value.data = value.data.to(dtype)


def _change_age(file: pathlib.Path, age: str) -> None:
    """Make the config that of an older or a later PEFT."""
    config = json.loads(file.read_text(encoding="utf-8"))
    if age in OLD_FIELDS:
        config = {name: value for name, value in config.items() if name in OLD_FIELDS[age]}
    if age == "future":
        config |= FUTURE
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _theirs(base: pathlib.Path, task: str, adapter: pathlib.Path) -> Answer:
    """PEFT's logits on a fresh base.

    Raises:
      Refused: they are not determined by the files, or tensors are missing.
    """
    (first, note), (second, _) = (_peft_logits(base, task, adapter, seed) for seed in (0, 1))
    if not np.allclose(first, second, atol=1e-5):
        raise Refused("loads, but with newly initialised parameters, other ones each time")
    return Answer(first, note)


def _peft_logits(
    base: pathlib.Path, task: str, adapter: pathlib.Path, seed: int
) -> tuple[np.ndarray, str]:
    """Logits, and whether padding changes them."""
    torch.manual_seed(seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(_load_base(base, task), adapter)
    missing = [str(x.message) for x in caught if "missing adapter keys" in str(x.message)]
    if missing:
        raise Refused(missing[0])
    tokens = bases.batch(base)
    logits = bases.torch_logits(model, tokens)
    return logits, bases.padding_matters(model, tokens, logits)


def _ours(base: pathlib.Path, task: str, adapter: pathlib.Path, folder: pathlib.Path) -> Answers:
    """Our logits, and those of PEFT and `transformers` with what we export."""
    model = interop.load_model(adapter, base=str(base))
    tokens = bases.batch(base)
    yield "load_model", bases.our_logits(model, tokens)
    interop.save_adapter(folder / "export", model)
    yield "export to peft", _peft_logits(base, task, folder / "export", 0)[0]
    interop.save_merged(folder / "merged", model)
    merged = bases.CLASSES[task].from_pretrained(folder / "merged", attn_implementation="eager")
    yield "export to transformers", bases.torch_logits(merged, tokens)
