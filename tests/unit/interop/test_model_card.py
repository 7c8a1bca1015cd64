"""The lines of a model card run in PyTorch and compute the product's logits; its text is text."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from fedjax_lora import data, interop, lora, models
from tests._helpers import peft_cases, small_decoders, small_encoders, word_tokenizer

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

TEXTS = ["w1 w2 w3", "w7 w8 w9 w10 w11 w12 w1 w4 w5 w6 w2", "w5", "w3 w3 unknown"]
SECONDS = ["w4", "w1 w9 w2", "w6 w6 w6 w6 w6 w6 w6", "w2"]
SAVE = {"adapter": interop.save_adapter, "merged": interop.save_merged}


def trained(folder, family, *, language=False, ends=False, pooling="family", layers=None, **about):
    """A model with a random adapter and head on a base that is saved with a tokenizer."""
    decoder = family in small_decoders.FAMILIES
    base = peft_cases.make_base(folder, family, **({"pad_token_id": None} if decoder else {}))
    if family == "qwen2":
        tokenizer = word_tokenizer.byte_tokenizer()
    elif decoder:
        tokenizer = word_tokenizer.decoder_tokenizer(ends=ends)
    else:
        tokenizer = word_tokenizer.encoder_tokenizer(pad_id=1 if family == "roberta" else 0)
    tokenizer.save_pretrained(base)
    pretrained = models.load(
        str(base),
        num_labels=None if language else 3,
        pooling=pooling,
        layers=layers,
        key=jax.random.key(0),
    )
    spec = lora.make_spec(
        {name: part for name, part in pretrained.params.items() if name != "head"},
        targets="attention",
        rank=2,
        alpha=3.0,
    )
    adapter = small_decoders.random_adapters(spec, jax.random.key(1))
    rng = np.random.default_rng(2)
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32)  # noqa: E731
    classes = () if language else small_encoders.LABELS
    about = {"max_length": 9, "classes": classes, "language": language, "layers": layers} | about
    metadata = small_encoders.about(pretrained, **about)
    return interop.TrainedModel(
        pretrained=pretrained,
        metadata=metadata,
        targets=spec.targets,
        adapter=adapter,
        gain=lora.uniform_gain(spec),
        head=jax.tree.map(draw, pretrained.params["head"]),
    )


def run_card(folder, model, monkeypatch):
    """The names that the card's Python defines; local paths are in no card."""
    text = (folder / "README.md").read_text()
    base = model.pretrained.folder
    assert str(base) not in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code = code.replace(f'base = "{base.name}"', f'base = "{base}"')
    code = re.sub(r"^texts = .*$", f"texts = {TEXTS}", code, flags=re.MULTILINE)
    code = re.sub(r"^seconds = .*$", f"seconds = {SECONDS}", code, flags=re.MULTILINE)
    monkeypatch.chdir(folder)
    found: dict = {}
    exec(compile(code, "card", "exec"), found)
    return found


def check_logits(model, folder, monkeypatch):
    theirs = run_card(folder, model, monkeypatch)["logits"].float().numpy()
    pairs = SECONDS if model.metadata.pair else None
    split = data.Split(TEXTS, pairs, np.zeros(len(TEXTS), np.int32), None)
    ours = interop.make_logits_fn(model.pretrained, interop.tokenize(model, split))(model)
    assert ours.std(axis=0).max() > 0.05
    np.testing.assert_allclose(theirs, ours, atol=1e-4 * max(1, np.abs(ours).max()), rtol=0)


CHEAP = [
    ("llama", {}),
    ("llama", {"ends": True}),
    ("bert", {"pair": True}),
]  # fmt: skip
OTHERS = [
    *itertools.product(
        peft_cases.FAMILIES,
        ({"pooling": "mean"}, {"layers": 2, "max_length": 40}, {"pair": False}),
    ),
    *((family, {"pair": True}) for family in small_encoders.FAMILIES),
    *((family, {"ends": True}) for family in small_decoders.FAMILIES),
]


@pytest.mark.parametrize("kind", SAVE)
@pytest.mark.parametrize(("family", "options"), CHEAP)
def test_card_code_computes_the_logits(family, options, kind, tmp_path, monkeypatch):
    model = trained(tmp_path, family, **options)
    SAVE[kind](tmp_path / kind, model)
    check_logits(model, tmp_path / kind, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SAVE)
@pytest.mark.parametrize(("family", "options"), OTHERS)
def test_card_code_computes_the_logits_of_every_family(
    family, options, kind, tmp_path, monkeypatch
):
    test_card_code_computes_the_logits(family, options, kind, tmp_path, monkeypatch)


def check_text(family, kind, folder, monkeypatch, **options):
    model = trained(folder, family, language=True, **options)
    SAVE[kind](folder / kind, model)
    found = run_card(folder / kind, model, monkeypatch)
    assert len(found["text"]) == 1
    batch = small_decoders.texts()
    theirs = small_decoders.torch_logits(found["model"], batch)[batch.attention_mask]
    ours = peft_cases.our_logits(folder / kind, model.pretrained.folder)
    np.testing.assert_allclose(theirs, ours, atol=1e-4 * np.abs(ours).max(), rtol=0)


@pytest.mark.parametrize("kind", SAVE)
def test_card_code_generates_text(kind, tmp_path, monkeypatch):
    check_text("llama", kind, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [None, 2])
@pytest.mark.parametrize("kind", SAVE)
@pytest.mark.parametrize("family", small_decoders.FAMILIES)
def test_card_code_generates_text_in_every_family(family, kind, layers, tmp_path, monkeypatch):
    check_text(family, kind, tmp_path, monkeypatch, layers=layers)


STRANGE = ("a\nb", "\x1b[31mred", "<img src=x onerror=y>", "=1+1", "x | y", "`*_[l](http://x)")


def test_untrusted_names_are_escaped_in_the_card(tmp_path):
    model = trained(
        tmp_path, "bert", task='mood: "x"\n---\n# y', classes=STRANGE[:3], training={"a|b": "c\nd"}
    )
    interop.save_adapter(tmp_path / "out", model)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "\x1b" not in text and "<img" not in text.replace(r"\<img", "")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "peft"
    table = [line for line in body.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in table)
    (outputs,) = [line for line in table if line.startswith("| outputs")]
    assert outputs == r"| outputs | 0 a\\nb; 1 \\x1b\[31mred; 2 \<img src=x onerror=y\> |"
