"""Adapters and merged models in PyTorch compute what they compute here, and come back the same."""

import json
import re

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from fedjax_lora import InputError, interop, models
from tests._helpers import small_encoders

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
TOLERANCE = 1e-4


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.std(axis=0).max() > 500 * TOLERANCE, "a vacuous comparison"
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)


def in_peft(folder, base):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    return peft.PeftModel.from_pretrained(model, folder).eval()


@pytest.mark.parametrize("family", small_encoders.FAMILIES)
def test_every_family_round_trips_through_peft(family, tmp_path):
    """Ranks that differ between layers, layers left out, a head and a pooler that was drawn."""
    base = small_encoders.checkpoint(tmp_path, family, base_only=family == "bert")
    model = small_encoders.load(base)
    ours = small_encoders.fitted(model)
    interop.save_adapter(tmp_path / "adapter", ours)
    close(
        small_encoders.logits(ours),
        small_encoders.torch_logits(in_peft(tmp_path / "adapter", base)),
    )

    other = small_encoders.load(base, seed=7)  # another pooler and another head
    stored = interop.load_adapter(tmp_path / "adapter", other)
    back = interop.assemble(other, stored, small_encoders.about(other))
    small_encoders.same(ours, back)
    assert back.pretrained.fingerprint == model.fingerprint
    interop.save_adapter(tmp_path / "again", back)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        again = (tmp_path / "again" / name).read_bytes()
        assert again == (tmp_path / "adapter" / name).read_bytes()


@pytest.mark.parametrize(
    ("family", "pooling"),
    [(family, "family") for family in small_encoders.FAMILIES]
    + [
        pytest.param(family, "mean", marks=[pytest.mark.slow] * (family != "bert"))
        for family in small_encoders.FAMILIES
    ],
)
def test_merged_model_loads_with_transformers_alone(family, pooling, tmp_path):
    base = small_encoders.checkpoint(tmp_path, family, base_only=family == "bert")
    model = small_encoders.load(base, pooling=pooling)
    ours, out = small_encoders.fitted(model), tmp_path / "merged"
    interop.save_merged(out, ours, shard_size=20_000)
    assert len(list(out.glob("model-*.safetensors"))) > 1
    if pooling == "family":
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(out).eval()
        assert theirs.config.id2label == dict(enumerate(small_encoders.LABELS))
        close(small_encoders.logits(ours), small_encoders.torch_logits(theirs))
        again = models.load(str(out), num_labels=3, scan_unroll=1, key=jax.random.key(5))
        assert again.new_params == (), "we read what we write, head included"
    else:
        head = load_file(out / "head.safetensors")
        encoder = transformers.AutoModel.from_pretrained(out).eval()
        close(small_encoders.logits(ours), mean_logits(encoder, head))
        with pytest.raises(KeyError):
            load_file(next(iter(out.glob("model-*.safetensors"))))["classifier.weight"]


def mean_logits(encoder, head) -> np.ndarray:
    with torch.no_grad():
        hidden = encoder(
            torch.tensor(small_encoders.IDS).long(), torch.tensor(small_encoders.MASK).long()
        )
    weight = small_encoders.MASK[..., None]
    mean = (hidden.last_hidden_state.numpy() * weight).sum(1) / weight.sum(1)
    return mean @ head["classifier.weight"].T + head["classifier.bias"]


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_mean_pooled_adapter_is_saved_for_the_encoder(family, tmp_path):
    base = small_encoders.checkpoint(tmp_path, family)
    model = small_encoders.load(base, pooling="mean")
    ours, out = small_encoders.fitted(model), tmp_path / "adapter"
    interop.save_adapter(out, ours)
    assert json.loads((out / "adapter_config.json").read_text())["task_type"].startswith("FEATURE")
    encoder = peft.PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(base), out)
    theirs = mean_logits(encoder.eval(), load_file(out / "head.safetensors"))
    close(small_encoders.logits(ours), theirs)
    back = interop.assemble(model, interop.load_adapter(out, model), ours.metadata)
    small_encoders.same(ours, back)


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_adapter_round_trips_unchanged(rslora, tmp_path):
    """PEFT's own file, with alpha and rank patterns, in and out again: the same tensors."""
    base = small_encoders.checkpoint(tmp_path, "roberta")
    torch.manual_seed(3)
    start = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    torch.nn.init.normal_(start.classifier.out_proj.weight)
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=4,
        lora_alpha=6,
        use_rslora=rslora,
        target_modules=["query", "value"],
        rank_pattern={"layer.1.attention.self.query": 2, r"layer\.2\..*value": 3},
        alpha_pattern={"layer.1.attention.self.query": 16, "^roberta.*2.*value$": 5},
        init_lora_weights=False,
    )
    theirs = peft.get_peft_model(start, config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    model = small_encoders.load(base)
    loaded = interop.load_adapter(tmp_path / "theirs", model)
    ours = interop.assemble(model, loaded, small_encoders.about(model))
    close(small_encoders.logits(ours), small_encoders.torch_logits(theirs))
    interop.save_adapter(tmp_path / "ours", ours, pad_ranks=False)
    one, other = (load_file(tmp_path / x / "adapter_model.safetensors") for x in ("theirs", "ours"))
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])
    close(
        small_encoders.logits(ours), small_encoders.torch_logits(in_peft(tmp_path / "ours", base))
    )


@pytest.mark.parametrize("kind", ["adapter", "merged"])
@pytest.mark.parametrize("pooling", ["family", "mean"])
def test_model_card_code_gives_the_same_logits(kind, pooling, tmp_path, monkeypatch):
    """On the real encoder, with its tokenizer."""
    model = models.load(
        "minilm", num_labels=3, layers=2, pooling=pooling, scan_unroll=1, key=jax.random.key(0)
    )
    metadata = small_encoders.about(model, layers=2, max_length=16, base=str(model.folder))
    ours = small_encoders.fitted(model, ranks=(4, 2), layers=None, metadata=metadata)
    out = tmp_path / kind
    save = {"adapter": interop.save_adapter, "merged": interop.save_merged}[kind]
    save(out, ours)
    text = (out / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert str(model.folder) not in text, "no path of this machine is published"
    code = code.replace(f'base = "{model.folder.name}"', f'base = "{model.folder}"')
    monkeypatch.chdir(out)
    found: dict = {}
    exec(compile(code.replace("a text to classify", "an odd little text"), "card", "exec"), found)
    tokens = model.tokenizer("an odd little text", return_tensors="np")
    inputs = (tokens["input_ids"].astype(np.int32), tokens["attention_mask"] != 0)
    want = jax.jit(lambda p: model.module.apply({"params": p}, *inputs))(ours.merged_params)
    np.testing.assert_allclose(found["logits"].numpy()[:1], want, atol=TOLERANCE, rtol=0)


def test_invalid_shard_size_is_refused(tmp_path):
    model = small_encoders.load(small_encoders.checkpoint(tmp_path, "bert"))
    with pytest.raises(InputError, match="500MB"):
        interop.save_merged(tmp_path / "out", small_encoders.fitted(model), shard_size="x")
    assert not (tmp_path / "out").exists()
