"""Sampling rules: temperature, top-k and top-p."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fedjax_lora.core.errors import raise_all
from fedjax_lora.core.records import check_fields
from fedjax_lora.core.types import Key

__all__ = ["GREEDY", "Sampling", "filter_logits", "sample_token"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """A sampling rule; its fields are applied in their order, as in `transformers`.

    Attributes:
      temperature: divisor of the logits; 0 for greedy decoding.
      top_k: number of most likely tokens to sample from; None for all.
      top_p: sample from the smallest set of most likely tokens whose probabilities sum to at least
        this (nucleus sampling, arXiv 1904.09751); 1 for all.

    Raises:
      InputError: a field is of the wrong type or out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        raise_all("Sampling is impossible", _problems(self))


def _problems(rule: Sampling) -> Iterator[str]:
    if not rule.temperature >= 0:
        yield f"temperature is {rule.temperature:g} but must be at least 0"
    if rule.top_k is not None and rule.top_k < 1:
        yield f"top_k is {rule.top_k} but must be at least 1"
    if not 0 < rule.top_p <= 1:
        yield f"top_p is {rule.top_p:g} but must be above 0 and at most 1"


GREEDY = Sampling(temperature=0.0)
"""The most likely token, without randomness."""


def sample_token(logits: Float[Array, "n V"], rule: Sampling, keys: Key) -> Int[Array, " n"]:
    """Choose the next token of each row.

    Args:
      logits: logits over the vocabulary.
      rule: the sampling rule.
      keys: one key per row, so that a row does not depend on the others.
    """
    if rule.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, filter_logits(logits, rule)).astype(jnp.int32)


def filter_logits(logits: Float[Array, "n V"], rule: Sampling) -> Float[Array, "n V"]:
    """Divide logits by the temperature and set those of excluded tokens to minus infinity.

    Args:
      logits: logits over the vocabulary.
      rule: a rule with a positive temperature.
    """
    logits = logits / rule.temperature
    if rule.top_k is not None and rule.top_k < logits.shape[-1]:
        threshold = jax.lax.top_k(logits, rule.top_k)[0][:, -1:]
        logits = jnp.where(logits < threshold, -jnp.inf, logits)
    if rule.top_p < 1:
        order = jnp.argsort(-logits, axis=-1)
        probability = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1))
        kept = jnp.cumsum(probability, axis=-1) - probability < rule.top_p
        kept = jnp.take_along_axis(kept, jnp.argsort(order, axis=-1), axis=-1)
        logits = jnp.where(kept, logits, -jnp.inf)
    return logits
