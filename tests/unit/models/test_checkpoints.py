"""Reading checkpoints: every storage format, and every way in which one can be wrong."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedjax_lora import models
from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.models.huggingface import tensors

QUERY = "bert.encoder.layer.1.attention.self.query.weight"


def load(folder, key, **options):
    return models.load(str(folder), **{"num_labels": 3, "key": key} | options)


def edit(folder, change):
    """Rewrite the weights after `change` has edited the dictionary of tensors."""
    stored = load_file(folder / "model.safetensors")
    change(stored)
    save_file(stored, folder / "model.safetensors")


def assert_same(params, other):
    jax.tree.map(np.testing.assert_array_equal, params, other)


@pytest.fixture
def bert(saved):
    return saved("bert")


def test_every_storage_format_gives_the_same_parameters(bert, key, tmp_path):
    import torch

    folder, model = bert
    whole = load(folder, key)
    sharded, pickled = tmp_path / "sharded", tmp_path / "pickled"
    model.save_pretrained(sharded, max_shard_size="10KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    pickled.mkdir()
    (pickled / "config.json").write_text((folder / "config.json").read_text())
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    for other in (sharded, pickled):
        loaded = load(other, key)
        assert_same(loaded.params, whole.params)
        assert loaded.fingerprint != whole.fingerprint  # other bytes on disk


@pytest.mark.parametrize("family", ["albert", "bert", "distilbert", "roberta"])
def test_names_cover_the_state_dict_exactly(family, saved, key):
    folder, model = saved(family)
    loaded = load(folder, key)
    written = {}
    for path, value in trees.flat(loaded.params).items():
        stacked = models.is_stacked(loaded.config, path)
        for layer in range(loaded.config.layers) if stacked else [None]:
            one = np.asarray(value) if layer is None else np.asarray(value[layer])
            name = models.hf_name(loaded.config, path, layer)
            written[name] = one.T if path.endswith("kernel") else one
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    assert written.keys() == state.keys()
    for name in state:
        np.testing.assert_array_equal(written[name], state[name], err_msg=name)


def test_unknown_parameter_names_are_refused():
    config = models.tiny(layers=1).config
    query = "encoder/layers/attention/query"
    assert models.hf_module(config, query, 2) == "bert.encoder.layer.2.attention.self.query"
    with pytest.raises(InputError, match=f"Module {query} of a bert model needs a layer"):
        models.hf_module(config, query)
    with pytest.raises(InputError, match="pooler of a bert model does not take a layer"):
        models.hf_module(config, "encoder/pooler", 0)
    with pytest.raises(InputError, match="A bert model has no module encoder/projection"):
        models.hf_name(config, "encoder/projection/kernel")
    with pytest.raises(InputError, match="must end in kernel"):
        models.hf_name(config, "encoder/pooler/weight")


def test_older_tensor_names_are_read_and_buffers_ignored(bert, key):
    folder, _ = bert
    whole = load(folder, key)

    def age(stored):
        for name in list(stored):
            old = name.removeprefix("bert.")
            old = re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", old)
            old = re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", old)
            stored[old] = stored.pop(name)
        stored["embeddings.position_ids"] = np.arange(16)[None]

    edit(folder, age)
    assert "embeddings.LayerNorm.gamma" in load_file(folder / "model.safetensors")
    assert_same(load(folder, key).params, whole.params)


def test_bfloat16_weights_load_as_float32(saved, key, tmp_path):
    import torch

    folder, model = saved("bert")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    exact, rounded = load(folder, key), load(tmp_path / "half", key)
    for one, two in zip(
        jax.tree.leaves(exact.params), jax.tree.leaves(rounded.params), strict=True
    ):
        assert two.dtype == np.float32
        np.testing.assert_allclose(one, two, rtol=2**-8)


def test_head_of_other_labels_is_new_with_hugging_face_initialisation(bert, key):
    folder, _ = bert
    loaded = load(folder, key, num_labels=64)
    assert loaded.new_params == ("head/classifier/bias", "head/classifier/kernel")
    head = loaded.params["head"]["classifier"]
    np.testing.assert_array_equal(head["bias"], np.zeros(64))
    assert float(head["kernel"].std()) == pytest.approx(0.02, rel=0.1)
    assert_same(load(folder, key, num_labels=64).params, loaded.params)
    other = load(folder, jax.random.key(1), num_labels=64)
    assert not np.array_equal(other.params["head"]["classifier"]["kernel"], head["kernel"])
    assert other.fingerprint == loaded.fingerprint == load(folder, key).fingerprint


def test_head_of_another_task_is_not_loaded(saved, key):
    folder, _ = saved("bert", "TokenClassification")
    new = load(folder, key).new_params
    assert "head/classifier/kernel" in new and "encoder/pooler/kernel" in new


def test_missing_pooler_is_new_and_counts_in_the_fingerprint(bert, key):
    folder, _ = bert

    def drop(stored):
        for name in [name for name in stored if "pooler" in name]:
            del stored[name]

    edit(folder, drop)
    loaded = load(folder, key)
    assert loaded.new_params == ("encoder/pooler/bias", "encoder/pooler/kernel")
    assert loaded.fingerprint != load(folder, jax.random.key(1)).fingerprint
    assert loaded.fingerprint != load(folder, key, layers=2).fingerprint


def test_layers_option_reads_only_the_first_layers(bert, key, monkeypatch):
    folder, _ = bert
    read = []
    original = tensors._safe_tensor

    def spy(opened, name):
        tensor = original(opened, name)
        return tensor._replace(read=lambda: read.append(name) or tensor.read())

    monkeypatch.setattr(tensors, "_safe_tensor", spy)
    whole, cut = load(folder, key), None
    read.clear()
    cut = load(folder, key, layers=1)
    assert any(".layer.0." in name for name in read)
    assert not any(re.search(r"\.layer\.[12]\.", name) for name in read)
    firsts = jax.tree.map(lambda x: x[:1], whole.params["encoder"]["layers"])
    assert_same(cut.params["encoder"]["layers"], firsts)


def test_all_mismatches_are_in_one_message(bert, key):
    folder, _ = bert

    def damage(stored):
        for layer in (0, 2):
            del stored[f"bert.encoder.layer.{layer}.attention.self.query.weight"]
        stored["bert.encoder.layer.3.output.dense.bias"] = np.zeros(24, np.float32)
        stored["classifier.bias"] = np.zeros(3, np.int8)
        stored["bert.pooler.dense.weight"] = np.zeros((24, 23), np.float32)

    edit(folder, damage)
    with pytest.raises(InputError) as error:
        load(folder, key)
    message = str(error.value)
    assert "missing encoder.layer.{0,2}.attention.self.query.weight" in message
    assert "unexpected encoder.layer.3.output.dense.bias" in message
    assert "pooler.dense.weight is stored as (24, 23) but must be (24, 24)" in message
    assert "classifier.bias is stored as I8" in message
    assert str(folder) in message and message.count("\n") == 0


def test_sharded_pickles_give_the_same_parameters(bert, key):
    """As large checkpoints were stored before safetensors."""
    import torch
    from safetensors.torch import load_file

    folder, _ = bert
    whole = load(folder, key)
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {}
    for half, file in enumerate(("pytorch_model-1-of-2.bin", "pytorch_model-2-of-2.bin")):
        part = {name: stored[name] for name in [*stored][half::2]}
        torch.save(part, folder / file)
        names |= dict.fromkeys(part, file)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    assert_same(load(folder, key).params, whole.params)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "../pytorch_model.bin")}))
    with pytest.raises(InputError, match=r"is not the plain name of a \.bin file"):
        load(folder, key)


def test_tensor_stored_under_two_names_is_refused(bert, key):
    folder, _ = bert
    edit(folder, lambda stored: stored.update({QUERY[5:]: stored[QUERY]}))
    with pytest.raises(InputError, match="stored twice"):
        load(folder, key)


def test_checkpoint_without_weights_is_refused(bert, key):
    folder, _ = bert
    (folder / "model.safetensors").unlink()
    (folder / "flax_model.msgpack").write_bytes(b"")
    with pytest.raises(InputError, match=r"another library alone \(flax_model\.msgpack\)"):
        load(folder, key)
    (folder / "flax_model.msgpack").unlink()
    with pytest.raises(InputError, match=r"holds no weights: no model\.safetensors"):
        load(folder, key)


def test_damaged_file_is_refused(bert, key):
    folder, _ = bert
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load(folder, key)


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/tmp/model.safetensors", "a\\b.safetensors", "x.bin", ".."]
)
def test_index_pointing_outside_the_folder_is_refused(shard, bert, key):
    folder, _ = bert
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"weight_map": {QUERY: shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"is not the plain name of a \.safetensors file"):
        load(folder, key)


def test_inconsistent_shard_index_is_refused(bert, key):
    folder, _ = bert
    index = folder / "model.safetensors.index.json"
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index.write_text(json.dumps({"weight_map": {QUERY: "model-2.safetensors"}}))
    with pytest.raises(InputError, match=r"shard model-2.safetensors is missing"):
        load(folder, key)
    index.write_text(json.dumps({"weight_map": {"ghost": "model-1.safetensors"}}))
    with pytest.raises(InputError, match="lists tensors that no shard has: ghost"):
        load(folder, key)
    for nonsense in ("[]", "{", '{"weight_map": {}}', '{"weight_map": 3}'):
        index.write_text(nonsense)
        with pytest.raises(InputError, match="index"):
            load(folder, key)


class Evil:
    def __reduce__(self):
        return print, ("code from a checkpoint ran",)


def test_pickle_with_code_does_not_run(bert, key, capsys):
    import torch

    folder, _ = bert
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="contains more than plain tensors"):
        load(folder, key)
    assert "ran" not in capsys.readouterr().out
    torch.save([1, 2], folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="not a dictionary of tensors"):
        load(folder, key)


def test_pickle_without_pytorch_is_refused(bert, key, monkeypatch):
    folder, _ = bert
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setattr(tensors, "is_installed", lambda module: False)
    with pytest.raises(InputError, match="needs PyTorch"):
        load(folder, key)
