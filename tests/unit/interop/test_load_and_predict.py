"""Loading of adapters without metadata, and input that predictions refuse."""

import pytest

from fedjax_lora import InputError, interop
from tests._helpers import small_encoders


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A BERT whose checkpoint has no pooler, so that adapter folders hold one."""
    folder = tmp_path_factory.mktemp("base")
    return small_encoders.load(small_encoders.checkpoint(folder, "bert", base_only=True), seed=7)


def test_adapter_without_metadata_can_be_saved_and_loaded_again(model, tmp_path):
    """Its pooler is part of the fingerprint that the inferred metadata state."""
    base, ours = str(model.folder), small_encoders.fitted(model)
    interop.save_adapter(tmp_path / "first", ours)
    (tmp_path / "first" / "fedjax_lora.json").unlink()
    loaded = interop.load_model(tmp_path / "first", base=base)
    assert loaded.metadata.classes == ("0", "1", "2")
    interop.save_adapter(tmp_path / "second", loaded)
    again = interop.load_model(tmp_path / "second", base=base)
    assert again.metadata == loaded.metadata
    small_encoders.same(again, ours)


def test_missing_texts_and_contexts_are_refused(model):
    trained = small_encoders.fitted(model)
    with pytest.raises(InputError, match="no texts to predict"):
        interop.probabilities(trained, [])
    with pytest.raises(InputError, match="reads one text for each example"):
        interop.probabilities(trained, ["a"], ["b"])
    with pytest.raises(InputError, match="no prompts to answer"):
        interop.answers(trained, [])
    with pytest.raises(InputError, match="2 instructions and 1 contexts; give one context"):
        interop.answers(trained, ["a", "b"], ["c"])
    with pytest.raises(InputError, match="has no tokenizer"):
        interop.probabilities(trained, ["a"])
