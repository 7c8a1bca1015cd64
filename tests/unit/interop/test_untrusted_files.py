"""Untrusted files: refused with a sentence, before anything is allocated or followed."""

import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedjax_lora import InputError, interop
from fedjax_lora.interop import peft_reader
from tests._helpers import small_encoders


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_encoders.load(small_encoders.checkpoint(tmp_path_factory.mktemp("base"), "bert"))


@pytest.fixture
def folder(model, tmp_path) -> Path:
    interop.save_adapter(tmp_path / "adapter", small_encoders.fitted(model))
    return tmp_path / "adapter"


def change(folder: Path, name: str, **values) -> None:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refused(folder: Path, model, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        interop.load_adapter(folder, model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True, "bias": "all"}, "use_dora is not supported; bias is 'all'"),
        ({"lora_alpha": "16"}, "alpha of 'lora_alpha' is '16'"),
        ({"lora_alpha": float("nan")}, "alpha of 'lora_alpha' is nan"),
        ({"alpha_pattern": {"query": -1}}, "alpha of 'query' is -1"),
        ({"alpha_pattern": ["query"]}, "alpha_pattern is not an object"),
        ({"alpha_pattern": {r"(a+)\1$": 1}}, "uses groupref, which is not supported"),
        ({"alpha_pattern": {"x" * 5000: 1}}, "has 5000 characters, more than 4000"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is not supported"),
    ],
)
def test_unusable_adapter_config_is_refused_with_the_reason(values, sentence, model, folder):
    change(folder, "adapter_config.json", **values)
    refused(folder, model, sentence)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"peft_type": 1}', "\x00"])
def test_damaged_adapter_config_is_refused_with_the_reason(text, model, folder):
    (folder / "adapter_config.json").write_text(text)
    refused(folder, model, "adapter_config.json")


def test_huge_adapter_config_is_not_parsed(model, folder):
    (folder / "adapter_config.json").write_text("[" + " " * (5 << 20) + "]")
    refused(folder, model, "larger than any PEFT config")


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_pickles_are_never_opened(model, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused(folder, model, "pickle")
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps(Bomb()))
    refused(folder, model, "not a readable safetensors file")
    assert not (tmp_path / "exploded").exists()


def test_shapes_are_checked_before_tensors_are_read(model, folder, monkeypatch):
    """All misfits in one sentence; ``get_tensor`` is never reached."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    one = next(name for name in tensors if name.endswith("0.attention.self.query.lora_A.weight"))
    tensors[one] = np.zeros((5000, 24), np.float32)
    tensors["base_model.model.../../etc/passwd.lora_A.weight"] = np.zeros((2, 2), np.float32)
    tensors["base_model.model.classifier.bias"] = np.zeros(3, np.int64)
    save_file(tensors, file)
    opened = peft_reader._open
    monkeypatch.setattr(peft_reader, "_open", lambda path: Headers(opened(path)))
    refused(
        folder,
        model,
        r"classifier.bias is stored as I64.*has factors \(5000, 24\) and \(24, 4\) for a matrix "
        r"24 x 24.*the model has no .*passwd",
    )


class Headers:
    """A safetensors file of which only the header can be read."""

    def __init__(self, opened):
        self.keys, self.get_slice = opened.keys, opened.get_slice

    def get_tensor(self, name):
        raise AssertionError(f"{name} was read")


def test_truncated_safetensors_file_is_refused(model, folder):
    header = {"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text
    (folder / "adapter_model.safetensors").write_bytes(data)
    refused(folder, model, "not a readable safetensors file")
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 1 << 62))
    refused(folder, model, "not a readable safetensors file")


@pytest.mark.parametrize(
    "named", ["/etc", "../../secrets", "someone/else", "https://hf.co/x", "", None, ["a"]]
)
def test_base_named_only_by_the_folder_is_not_loaded(named, model, folder):
    (folder / "fedjax_lora.json").unlink()
    change(folder, "adapter_config.json", base_model_name_or_path=named)
    with pytest.raises(InputError, match="if you trust it, give it with --model"):
        interop.load_model(folder)
    loaded = interop.load_model(folder, base=str(model.folder))
    assert loaded.metadata.classes == ("0", "1", "2")
    small_encoders.same(loaded, small_encoders.fitted(model))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"classes": "abc"}, "classes cannot be 'abc'"),
        ({"max_length": 0, "layers": -1}, "layers cannot be -1; max_length cannot be 0"),
        ({"code": "import os"}, "code is unknown"),
        ({"classes": ["a", "b"]}, "names 2 classes, but the head has 3"),
        ({"base_sha256": "0" * 64}, "was trained on another model"),
        ({"results": {"accuracy": "high"}}, "results cannot be"),
        ({"training": {"method": ["x"]}}, "training cannot be"),
    ],
)
def test_adapter_metadata_is_validated(values, sentence, model, folder):
    change(folder, "fedjax_lora.json", **values)
    with pytest.raises(InputError, match=sentence):
        interop.load_model(folder, base=str(model.folder))


@pytest.mark.parametrize("count", ["x", None, 10**9, 0, -1, True, [2]])
def test_invalid_number_of_labels_is_refused(count, model, tmp_path):
    values = json.loads((model.folder / "config.json").read_text()) | {"num_labels": count}
    values.pop("id2label", None)
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"config\.json says that num_labels is .*; correct it"):
        interop.load_model(tmp_path)


def test_remote_code_of_a_checkpoint_is_neither_run_nor_exported(model, tmp_path):
    """``auto_map`` asks transformers to import Python files of the repository."""
    config = model.folder / "config.json"
    before = config.read_text()
    try:
        evil = {"AutoModelForSequenceClassification": "evil.Model", "AutoConfig": "evil.Config"}
        config.write_text(
            json.dumps(json.loads(before) | {"auto_map": evil, "_name_or_path": "/x"})
        )
        (model.folder / "evil.py").write_text("raise SystemExit('untrusted code')")
        interop.save_merged(tmp_path / "out", small_encoders.fitted(model))
    finally:
        config.write_text(before)
    text = (tmp_path / "out" / "config.json").read_text()
    assert "auto_map" not in text and "_name_or_path" not in text
    assert not (tmp_path / "out" / "evil.py").exists()


def test_incomplete_head_and_unpaired_factor_are_refused(model, folder):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({k: x for k, x in tensors.items() if k != "base_model.model.classifier.weight"}, file)
    refused(folder, model, "only a part of the model's head: head/classifier/kernel")
    lone = next(name for name in tensors if name.endswith("lora_B.weight"))
    save_file({k: x for k, x in tensors.items() if k != lone}, file)
    refused(folder, model, "has only one of its two factors")


@pytest.mark.parametrize(
    ("text", "sentence"), [("{", "json is not JSON"), ("[]", "json must hold one JSON object")]
)
def test_metadata_that_is_not_an_object_is_refused(text, sentence, model, folder):
    (folder / "fedjax_lora.json").write_text(text)
    with pytest.raises(InputError, match=sentence):
        interop.load_model(folder, base=str(model.folder))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"problem_type": "multi_label_classification"}, "a label of its own for each output"),
        ({"problem_type": "regression"}, "'regression' with 3 outputs, and only one score"),
        ({"id2label": {"0": "a", "1": "b", "2": "a"}}, "several outputs the same name.*: a"),
    ],
)
def test_multi_label_outputs_are_refused(values, sentence, model, tmp_path):
    interop.save_merged(tmp_path, small_encoders.fitted(model))
    (tmp_path / "fedjax_lora.json").unlink()
    change(tmp_path, "config.json", **values)
    with pytest.raises(InputError, match=sentence):
        interop.load_model(tmp_path)
