"""The objective of a language task: cross-entropy of the tokens of completions."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_lora import lora
from fedjax_lora.core.target import current_target
from fedjax_lora.core.types import Array, ClientParams, Gain, Params
from fedjax_lora.federated.objectives import Objective, Score, TokenBatch, make_objective

Logits = Callable[[Params, Array], Array]


def chunk_of_target() -> int:
    """Logits that are computed at a time for each client: 32 MiB of float32 on a CPU.

    On an accelerator it is 256 MiB, since each part reads the whole vocabulary matrix.
    """
    return 2**23 if current_target().is_cpu else 2**26


def causal_lm(
    module: nn.Module,
    lengths: Sequence[int],
    *,
    logits: Logits,
    dropout: bool = False,
    lora_dropout: float = 0.0,
    chunk_numbers: int | None = None,
) -> Objective:
    """Cross-entropy of the next token, where that token belongs to a completion.

    The loss of a batch is the mean over all completion tokens of its valid examples: each token
    weighs the same, however long its example, and prompts and padding weigh nothing. The outputs
    are, per example, the fields of `Score`: ``float32[n, 3]``, sums over its completion's tokens.

    Args:
      module: called as ``module(ids, mask, deterministic=...)``; returns ``.hidden [n, t, h]``.
      lengths: length buckets.
      logits: ``(params, hidden [m, h]) -> float32[m, V]``, of the frozen vocabulary matrix.
      dropout: use the model's dropout rates in training.
      lora_dropout: rate for the inputs of the trained components.
      chunk_numbers: about as many logits exist at a time, in the backward pass too; by default
        `chunk_of_target`.
    """

    def forward(
        base: Params,
        trained: ClientParams,
        gain: Gain,
        batch: TokenBatch,
        *,
        deterministic: bool = True,
        **options: Any,
    ) -> Array:
        params = {**base, "head": trained.head}
        options["deterministic"] = deterministic
        inputs = (batch.ids, batch.mask)
        decoded = lora.apply(module, params, trained.adapter, gain, *inputs, **options)
        learned = batch.mask[:, 1:] & (batch.types[:, 1:] > 0)
        each = token_scores(
            lambda hidden: logits(params, hidden),
            decoded.hidden[:, :-1],
            batch.ids[:, 1:],
            chunk_numbers=chunk_numbers or chunk_of_target(),
        )
        sums = [jnp.sum(jnp.where(learned, x, 0), axis=1) for x in each]
        return jnp.stack([*sums, jnp.sum(learned, axis=1).astype(jnp.float32)], axis=1)

    return make_objective(
        forward,
        lambda output, batch: Score(*output.T),
        lengths,
        dropout=dropout,
        lora_dropout=lora_dropout,
    )


def token_scores(
    logits: Callable[[Array], Array], hidden: Array, target: Array, *, chunk_numbers: int
) -> tuple[Array, Array]:
    """Cross-entropy of each token, and whether it is the likeliest, both ``float32[n, t]``.

    Where they are many, logits are computed for a part of the tokens at a time, and again in the
    backward pass.

    Args:
      logits: ``[m, h] -> float32[m, V]``.
      hidden: the states that predict, ``[n, t, h]``.
      target: the tokens predicted, ``int32[n, t]``.
      chunk_numbers: logits of a part, about.
    """
    tokens, width = target.size, hidden.shape[-1]
    vocabulary = jax.eval_shape(logits, hidden.reshape(tokens, width)).shape[-1]
    size = max(1, min(tokens, chunk_numbers // vocabulary))
    parts = -(-tokens // size)

    def part(args: tuple[Array, Array]) -> tuple[Array, Array]:
        states, labels = args
        z = logits(states)
        chosen = jnp.take_along_axis(z, labels[:, None], axis=1)[:, 0]
        right = jnp.argmax(z, axis=1).astype(labels.dtype) == labels
        return jax.nn.logsumexp(z, axis=1) - chosen, right.astype(jnp.float32)

    if parts == 1:
        loss, right = part((hidden.reshape(tokens, width), target.reshape(tokens)))
        return loss.reshape(target.shape), right.reshape(target.shape)
    fill = parts * size - tokens
    states = jnp.pad(hidden.reshape(tokens, width), ((0, fill), (0, 0)))
    labels = jnp.pad(target.reshape(tokens), (0, fill))
    inputs = (states.reshape(parts, size, width), labels.reshape(parts, size))
    scores = jax.lax.map(jax.checkpoint(part), inputs)
    loss, right = (x.reshape(parts * size)[:tokens].reshape(target.shape) for x in scores)
    return loss, right
