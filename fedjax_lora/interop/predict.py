"""Predictions of a trained model: class probabilities, scores and generated answers."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from fedjax_lora import data, federated, models
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.tokenizer import Tokenizer
from fedjax_lora.data import instruction_tokens, prompts
from fedjax_lora.data.batch_shapes import length_buckets
from fedjax_lora.evaluation.generation.answers import make_generate_fn
from fedjax_lora.evaluation.generation.text import stop_token_ids
from fedjax_lora.evaluation.predict import make_predict
from fedjax_lora.interop.trained_model import TrainedModel

__all__ = ["answer_end", "answers", "make_logits_fn", "probabilities", "tokenize", "tokenizer_of"]


def probabilities(
    model: TrainedModel,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    batch: int = 64,
) -> np.ndarray:
    """Compute class probabilities, or the score of a regression model.

    Example::

      model = fl.interop.load_model("runs/demo/adapter")
      rows = fl.interop.probabilities(model, ["Opens a file."])
      label = model.metadata.classes[rows[0].argmax()]

    Args:
      model: a classifier or regression model, see `fedjax_lora.interop.load_model`.
      texts: one or more texts.
      pairs: second texts, one per text, for a model of text pairs.
      batch: texts computed at once.

    Returns:
      ``float64[E, C]``, rows summing to one; ``float64[E, 1]`` scores for a regression model.

    Raises:
      InputError: there are no texts, or second texts are missing or superfluous.
    """
    if not texts:
        raise InputError("There are no texts to predict.")
    if (pairs is not None and len(pairs) != len(texts)) or model.metadata.pair != (
        pairs is not None
    ):
        need = "two texts for each example" if model.metadata.pair else "one text for each example"
        raise InputError(f"This model reads {need}.")
    labels = np.zeros(len(texts), np.int32)
    split = data.Split(list(texts), None if pairs is None else list(pairs), labels, None)
    logits_of = make_logits_fn(model.pretrained, tokenize(model, split), batch=batch)
    logits = logits_of(model).astype(np.float64)
    if model.metadata.regression:
        return logits
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def answers(
    model: TrainedModel,
    instructions: Sequence[str],
    contexts: Sequence[str] | None = None,
    *,
    prompt_format: str | None = None,
    answer_tokens: int | None = None,
    batch: int = 64,
) -> list[str]:
    """Answer instructions with a language model by greedy decoding.

    Example::

      model = fl.interop.load_model("runs/dolly/adapter")
      fl.interop.answers(model, ["Name three rivers in Africa."])

    Args:
      model: a language model, see `fedjax_lora.interop.load_model`.
      instructions: one or more instructions.
      contexts: input text of each instruction, ``""`` for none; None if no instruction has one.
      prompt_format: a name of `fedjax_lora.data.prompts.FORMATS` or ``"auto"``; None for the
        format of the training.
      answer_tokens: largest number of tokens of an answer; None for that of the model's task.
      batch: prompts answered at once.

    Returns:
      One answer per instruction, without special tokens and surrounding white space.

    Raises:
      InputError: there are no instructions or not as many contexts, a prompt leaves no room for
        an answer, or a chat template is asked for and the tokenizer has none.
    """
    if not instructions:
        raise InputError("There are no prompts to answer.")
    if contexts is not None and len(contexts) != len(instructions):
        raise InputError(
            f"There are {len(instructions)} instructions and {len(contexts)} contexts; give one "
            "context for each instruction, or none at all."
        )
    tokenizer, date = tokenizer_of(model), model.metadata.chat_date
    format = prompts.resolve(prompt_format or model.metadata.prompt_format, tokenizer)
    ids = instruction_tokens.prompt_ids(
        instructions,
        [""] * len(instructions) if contexts is None else contexts,
        tokenizer,
        format=format,
        date=date,
    )
    generate_answers = make_generate_fn(
        model.pretrained,
        ids,
        end=prompts.answer_end(format, tokenizer, date=date),
        new_tokens=answer_tokens or model.metadata.answer_tokens,
        batch=batch,
    )
    return generate_answers(model.adapted_params)


def answer_end(model: TrainedModel) -> prompts.AnswerEnd:
    """Return all tokens that end an answer of a language model, and the text that does.

    Args:
      model: a language model; one without a tokenizer ends where its checkpoint says.
    """
    tokenizer, end = model.pretrained.tokenizer, prompts.AnswerEnd(())
    if tokenizer is not None:
        format = prompts.resolve(model.metadata.prompt_format, tokenizer)
        end = prompts.answer_end(format, tokenizer, date=model.metadata.chat_date)
    return end._replace(ids=stop_token_ids(model.pretrained, end.ids))


def make_logits_fn(
    pretrained: models.Pretrained, tokens: data.Tokens, *, batch: int = 64
) -> Callable[[TrainedModel], np.ndarray]:
    """Build a function from a model on this base to its logits, ``float32[E, C]``.

    Args:
      pretrained: the base model.
      tokens: the tokenised examples.
      batch: examples computed at once.
    """
    lengths = length_buckets(tokens.length, longest=tokens.ids.shape[1])
    predict = make_predict(federated.text_classification(pretrained.module, lengths), batch=batch)
    tokens_on_device = jax.device_put(tokens)
    return lambda model: predict(model.adapted_params, tokens_on_device)


def tokenize(
    model: TrainedModel, split: data.Split, *, cache_dir: str | None = None
) -> data.Tokens:
    """Tokenise examples as the model's training did.

    Args:
      model: the model, whose tokenizer and maximum length are used.
      split: the examples.
      cache_dir: folder of the token cache; None for no cache.

    Raises:
      InputError: the base model has no tokenizer.
    """
    max_length = min(model.metadata.max_length, model.pretrained.config.max_tokens)
    return data.encode(split, tokenizer_of(model), max_length=max_length, cache_dir=cache_dir)


def tokenizer_of(model: TrainedModel) -> Tokenizer:
    """Return the tokenizer of the base model.

    Raises:
      InputError: the base model has no tokenizer.
    """
    tokenizer = model.pretrained.tokenizer
    if tokenizer is None:
        raise InputError(f"The base model {model.metadata.base!r} has no tokenizer.")
    return tokenizer
