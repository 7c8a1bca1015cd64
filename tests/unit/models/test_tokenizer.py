"""Tokenizers of checkpoints: missing parts are replaced or named."""

import json

import pytest

from fedjax_lora import models
from fedjax_lora.core.errors import InputError
from fedjax_lora.models.huggingface import tokenizer as tokenizers
from tests._helpers import word_tokenizer

CONFIG = models.tiny(family="llama", num_labels=None, vocab_size=50).config


def saved(folder, *, more=(), ends=False):
    made = word_tokenizer.decoder_tokenizer(ends=ends)
    if more:
        made.add_special_tokens({"pad_token": more[0]})
        made.add_tokens([*more[1:]])
    made.save_pretrained(folder)
    return folder


def test_a_padding_token_beyond_the_table_is_replaced(tmp_path):
    """It is masked wherever it stands, so its embedding does not matter."""
    made = tokenizers.load_tokenizer(saved(tmp_path, more=["<pad>"]), CONFIG)
    assert made.pad_token == "</s>" and len(made) == 50
    batch = made(["w1", "w1 w2 <pad>"], padding=True)
    assert max(max(row) for row in batch["input_ids"]) < 50
    assert batch["input_ids"][0] == [1, 5, 2, 2]
    assert batch["attention_mask"][0] == [1, 1, 0, 0]


def test_other_tokens_beyond_the_table_are_named(tmp_path):
    with pytest.raises(InputError, match=r"has 52 tokens but the model only 50: '<pad>', '<tool>'"):
        tokenizers.load_tokenizer(saved(tmp_path, more=["<pad>", "<tool>"]), CONFIG)


@pytest.mark.parametrize("file", ["tokenizer.model", "spiece.model"])
def test_a_missing_sentencepiece_is_named(file, tmp_path, monkeypatch):
    """`transformers` advises tiktoken, which cannot read the file."""
    (tmp_path / file).write_bytes(b"\n\x0e")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer"})
    )
    monkeypatch.setattr(tokenizers, "_is_installed", lambda module: module != "sentencepiece")
    with pytest.raises(InputError, match=rf"{file}, which needs sentencepiece .*\[sentencepiece\]"):
        tokenizers.load_tokenizer(tmp_path, CONFIG)
    monkeypatch.setattr(tokenizers, "_is_installed", lambda module: False)
    with pytest.raises(InputError, match="needs sentencepiece and protobuf"):
        tokenizers.load_tokenizer(tmp_path, CONFIG)
