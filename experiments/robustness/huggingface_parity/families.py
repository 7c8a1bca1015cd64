"""Compare every model family with PyTorch, and write the table of families.

Run it with ``python -m experiments.robustness.huggingface_parity.families [FAMILY ...]``.

Of each family a random model of two layers is saved by `transformers`, loaded here, and compared:
logits, gradients of LoRA factors with `peft`, an exported adapter in `peft` and read back, a merged
checkpoint in `transformers`, and the lines of Python on the model card, which are executed.
"""

import contextlib
import json
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models

from experiments.robustness.huggingface_parity.report import FAMILIES, families_table
from experiments.tools.markdown import put
from fedjax_lora import interop, lora, models

LABELS, RANK = 3, 3
SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 40, "max_position_embeddings": 40, "num_labels": LABELS,
}  # fmt: skip
_DECODER: dict[str, Any] = {
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2
}  # fmt: skip
_GEMMA = _DECODER | {"sliding_window": 4, "query_pre_attn_scalar": 5}
_ROBERTA = {"pad_token_id": 1, "type_vocab_size": 1}
ENCODERS: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "bert": {},
    "camembert": _ROBERTA,
    "deberta-v2": {
        "relative_attention": True,
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "distilbert": {},
    "electra": {"embedding_size": 16},
    "modernbert": {"local_attention": 6, "global_attn_every_n_layers": 2, "pad_token_id": 0}
    | {f"{name}_token_id": 1 for name in ("bos", "eos", "cls", "sep")},
    "mpnet": _ROBERTA,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}
DECODERS: dict[str, dict[str, Any]] = {
    "gemma2": _GEMMA | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0},
    "gemma3_text": _GEMMA | {"layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": _DECODER | {"n_inner": 40, "n_positions": 96},  # the cards' answers need positions
    "internlm3": _DECODER,
    "llama": _DECODER | {"attention_bias": True},
    "mistral": _DECODER | {"sliding_window": 4},
    "opt": _DECODER | {"ffn_dim": 40, "word_embed_proj_dim": 32, "max_position_embeddings": 96},
    "phi3": _DECODER,
    "qwen2": _DECODER | {"tie_word_embeddings": True},
    "qwen3": _DECODER,
    "smollm3": _DECODER | {"no_rope_layers": [1, 0]},
}


def build(folder: pathlib.Path, family: str) -> Any:
    """Save a random model of a family, and its tokenizer; returns the model."""
    auto = transformers.AutoModelForSequenceClassification
    if family in DECODERS:
        auto = transformers.AutoModelForCausalLM
    sizes = SIZES | (ENCODERS | DECODERS)[family]
    if "n_positions" in sizes:  # GPT-2's name of the same
        sizes = {name: x for name, x in sizes.items() if name != "max_position_embeddings"}
    config = transformers.AutoConfig.for_model(family, attn_implementation="eager", **sizes)
    torch.manual_seed(0)
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(0, 0.3)
            if ("norm" in name.lower() or ".ln_" in name) and name.endswith("weight"):
                value.add_(1.0)
    model.save_pretrained(folder)
    specials = ["<pad>", "<s>", "</s>", "<unk>"]
    if family in ENCODERS and sizes.get("pad_token_id") == 1:
        specials = ["<s>", "<pad>", "</s>", "<unk>"]
    backend = _words(specials)
    if family.startswith("qwen"):
        backend = _characters(specials)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>",
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    return model


def _words(specials: list[str]) -> Tokenizer:
    words = {word: n for n, word in enumerate([*specials, *(f"w{n}" for n in range(60))])}
    backend = Tokenizer(tokenizer_models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore
    return backend


def _characters(specials: list[str]) -> Tokenizer:
    """Byte-level BPE, which `transformers` takes every tokenizer of the Qwen models for."""
    letters = [chr(ord("\u0120")), *"0123456789ABCDEFGHIJabcdefghijklmnopqrstuvwxyz"]
    words = {word: n for n, word in enumerate([*specials, *letters])}
    backend = Tokenizer(tokenizer_models.BPE(words, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    return backend


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask of texts of 9, 3 and 7 tokens."""
    mask = np.arange(9)[None] < np.array([[9], [3], [7]])
    ids = np.random.default_rng(0).integers(4, 64, mask.shape)
    return ids.astype(np.int32), mask


class Ours:
    """A model here with a random adapter on all four matrices of attention."""

    def __init__(self, folder: pathlib.Path, family: str) -> None:
        """Load the model."""
        self.language = family in DECODERS
        self.model = models.load(
            str(folder),
            num_labels=None if self.language else LABELS,
            scan_unroll=1,
            key=jax.random.key(0),
        )
        base = {name: part for name, part in self.model.params.items() if name != "head"}
        spec = lora.make_spec(base, targets="attention", rank=RANK, alpha=2.0 * RANK)
        rng = np.random.default_rng(1)
        draw = lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32)  # noqa: E731
        self.adapter = jax.tree.map(draw, spec.shapes())
        self.gain, self.targets = lora.uniform_gain(spec), spec.targets
        self.fn = jax.jit(self._logits)

    def _logits(self, adapter: Any) -> jax.Array:
        ids, mask = batch()
        out = lora.apply(self.model.module, self.model.params, adapter, self.gain, ids, mask)
        if not self.language:
            return out
        softcap = getattr(self.model.config, "logit_softcap", None)
        values = models.logits(self.model.params, out.hidden, softcap=softcap)
        return jnp.where(mask[:, :, None], values, 0.0)

    def trained(self, folder: pathlib.Path) -> interop.TrainedModel:
        """Return the model with its adapter, for export."""
        metadata = interop.ModelMetadata(
            base=str(folder),
            base_sha256=self.model.fingerprint,
            classes=() if self.language else ("a", "b", "c"),
            language=self.language,
            prompt_format="plain" if self.language else "auto",
        )
        return interop.TrainedModel(
            pretrained=self.model,
            metadata=metadata,
            targets=self.targets,
            adapter=self.adapter,
            gain=self.gain,
            head=self.model.params["head"],
        )


def theirs(model: Any, *, gradients: bool = False) -> Any:
    """Logits of a PyTorch model, zero at padding of a language model."""
    ids, mask = batch()
    with contextlib.nullcontext() if gradients else torch.no_grad():
        at = torch.tensor(mask)
        out = model.eval()(input_ids=torch.tensor(ids).long(), attention_mask=at.long()).logits
        out = torch.where(at[:, :, None], out, 0.0) if out.ndim == 3 else out
    return out if gradients else out.float().numpy()


def gradient_difference(ours: Ours, adapted: Any) -> float:
    """Largest difference of the factors' gradients, relative to the largest gradient."""
    weight = np.random.default_rng(2).normal(size=theirs(adapted).shape).astype(np.float32)
    got = jax.jit(jax.grad(lambda x: jnp.sum(ours._logits(x) * weight)))(ours.adapter)
    for name, value in adapted.named_parameters():
        value.requires_grad_(".lora_" in name)
    torch.sum(theirs(adapted, gradients=True) * torch.tensor(weight)).backward()
    stated = dict(adapted.named_parameters())
    worst = largest = 0.0
    for path, pair in got.items():
        stacked = models.is_stacked(ours.model.config, path)
        for layer in range(pair.a.shape[0]) if stacked else (None,):
            name = f"base_model.model.{models.hf_module(ours.model.config, path, layer)}"
            for side, factor in zip("AB", pair, strict=True):
                own = np.asarray(factor if layer is None else factor[layer]).T
                want = stated[f"{name}.lora_{side}.default.weight"].grad.numpy()
                worst = max(worst, float(np.abs(own - want).max()))
                largest = max(largest, float(np.abs(want).max()))
    return worst / largest


def card_runs(folder: pathlib.Path, base: pathlib.Path) -> bool:
    """Whether the Python on a model card runs and makes logits or a text."""
    text = (folder / "README.md").read_text("utf-8")
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    code = code.replace(f'base = "{base.name}"', f'base = "{base}"')
    code = re.sub(r"^texts = .*$", 'texts = ["w1 w2 w3", "w4"]', code, flags=re.MULTILINE)
    found: dict[str, Any] = {}
    before = pathlib.Path.cwd()
    os.chdir(folder)
    try:
        exec(compile(code, "card", "exec"), found)
    finally:
        os.chdir(before)
    return "logits" in found or "text" in found


def row(folder: pathlib.Path, family: str) -> dict[str, Any]:
    """Measure one family."""
    base = folder / family
    model = build(base, family)
    ours = Ours(base, family)
    nothing = jax.tree.map(jnp.zeros_like, ours.adapter)
    want, plain = np.asarray(ours.fn(ours.adapter)), np.asarray(ours.fn(nothing))
    difference = lambda other, own: float(np.abs(theirs(other) - own).max())  # noqa: E731
    found: dict[str, Any] = {"family": family, "logits": difference(model, plain)}
    found["effect"] = float(np.abs(want - plain).max())
    trained = ours.trained(base)
    interop.save_adapter(folder / f"{family}-adapter", trained)
    interop.save_merged(folder / f"{family}-merged", trained)
    back = interop.load_adapter(folder / f"{family}-adapter", ours.model)
    found["back"] = all(
        np.array_equal(np.asarray(x), np.asarray(y))
        for path, pair in ours.adapter.items()
        for x, y in zip(pair, back.adapter[path], strict=True)
    )
    merged = type(model).from_pretrained(folder / f"{family}-merged", attn_implementation="eager")
    found["merged"] = difference(merged, want)
    adapted = peft.PeftModel.from_pretrained(model, folder / f"{family}-adapter")
    found["adapter"] = difference(adapted, want)
    found["gradients"] = gradient_difference(ours, adapted)
    found["cards"] = all(
        card_runs(folder / f"{family}-{kind}", base) for kind in ("adapter", "merged")
    )
    return found


def measure(families: Iterable[str]) -> None:
    """Measure families, and record each as it is done."""
    versions = {m.__name__: m.__version__ for m in (jax, torch, transformers, peft)}
    for family in families:
        with tempfile.TemporaryDirectory() as folder:
            new = row(pathlib.Path(folder), family)
        print(new, flush=True)
        kept = json.loads(FAMILIES.read_text("utf-8"))["rows"] if FAMILIES.is_file() else []
        by_name = {x["family"]: x for x in [*kept, new]}
        order = [by_name[name] for name in [*ENCODERS, *DECODERS] if name in by_name]
        content = {"rows": order, "versions": versions}
        FAMILIES.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    measure(sys.argv[1:] or [*ENCODERS, *DECODERS])
    put("families", families_table())
