"""How the next token is chosen from its scores."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fedjax_lora.core.errors import raise_all
from fedjax_lora.core.types import Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """A rule, applied in the order of its fields, as `transformers` does.

    Attributes:
      temperature: what scores are divided by; 0 takes the most likely token always.
      top_k: only so many most likely tokens; None for all.
      top_p: only the fewest most likely tokens that have this probability together
        (arXiv 1904.09751); 1 for all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        raise_all("Sampling is impossible", _problems(self))


def _problems(rule: Sampling) -> Iterator[str]:
    if not rule.temperature >= 0:
        yield f"temperature is {rule.temperature:g} but must be at least 0"
    if rule.top_k is not None and rule.top_k < 1:
        yield f"top_k is {rule.top_k} but must be at least 1"
    if not 0 < rule.top_p <= 1:
        yield f"top_p is {rule.top_p:g} but must be above 0 and at most 1"


GREEDY = Sampling(temperature=0.0)


def sample_token(scores: Float[Array, "n V"], rule: Sampling, keys: Key) -> Int[Array, "n"]:
    """The next token of each row.

    Args:
      scores: logits.
      rule: how to choose.
      keys: one per row, so that a row does not depend on its neighbours.
    """
    if rule.temperature == 0:
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, filter_logits(scores, rule)).astype(jnp.int32)


def filter_logits(scores: Float[Array, "n V"], rule: Sampling) -> Float[Array, "n V"]:
    """Scores divided by a positive temperature, minus infinity for tokens that are ruled out."""
    scores = scores / rule.temperature
    if rule.top_k is not None and rule.top_k < scores.shape[-1]:
        least = jax.lax.top_k(scores, rule.top_k)[0][:, -1:]
        scores = jnp.where(scores < least, -jnp.inf, scores)
    if rule.top_p < 1:
        order = jnp.argsort(-scores, axis=-1)
        likely = jax.nn.softmax(jnp.take_along_axis(scores, order, axis=-1))
        kept = jnp.cumsum(likely, axis=-1) - likely < rule.top_p
        kept = jnp.take_along_axis(kept, jnp.argsort(order, axis=-1), axis=-1)
        scores = jnp.where(kept, scores, -jnp.inf)
    return scores
