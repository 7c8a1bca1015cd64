"""Tokenisation of texts into padded arrays of token ids, cached on disk."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from fedjax_lora.core import atomic_io
from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.core.tokenizer import Tokenizer
from fedjax_lora.data.datasets.records import Split

MULTIPLE = 8  # lengths are rounded up to a multiple, for aligned and fewer shapes
CHUNK = 10_000  # texts tokenised at a time; lists of ids take ten times the memory of arrays
_CACHE_VERSION = 1


class Tokens(NamedTuple):
    """Tokenised examples; `E` examples, `T` tokens.

    Attributes:
      ids: `int32[E, T]`, padded on the right with the tokenizer's padding id.
      types: `int32[E, T]`, 1 on the second text of a pair if the tokenizer marks it, else 0; for a
        language task 1 on the learned tokens, see `fedjax_lora.data.instruction_tokens.encode`.
      length: `int32[E]`, tokens of each example without padding, at least 1.
      label: `int32[E]` class indices, or `float32[E]` scores.
    """

    ids: np.ndarray
    types: np.ndarray
    length: np.ndarray
    label: np.ndarray


def encode(
    split: Split, tokenizer: Tokenizer, *, max_length: int, cache_dir: str | Path | None = None
) -> Tokens:
    """Tokenise the texts of a split.

    `T` is the longest example's length rounded up to a multiple of `MULTIPLE`, but at most
    `max_length`. A text without any token (empty, for a tokenizer without special tokens) becomes
    one padding token, so that pooling over an example never divides by zero.

    Args:
      split: texts, or pairs of texts.
      tokenizer: a fast `transformers` tokenizer with a padding token.
      max_length: longer examples are cut; of a pair, the longer text first.
      cache_dir: folder of cached results, keyed by texts, tokenizer and length.

    Raises:
      InputError: the tokenizer is missing, slow or without a padding token, or `max_length` leaves
        no room for text.
    """
    if tokenizer is None:
        raise InputError("The model has no tokenizer; put its tokenizer.json beside its weights.")
    _check(tokenizer, max_length, special=tokenizer.num_special_tokens_to_add(bool(split.pairs)))
    arrays = cached(
        split,
        tokenizer,
        max_length,
        lambda: _tokenise(split, tokenizer, max_length),
        cache_dir=cache_dir,
    )
    return Tokens(**arrays, label=split.labels)


def cached(
    split: Split,
    tokenizer: Tokenizer,
    max_length: int,
    make: Callable[[], dict[str, np.ndarray]],
    *,
    cache_dir: str | Path | None,
    settings: Mapping[str, object] | None = None,
    names: tuple[str, ...] = (),
) -> dict[str, np.ndarray]:
    """Return the cached result of ``make``, or call it and cache the result.

    Args:
      split: the texts.
      tokenizer: a fast `transformers` tokenizer.
      max_length: largest number of tokens of an example.
      make: tokenises; returns the fields of `Tokens` without the label, `int32`.
      cache_dir: folder of the cache; None disables it.
      settings: JSON values that the result also depends on.
      names: further arrays of the result, `int32` of one number per row; a text may then have any
        number of rows.
    """
    if cache_dir is None:
        return make()
    path = Path(cache_dir) / f"tokens-{_key(split, tokenizer, max_length, settings)}.npz"
    arrays = _read_cache(path, None if names else len(split.texts), names)
    if arrays is None:
        arrays = make()
        _write_cache(path, arrays)
    return arrays


def _check(tokenizer: Tokenizer, max_length: int, *, special: int) -> None:
    problems = []
    if not getattr(tokenizer, "is_fast", False):
        problems.append("it is not a fast tokenizer (save it with a tokenizer.json)")
    if tokenizer.pad_token_id is None:
        problems.append("it has no padding token (set tokenizer.pad_token, for example to eos)")
    if max_length <= special:
        problems.append(f"max_length {max_length} leaves no room beside {special} special tokens")
    raise_all(f"Tokenizer {type(tokenizer).__name__}", problems)


def _tokenise(split: Split, tokenizer: Tokenizer, max_length: int) -> dict[str, np.ndarray]:
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    for start in range(0, len(split.texts), CHUNK):
        chunk = slice(start, start + CHUNK)
        batch = tokenizer(
            split.texts[chunk],
            split.pairs[chunk] if split.pairs is not None else None,
            truncation="longest_first",
            max_length=max_length,
            padding=False,
            return_token_type_ids=True,
            return_attention_mask=False,
        )
        # Padding by hand: a tokenizer may be set to pad on the left.
        ids += [np.array(row or [tokenizer.pad_token_id], np.int32) for row in batch["input_ids"]]
        types += [np.array(row or [0], np.int32) for row in batch["token_type_ids"]]
    return padded(ids, types, max_length, cast(int, tokenizer.pad_token_id))


def padded(
    ids: list[np.ndarray], types: list[np.ndarray], max_length: int, fill: int
) -> dict[str, np.ndarray]:
    """Pad rows to the fields of `Tokens` without the label: ids with ``fill``, types with 0."""
    length = np.array([len(row) for row in ids], np.int32)
    longest = int(length.max(initial=1))
    width = min(-(-longest // MULTIPLE) * MULTIPLE, max_length)
    return {"ids": _pad(ids, width, fill), "types": _pad(types, width, 0), "length": length}


def _pad(rows: list[np.ndarray], width: int, value: int) -> np.ndarray:
    padded = np.full((len(rows), width), value, np.int32)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded


def _key(
    split: Split, tokenizer: Tokenizer, max_length: int, settings: Mapping[str, object] | None
) -> str:
    """Hash everything that the arrays depend on: texts, tokenizer, length and settings."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # Every call sets these two, so they are no property of the tokenizer.
    for name in ("truncation", "padding"):
        backend.pop(name, None)
    digest = hashlib.sha256()
    digest.update(
        json.dumps(
            [_CACHE_VERSION, backend, tokenizer.pad_token_id, tokenizer.truncation_side, max_length]
            + ([] if settings is None else [settings])
        ).encode()
    )
    for texts in (split.texts, split.pairs or []):
        digest.update(f"\n{len(texts)}".encode())
        for text in texts:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(f"\n{len(data)}:".encode() + data)
    return digest.hexdigest()[:32]


def _read_cache(
    path: Path, examples: int | None, more: tuple[str, ...]
) -> dict[str, np.ndarray] | None:
    """Return the cached arrays, or None if the file is absent, damaged or of another shape."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("ids", "types", "length", *more)}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    shape = arrays["ids"].shape
    good = len(shape) == 2 and arrays["types"].shape == shape
    good = good and examples in (None, shape[0])
    good = good and all(arrays[name].shape == shape[:1] for name in ("length", *more))
    return arrays if good and all(a.dtype == np.int32 for a in arrays.values()) else None


def _write_cache(path: Path, arrays: dict[str, np.ndarray]) -> None:
    try:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]
        atomic_io.write(path, buffer.getvalue())
    except OSError as error:
        raise InputError(
            f"The token cache {path.parent} cannot be written ({error}); set FEDJAX_LORA_CACHE to "
            "another folder."
        ) from error
