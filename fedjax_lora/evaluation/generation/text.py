"""Generation from prompts as text: tokenisation, batches and stop tokens, on the host."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.core.tokenizer import Tokenizer
from fedjax_lora.core.types import Adapter, Gain, Key
from fedjax_lora.core.untrusted_files import read_json
from fedjax_lora.evaluation.generation.decode import Generated, generate
from fedjax_lora.evaluation.generation.sampling import GREEDY, Sampling
from fedjax_lora.models import DecoderConfig, Pretrained

__all__ = ["decode_tokens", "generate_text", "prompt_batches", "stop_token_ids"]

_WIDTH_STEP = 32  # prompts are padded to multiples of this, so that few shapes are compiled


def generate_text(
    model: Pretrained,
    prompts: Sequence[str],
    *,
    new_tokens: int,
    adapter: Adapter | None = None,
    gain: Gain | None = None,
    per_row: bool = False,
    sampling: Sampling = GREEDY,
    batch: int = 16,
    key: Key | None = None,
) -> list[str]:
    """Continue every prompt with a language model.

    Args:
      model: a language model with a tokenizer.
      prompts: texts to continue.
      new_tokens: largest number of generated tokens.
      adapter: as for `generate`.
      gain: as for `generate`.
      per_row: whether `adapter` and `gain` hold one adapter per prompt, on a leading axis.
      sampling: the sampling rule.
      batch: prompts continued at once.
      key: key of the samples; not used by `GREEDY`.

    Returns:
      The generated texts without their prompts and without special tokens.

    Raises:
      InputError: the model is a classifier or has no tokenizer, or a prompt is empty or does not
        fit the model's window.
    """
    if not isinstance(model.config, DecoderConfig) or model.config.num_labels:
        raise InputError(
            "This model classifies and cannot generate text; load it with num_labels=None."
        )
    if model.tokenizer is None:
        raise InputError("This model has no tokenizer, so it cannot read prompts as text.")
    ids = [model.tokenizer(prompt)["input_ids"] for prompt in prompts]
    root = jax.random.key(0) if key is None else key
    texts = []
    for number, (rows, tokens, mask) in enumerate(
        prompt_batches(ids, model.config, new_tokens=new_tokens, batch=batch)
    ):
        adapter_of_rows, gain_of_rows = adapter, gain
        if per_row:
            take_rows = lambda x: x[rows]  # noqa: B023, E731
            adapter_of_rows, gain_of_rows = jax.tree.map(take_rows, (adapter, gain))
        generated = generate(
            model.module,
            model.params,
            tokens,
            mask,
            new_tokens=new_tokens,
            adapter=adapter_of_rows,
            gain=gain_of_rows,
            per_row=per_row,
            sampling=sampling,
            stop=stop_token_ids(model),
            key=jax.random.fold_in(root, number),
        )
        texts += decode_tokens(model.tokenizer, generated)
    return texts[: len(prompts)]


def decode_tokens(tokenizer: Tokenizer, generated: Generated) -> list[str]:
    """Decode generated tokens to texts without special tokens.

    Args:
      tokenizer: a `transformers` tokenizer.
      generated: from `generate`.
    """
    tokens, lengths = jax.device_get(generated)
    rows = [row[:length] for row, length in zip(tokens, lengths, strict=True)]
    return tokenizer.batch_decode(rows, skip_special_tokens=True)


def prompt_batches(
    prompts: Sequence[Sequence[int]],
    config: DecoderConfig,
    *,
    new_tokens: int,
    batch: int,
    by_length: bool = False,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Divide prompts into batches of the same number of rows, padded on the left.

    A last batch that is not full repeats its last prompt, so that no other shape is compiled.

    Args:
      prompts: token ids of each prompt.
      config: config of the decoder.
      new_tokens: largest number of generated tokens.
      batch: rows of a batch.
      by_length: whether to group prompts of similar length instead of keeping their order.

    Yields:
      Row numbers of the prompts ``int[n]``, token ids ``int32[n, t]`` and mask ``bool[n, t]``.

    Raises:
      InputError: prompts are empty or leave no room for the new tokens; the message names all.
    """
    stretched = config.rope is not None and config.rope.type == "dynamic"
    window = config.max_positions if stretched else config.max_tokens
    raise_all("Prompts cannot be continued", _problems(prompts, window, new_tokens, batch))
    batch, order = min(batch, len(prompts)), np.arange(len(prompts))
    if by_length:
        order = np.argsort([len(ids) for ids in prompts], kind="stable")
    for first in range(0, len(prompts), max(batch, 1)):
        rows = order[np.minimum(np.arange(first, first + batch), len(prompts) - 1)]
        chosen = [prompts[row] for row in rows]
        longest = max(map(len, chosen))
        width = max(longest, min(-(-longest // _WIDTH_STEP) * _WIDTH_STEP, window - new_tokens))
        ids = np.zeros((batch, width), np.int32)
        mask = np.zeros((batch, width), bool)
        for row, prompt in enumerate(chosen):
            ids[row, width - len(prompt) :] = prompt
            mask[row, width - len(prompt) :] = True
        yield rows, ids, mask


def _problems(
    prompts: Sequence[Sequence[int]], window: int, new_tokens: int, batch: int
) -> Iterator[str]:
    for name, value in (("new_tokens", new_tokens), ("batch", batch)):
        if value < 1:
            yield f"{name} is {value} but must be at least 1"
    for number, prompt in enumerate(prompts, 1):
        if len(prompt) == 0:
            yield f"prompt {number} has no tokens"
        elif len(prompt) + new_tokens > window:
            yield (
                f"prompt {number} has {len(prompt)} tokens and the model's window is {window}, so "
                f"{new_tokens} new ones do not fit; shorten it or ask for fewer"
            )


def stop_token_ids(model: Pretrained, more: Iterable[int] = ()) -> tuple[int, ...]:
    """Return the token ids that end a text.

    They come from the checkpoint's ``generation_config.json`` and from the tokenizer.

    Args:
      model: a language model.
      more: further ids, such as the end of a turn in a chat template.

    Raises:
      InputError: the generation config is damaged, or one of its ids is not a number.
    """
    configured: Any = []
    folder: Path | None = model.folder
    file = None if folder is None else folder / "generation_config.json"
    if file is not None and file.is_file():
        values = read_json(file)
        if not isinstance(values, dict):
            raise InputError(f"{file} must hold one JSON object.")
        configured = values.get("eos_token_id") or []
    ids = configured if isinstance(configured, list) else [configured]
    if not all(isinstance(end, int) for end in ids):
        raise InputError(f"{file} must give eos_token_id as a number or a list of numbers.")
    tokenizer_id = getattr(model.tokenizer, "eos_token_id", None)
    return tuple(sorted({*ids, *more} | (set() if tokenizer_id is None else {tokenizer_id})))
