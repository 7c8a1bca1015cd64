"""Tokenisation, padding and the cache."""

import numpy as np
import pytest
from transformers import BertTokenizerFast

from fedjax_lora.core.errors import InputError
from fedjax_lora.data import Split, encode, tokenization

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
PAD, CLS, SEP, A = 0, 2, 3, 5


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return BertTokenizerFast(str(path))


def split(texts, pairs=None, labels=None):
    labels = np.arange(len(texts), dtype=np.int32) if labels is None else labels
    return Split(texts, pairs, labels, None)


def test_single_texts_get_special_tokens_and_padding(tokenizer):
    got = encode(split(["a b", "", "a"]), tokenizer, max_length=16)
    assert got.ids.shape == got.types.shape == (3, 8)
    assert got.ids[0].tolist() == [CLS, A, A + 1, SEP, PAD, PAD, PAD, PAD]
    assert got.length.tolist() == [4, 2, 3]
    assert got.label.tolist() == [0, 1, 2]
    assert not got.types.any()
    assert {part.dtype for part in got} == {np.dtype(np.int32)}


def test_pairs_are_truncated_in_the_longer_text(tokenizer):
    got = encode(split(["a " * 9, "a"], ["b", "b " * 9]), tokenizer, max_length=8)
    assert got.ids.tolist() == [
        [CLS, A, A, A, A, SEP, A + 1, SEP],
        [CLS, A, SEP, A + 1, A + 1, A + 1, A + 1, SEP],
    ]
    assert got.types.tolist() == [[0] * 6 + [1] * 2, [0] * 3 + [1] * 5]
    assert got.length.tolist() == [8, 8]


@pytest.mark.parametrize(("words", "max_length", "width"), [(6, 64, 8), (7, 64, 16), (90, 12, 12)])
def test_width_is_the_longest_example_rounded_up(tokenizer, words, max_length, width):
    got = encode(split(["a " * words]), tokenizer, max_length=max_length)
    assert got.ids.shape == (1, width)
    assert got.length.tolist() == [min(words + 2, max_length)]


def test_padding_is_on_the_right_for_any_tokenizer(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "padding_side", "left")
    assert encode(split(["a"]), tokenizer, max_length=8).ids[0, :3].tolist() == [CLS, A, SEP]


def test_empty_split_gives_empty_arrays(tokenizer):
    assert encode(split([]), tokenizer, max_length=16).ids.shape == (0, 8)


def test_chunked_tokenization_equals_one_pass_and_keeps_float_labels(tokenizer, monkeypatch):
    texts = ["a " * n for n in range(1, 8)]
    whole = encode(split(texts, labels=np.ones(7, np.float32)), tokenizer, max_length=16)
    assert whole.label.dtype == np.float32
    monkeypatch.setattr(tokenization, "CHUNK", 3)
    parts = encode(split(texts), tokenizer, max_length=16)
    assert all(np.array_equal(a, b) for a, b in zip(whole[:3], parts[:3], strict=True))


class Bare:
    """A tokenizer without special tokens, which makes nothing of an empty text."""

    is_fast, pad_token_id = True, 7

    def num_special_tokens_to_add(self, pair):
        return 0

    def __call__(self, texts, pairs, **options):
        ids = [[1] * len(text.split()) for text in texts]
        return {"input_ids": ids, "token_type_ids": [[0] * len(row) for row in ids]}


def test_empty_text_without_special_tokens_is_one_padding_token():
    got = encode(split(["", "a b"]), Bare(), max_length=8)
    assert got.length.tolist() == [1, 2]
    assert got.ids[:, :3].tolist() == [[7, 7, 7], [1, 1, 7]]


def test_unusable_lengths_and_tokenizers_are_refused(tokenizer, monkeypatch):
    with pytest.raises(InputError, match="max_length 3 leaves no room beside 3 special tokens"):
        encode(split(["a"], ["b"]), tokenizer, max_length=3)
    monkeypatch.setattr(Bare, "pad_token_id", None)
    monkeypatch.setattr(Bare, "is_fast", False)
    with pytest.raises(InputError, match=r"Bare: it is not a fast tokenizer .*; it has no padding"):
        encode(split(["a"]), Bare(), max_length=8)


def test_cached_tokens_are_reused_and_labels_are_not_cached(tokenizer, tmp_path, monkeypatch):
    data, folder = split(["a b", "c"]), tmp_path / "deep" / "cache"

    def cached(max_length=8, data=data, tokenizer=tokenizer):
        return encode(data, tokenizer, max_length=max_length, cache_dir=folder)

    first = cached()
    (file,) = folder.iterdir()  # and no temporary file stays
    with monkeypatch.context() as patch:
        patch.setattr(tokenization, "_tokenise", None)  # it must not be called again
        assert all(np.array_equal(a, b) for a, b in zip(first, cached(), strict=True))
        relabelled = data._replace(labels=np.array([5, 6], np.int32))
        assert cached(data=relabelled).label.tolist() == [5, 6]

    good = file.read_bytes()
    short = {name: np.zeros((1, 8), np.int32) for name in ("ids", "types")}
    for damage in (b"", b"nonsense", good[:-30], good[:200]):
        file.write_bytes(damage)
        assert np.array_equal(cached().ids, first.ids)
        assert np.array_equal(np.load(file)["ids"], first.ids)
    np.savez(file, **short, length=np.zeros(1, np.int32))  # whole, but of another shape
    assert np.array_equal(cached().ids, first.ids)

    cached(max_length=6)
    cached(data=split(["a b", "d"]))
    cached(data=split(["a", "b c"]))
    assert len(list(folder.iterdir())) == 4


def test_cache_key_includes_the_tokenizer(tokenizer, tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*WORDS[:5], *reversed(WORDS[5:])]) + "\n")
    data, folder = split(["a b"]), tmp_path / "cache"
    for each in (tokenizer, BertTokenizerFast(str(path)), tokenizer):
        got = encode(data, each, max_length=8, cache_dir=folder)
        assert np.array_equal(got.ids, encode(data, each, max_length=8).ids)
    assert len(list(folder.iterdir())) == 2


def test_unwritable_cache_is_refused(tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written .*; set FEDJAX_LORA_CACHE to another"):
        encode(split(["a"]), tokenizer, max_length=8, cache_dir=tmp_path / "file" / "sub")
