"""A language model in a folder, used: answers to prompts, and scores on a task's test examples."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax

from fedjax_lora.runs import evaluate, compilation
from fedjax_lora import data
from fedjax_lora.evaluation.generation.answers import make_answer, make_writer
from fedjax_lora.runs.evaluate import Assess
from fedjax_lora.data import instruction_tokens
from fedjax_lora.data.batching import length_buckets
from fedjax_lora.core.errors import InputError
from fedjax_lora.interop import Opened
from fedjax_lora.evaluation.task_types import KINDS, Tools
from fedjax_lora.evaluation.predict import Global
from fedjax_lora.runs.compilation import Reading
from fedjax_lora.core.types import Trained

_KIND = KINDS["language"]


def answers(
    opened: Opened,
    instructions: Sequence[str],
    contexts: Sequence[str],
    *,
    prompt_format: str | None = None,
    answer_tokens: int | None = None,
    batch: int = 64,
) -> list[str]:
    """What a language model answers, greedily.

    Args:
      opened: the model, see `fedjax_lora.exchange.open_model`.
      instructions: one or more.
      contexts: what they are about; may be empty.
      prompt_format: a name of `fedjax_lora.data.prompts.FORMATS` or ``"auto"``; that of the
        training by default.
      answer_tokens: how many tokens to write at most; the number of its task by default.
      batch: how many are answered at once.

    Raises:
      InputError: no prompts, or prompts that are longer than the window; a chat template is asked
        for, and there is none.
    """
    if not instructions:
        raise InputError("There are no prompts to answer.")
    fitted, about = opened.fitted, opened.about
    ids = instruction_tokens.prompt_ids(
        instructions, contexts, _tokenizer(opened), format=prompt_format or about.prompt_format
    )
    write = make_writer(
        fitted.model, ids, new_tokens=answer_tokens or about.answer_tokens, batch=batch
    )
    return write(Global(fitted.base, Trained(fitted.adapter, fitted.head), fitted.gain))


def assess(
    opened: Opened, loaded: data.TaskData, *, batch: int, cache_dir: str | None = None
) -> tuple[Assess, int]:
    """How models on this base are assessed on a language task's test examples, and their number.

    Prompts are as in the training, unless the task says how they are.

    Args:
      opened: the model.
      loaded: the task.
      batch: examples computed, or prompts answered, at once.
      cache_dir: folder of tokens.

    Raises:
      InputError: prompts that leave no room for an answer, or no example that can be used.
    """
    model, task = opened.fitted.model, _prompted(loaded.task, opened.about.prompt_format)
    longest = min(opened.about.max_length, model.config.max_tokens)

    def encode(split: data.Split) -> instruction_tokens.Encoded:
        return _KIND.encode(task, split, _tokenizer(opened), longest, cache_dir)

    made = encode(loaded.test)
    lengths = length_buckets(
        made.tokens.length, longest=made.tokens.ids.shape[1], most=_KIND.buckets
    )
    reading = Reading(
        module=model.module, lengths=lengths, kind="language", dropout=False, lora_dropout=0.0
    )
    tools = Tools(
        task=loaded._replace(task=task),
        predict=compilation.build_predict(reading, batch, None),
        place=jax.device_put,
        encode=encode,
        answer=functools.partial(
            make_answer, model, new_tokens=task.prompting.answer_tokens, batch=batch
        ),
    )
    judge = _KIND.judge(tools, made.split, made.tokens)
    return evaluate.by_text(judge, loaded.classes, task.metric), len(made.kept)


def _prompted(task: data.Task, trained_with: str) -> data.Task:
    """The task with the prompts of the training, where it leaves them open."""
    if task.prompting.format != "auto":
        return task
    return dataclasses.replace(task, prompting=task.prompting._replace(format=trained_with))


def _tokenizer(opened: Opened) -> Any:
    tokenizer = opened.fitted.model.tokenizer
    if tokenizer is None:
        raise InputError(f"The base model {opened.about.base!r} has no tokenizer.")
    return tokenizer
