"""From prompts to texts: tokens, batches and what ends a text, on the host."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_lora.core.atomic_io import read_json
from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.core.types import Adapter, Gain, Key
from fedjax_lora.evaluation.generation.decode import generate
from fedjax_lora.evaluation.generation.sampling import GREEDY, Sampling
from fedjax_lora.models import DecoderConfig, Pretrained

_STEP = 32  # prompts are padded to multiples of this, so that few shapes are compiled


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
    """The continuation of every prompt as text, without special tokens.

    Args:
      model: a language model with its tokenizer.
      prompts: texts to continue.
      new_tokens: how many tokens to write at most.
      adapter: as for `generate`.
      gain: as for `generate`.
      per_row: `adapter` and `gain` hold one adapter for each prompt, on a leading axis.
      sampling: how tokens are chosen.
      batch: prompts written at once.
      key: for sampling.

    Raises:
      InputError: a model that cannot write, or prompts that are empty or do not fit its window.
    """
    if not isinstance(model.config, DecoderConfig) or model.config.num_labels:
        raise InputError("This model classifies and cannot write; load it with num_labels=None.")
    if model.tokenizer is None:
        raise InputError("This model has no tokenizer, so it cannot read prompts as text.")
    ids = [model.tokenizer(prompt)["input_ids"] for prompt in prompts]
    root = jax.random.key(0) if key is None else key
    texts = []
    for number, (rows, tokens, mask) in enumerate(
        prompt_batches(ids, model.config, new_tokens=new_tokens, batch=batch)
    ):
        # A last batch that is not full repeats its last prompt: one compiled shape.
        mine = (adapter, gain)
        if per_row:
            mine = jax.tree.map(lambda x: x[rows], mine)  # noqa: B023
        out = generate(
            model.module,
            model.params,
            tokens,
            mask,
            new_tokens=new_tokens,
            adapter=mine[0],
            gain=mine[1],
            per_row=per_row,
            sampling=sampling,
            stop=stop_token_ids(model),
            key=jax.random.fold_in(root, number),
        )
        made = [row[:end] for row, end in zip(*jax.device_get(out), strict=True)]
        texts += model.tokenizer.batch_decode(made, skip_special_tokens=True)
    return texts[: len(prompts)]


def prompt_batches(
    prompts: Sequence[Sequence[int]],
    config: DecoderConfig,
    *,
    new_tokens: int,
    batch: int,
    by_length: bool = False,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Prompts as batches: their row numbers ``[n]``, ids and mask ``[n, t]``, padded on the left.

    Every batch has the same number of rows: the last one repeats its last prompt. With
    ``by_length`` prompts of one batch are about as long, else they come in their order.

    Raises:
      InputError: prompts that are empty, or leave no room for the new tokens; all are named.
    """
    window = config.max_positions if config.rope.type == "dynamic" else config.max_tokens
    raise_all("Prompts cannot be continued", _problems(prompts, window, new_tokens, batch))
    batch, order = min(batch, len(prompts)), np.arange(len(prompts))
    if by_length:
        order = np.argsort([len(ids) for ids in prompts], kind="stable")
    for first in range(0, len(prompts), max(batch, 1)):
        rows = order[np.minimum(np.arange(first, first + batch), len(prompts) - 1)]
        chosen = [prompts[row] for row in rows]
        longest = max(map(len, chosen))
        width = max(longest, min(-(-longest // _STEP) * _STEP, window - new_tokens))
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


def stop_token_ids(model: Pretrained) -> tuple[int, ...]:
    """The ids that end a text: of the checkpoint's generation config, and the tokenizer's own.

    Raises:
      InputError: a generation config that cannot be read, or gives none as an id.
    """
    stated: Any = []
    folder: Path | None = model.folder
    file = None if folder is None else folder / "generation_config.json"
    if file is not None and file.is_file():
        values = read_json(file)
        if not isinstance(values, dict):
            raise InputError(f"{file} must hold one JSON object.")
        stated = values.get("eos_token_id") or []
    own = getattr(model.tokenizer, "eos_token_id", None)
    every = {*(stated if isinstance(stated, list) else [stated]), *([] if own is None else [own])}
    if not all(isinstance(end, int) for end in every):
        raise InputError(f"{file} must give eos_token_id as a number or a list of numbers.")
    return tuple(sorted(every))
