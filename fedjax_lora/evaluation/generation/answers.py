"""What a model writes behind prompts."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from fedjax_lora import data
from fedjax_lora.core.errors import InputError
from fedjax_lora.data.instruction_tokens import prompt_length
from fedjax_lora.evaluation import generation
from fedjax_lora.evaluation.predict import AdaptedParams
from fedjax_lora.models import DecoderConfig, Pretrained


def make_answer_fn(
    model: Pretrained, tokens: data.Tokens, *, new_tokens: int, batch: int
) -> Callable[[AdaptedParams], list[str]]:
    """A function ``(global model) -> texts``: greedy, without special tokens, stripped.

    Args:
      model: the language model that global models are variants of.
      tokens: examples, of which only the prompts are used.
      new_tokens: how many tokens to write at most.
      batch: prompts written at once.

    Raises:
      InputError: a prompt that leaves no room for an answer.
    """
    asked = prompt_length(tokens)
    _check_room(asked, new_tokens, model.config.max_tokens)
    prompts = [ids[:end].tolist() for ids, end in zip(tokens.ids, asked, strict=True)]
    return make_generate_fn(model, prompts, new_tokens=new_tokens, batch=batch)


def make_generate_fn(
    model: Pretrained, prompts: Sequence[Sequence[int]], *, new_tokens: int, batch: int
) -> Callable[[AdaptedParams], list[str]]:
    """A function ``(global model) -> texts`` as `make_answer_fn`, from the prompts' tokens.

    Args:
      model: the language model that global models are variants of.
      prompts: token ids.
      new_tokens: how many tokens to write at most.
      batch: prompts written at once.

    Raises:
      InputError: once it writes: prompts that are empty, or leave no room for an answer.
    """
    config, stop = model.config, generation.stop_token_ids(model)
    assert isinstance(config, DecoderConfig), "only a decoder is loaded as a language model"

    def answer(current: AdaptedParams) -> list[str]:
        texts = [""] * len(prompts)
        params = {**current.base, "head": current.trained.head}
        batches = generation.prompt_batches(
            prompts, config, new_tokens=new_tokens, batch=batch, by_length=True
        )
        for rows, ids, mask in batches:
            made = generation.generate(
                model.module, params, ids, mask, new_tokens=new_tokens,
                adapter=current.trained.adapter, gain=current.gain, stop=stop,
            )  # fmt: skip
            written = [row[:end] for row, end in zip(*jax.device_get(made), strict=True)]
            decoded = model.tokenizer.batch_decode(written, skip_special_tokens=True)
            for row, text in zip(rows, decoded, strict=True):
                texts[row] = text.strip()
        return texts

    return answer


def _check_room(asked: np.ndarray, new_tokens: int, window: int) -> None:
    if asked.max(initial=0) + new_tokens > window:
        raise InputError(
            f"Answers of {new_tokens} tokens do not fit behind the longest prompt, {asked.max()} "
            f"tokens of a window of {window}; set answer_tokens in the task, or max_length to at "
            f"most {window - new_tokens}."
        )
