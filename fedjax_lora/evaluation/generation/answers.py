"""Greedy answers to the prompts of tokenised examples."""

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from fedjax_lora import data
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.tokenizer import Tokenizer
from fedjax_lora.data import prompts as prompt_formats
from fedjax_lora.data.instruction_tokens import prompt_length
from fedjax_lora.data.prompts import AnswerEnd
from fedjax_lora.evaluation import generation
from fedjax_lora.evaluation.predict import AdaptedParams
from fedjax_lora.models import DecoderConfig, Pretrained

__all__ = ["make_answer_fn", "make_generate_fn"]


def make_answer_fn(
    model: Pretrained, tokens: data.Tokens, *, prompting: data.Prompting, batch: int
) -> Callable[[AdaptedParams], list[str]]:
    """Build a function ``(params) -> texts`` that answers the prompts of examples.

    Args:
      model: the language model whose adapters and heads are evaluated.
      tokens: the examples; only their prompts are used.
      prompting: prompting options of the task.
      batch: prompts answered at once.

    Returns:
      A function that decodes greedily and returns one text per example, without special tokens
      and surrounding white space.

    Raises:
      InputError: a prompt leaves no room for an answer.
    """
    lengths, new_tokens = prompt_length(tokens), prompting.answer_tokens
    _check_room(lengths, new_tokens, model.config.max_tokens)
    prompts = [ids[:end].tolist() for ids, end in zip(tokens.ids, lengths, strict=True)]
    tokenizer = cast(Tokenizer, model.tokenizer)  # which has made the prompts
    format = prompt_formats.resolve(prompting.format, tokenizer)
    end = prompt_formats.answer_end(format, tokenizer, date=prompting.date)
    return make_generate_fn(model, prompts, end=end, new_tokens=new_tokens, batch=batch)


def make_generate_fn(
    model: Pretrained,
    prompts: Sequence[Sequence[int]],
    *,
    end: AnswerEnd,
    new_tokens: int,
    batch: int,
) -> Callable[[AdaptedParams], list[str]]:
    """Build a function ``(params) -> texts`` that answers prompts, as `make_answer_fn`.

    Args:
      model: the language model whose adapters and heads are evaluated.
      prompts: token ids of each prompt.
      end: what ends an answer, besides the tokens of `fedjax_lora.evaluation.stop_token_ids`.
      new_tokens: largest number of tokens of an answer.
      batch: prompts answered at once.

    Returns:
      The function. It raises `InputError` if a prompt is empty or leaves no room for an answer.

    Raises:
      InputError: the model classifies.
    """
    config, stop = model.config, generation.stop_token_ids(model, end.ids)
    if not isinstance(config, DecoderConfig):
        raise InputError(
            "This model classifies and cannot generate text; load it with num_labels=None."
        )

    def answer(params: AdaptedParams) -> list[str]:
        texts = [""] * len(prompts)
        model_params = {**params.base, "head": params.trained.head}
        batches = generation.prompt_batches(
            prompts, config, new_tokens=new_tokens, batch=batch, by_length=True
        )
        for rows, ids, mask in batches:
            generated = generation.generate(
                model.module, model_params, ids, mask, new_tokens=new_tokens,
                adapter=params.trained.adapter, gain=params.gain, stop=stop,
            )  # fmt: skip
            decoded = generation.decode_tokens(cast(Tokenizer, model.tokenizer), generated)
            for row, text in zip(rows, decoded, strict=True):
                texts[row] = end.cut(text)
        return texts

    return answer


def _check_room(prompt_lengths: np.ndarray, new_tokens: int, window: int) -> None:
    longest = prompt_lengths.max(initial=0)
    if longest + new_tokens > window:
        raise InputError(
            f"Answers of {new_tokens} tokens do not fit behind the longest prompt, {longest} "
            f"tokens of a window of {window}; set answer_tokens in the task, or max_length to at "
            f"most {window - new_tokens}."
        )
