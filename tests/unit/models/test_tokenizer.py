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


def test_padding_token_beyond_the_embedding_table_is_replaced(tmp_path):
    """The padding token is always masked, so its embedding does not matter."""
    made = tokenizers.load_tokenizer(saved(tmp_path, more=["<pad>"]), CONFIG)
    assert made.pad_token == "</s>" and len(made) == 50
    batch = made(["w1", "w1 w2 <pad>"], padding=True)
    assert max(max(row) for row in batch["input_ids"]) < 50
    assert batch["input_ids"][0] == [1, 5, 2, 2]
    assert batch["attention_mask"][0] == [1, 1, 0, 0]


def test_other_tokens_beyond_the_embedding_table_are_named(tmp_path):
    with pytest.raises(InputError, match=r"up to 51 .* 50 embeddings, none for '<pad>', '<tool>'"):
        tokenizers.load_tokenizer(saved(tmp_path, more=["<pad>", "<tool>"]), CONFIG)


@pytest.mark.parametrize("file", ["tokenizer.model", "spiece.model"])
def test_missing_sentencepiece_package_is_named(file, tmp_path, monkeypatch):
    """`transformers` advises tiktoken, which cannot read the file."""
    (tmp_path / file).write_bytes(b"\n\x0e")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer"})
    )
    monkeypatch.setattr(tokenizers, "is_installed", lambda module: module != "sentencepiece")
    with pytest.raises(InputError, match=rf"{file}, which needs sentencepiece .*\[sentencepiece\]"):
        tokenizers.load_tokenizer(tmp_path, CONFIG)
    monkeypatch.setattr(tokenizers, "is_installed", lambda module: False)
    with pytest.raises(InputError, match="needs sentencepiece and protobuf"):
        tokenizers.load_tokenizer(tmp_path, CONFIG)


# ---------------------------------------------------------------------------- without AutoTokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cafe", "##s", "b", "un", "##b", "."]
TEXTS = ["A cafe, b.", "Cafés  unb\n[MASK] 猫", "", "a" * 40]


def encoder_files(folder, family, declared, *, only_vocabulary=False):
    """A checkpoint folder with a vocabulary of this family and what it says of its class."""
    import transformers

    vocabulary = {word: n for n, word in enumerate(WORDS)}
    if family == "roberta":
        marks = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abcefsun.,Ġ", "ab"]
        vocabulary = {word: n for n, word in enumerate(marks)}
        made = transformers.RobertaTokenizer(vocab=vocabulary, merges=[("a", "b")])
    elif family == "albert":
        marks = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", "▁", *"abcefsun.,"]
        pieces = [(word, -float(n)) for n, word in enumerate(marks)]
        made = transformers.AlbertTokenizer(vocab=pieces)
    else:
        made = transformers.BertTokenizer(vocab=vocabulary, do_lower_case=True)
    made.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    options = json.loads(file.read_text()) | {"tokenizer_class": declared, "model_max_length": 9}
    file.write_text(json.dumps({key: x for key, x in options.items() if x is not None}))
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    if only_vocabulary:
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")


@pytest.mark.parametrize(
    ("family", "declared", "files"),
    [
        ("bert", None, "all"), ("bert", "BertTokenizer", "all"), ("bert", None, "vocabulary"),
        ("bert", "BertTokenizerFast", "vocabulary"), ("bert", "PreTrainedTokenizerFast", "all"),
        ("bert", "TokenizersBackend", "all"), ("bert", "RobertaTokenizer", "all"),
        ("distilbert", None, "vocabulary"), ("distilbert", "DistilBertTokenizer", "all"),
        ("roberta", None, "all"), ("roberta", "RobertaTokenizerFast", "all"),
        ("albert", None, "all"), ("albert", "AlbertTokenizer", "all"),
    ],
)  # fmt: skip
def test_tokenizer_class_equals_that_of_transformers(family, declared, files, tmp_path):
    import transformers

    encoder_files(tmp_path, family, declared, only_vocabulary=files == "vocabulary")
    assert tokenizers._class_of(tmp_path) is not transformers.AutoTokenizer
    got = tokenizers.load_tokenizer(tmp_path, CONFIG)
    want = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(got) is type(want)
    assert got.get_vocab() == want.get_vocab()
    assert got.special_tokens_map == want.special_tokens_map
    assert got.backend_tokenizer.to_str() == want.backend_tokenizer.to_str()
    assert (got.model_max_length, got.padding_side) == (want.model_max_length, want.padding_side)
    for second in (None, TEXTS[::-1]):
        options = {"padding": True, "truncation": True, "return_token_type_ids": True}
        assert dict(got(TEXTS, second, **options)) == dict(want(TEXTS, second, **options))


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({"model_type": "llama"}, {"tokenizer_class": "LlamaTokenizer"}),
        ({"model_type": "bert"}, {"tokenizer_class": "BertJapaneseTokenizer"}),
        ({"model_type": "bert"}, {"tokenizer_class": {}}),
        ({"model_type": "bert"}, {"auto_map": {"AutoTokenizer": ["own.A", None]}}),
        ({"architectures": ["BertModel"]}, {"tokenizer_class": "BertTokenizer"}),
        (None, {}),
    ],
)
def test_unknown_tokenizer_configs_are_left_to_transformers(config, options, tmp_path):
    import transformers

    (tmp_path / "config.json").write_text("[" if config is None else json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    assert tokenizers._class_of(tmp_path) is transformers.AutoTokenizer
