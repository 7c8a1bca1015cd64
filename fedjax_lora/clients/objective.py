"""What a client minimises: a loss over one batch of the data on the device."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import optax

from fedjax_lora import adapters
from fedjax_lora.types import Array, Gain, Key, Params, Trained


class Objective(NamedTuple):
    """A task as local training sees it.

    Attributes:
      loss: ``(base, trained, gain, fixed, batch, valid: bool[n], key) -> float32[]``, the mean over
        valid examples. ``fixed`` is None or the gains of components that dropout must spare.
      outputs: ``(base, trained, gain, batch) -> [n, ...]``, the model's predictions.
      take: ``(data, index: int32[n], length: int) -> batch``.
      lengths: static lengths a batch is cut to, ascending; ``take`` receives one of them.
    """

    loss: Callable[..., Array]
    outputs: Callable[..., Array]
    take: Callable[[Any, Array, int], Any]
    lengths: tuple[int, ...] = (0,)


class TokenBatch(NamedTuple):
    """A batch of encoded texts."""

    ids: Array  # int32[n, t]
    mask: Array  # bool[n, t], true at real tokens
    types: Array  # int32[n, t]
    label: Array  # int32[n] or float32[n]


def take_tokens(data: Any, index: Array, length: int) -> TokenBatch:
    """Rows of a `fedjax_lora.data.Tokens`, cut to ``length`` tokens."""
    place = jnp.arange(length, dtype=data.length.dtype)
    return TokenBatch(
        ids=data.ids[index, :length],
        mask=place[None] < data.length[index][:, None],
        types=data.types[index, :length],
        label=data.label[index],
    )


def example_loss(output: Array, label: Array, *, regression: bool = False) -> Array:
    """Cross-entropy of logits ``[n, classes]``, or squared error of ``[n, 1]``: ``float32[n]``."""
    if regression:
        return jnp.square(output[:, 0] - label)
    return optax.softmax_cross_entropy_with_integer_labels(output, label)


def text_classification(
    module: nn.Module,
    lengths: Sequence[int],
    *,
    regression: bool = False,
    dropout: bool = False,
    lora_dropout: float = 0.0,
) -> Objective:
    """Cross-entropy (squared error for regression) of an encoder with a task head.

    Args:
      module: called as ``module(ids, mask, types, deterministic=...)``, returns ``[n, classes]``;
        its parameters are the base's with the trained ones under ``head``.
      lengths: length buckets.
      regression: one output, float labels.
      dropout: use the model's own dropout rates in training.
      lora_dropout: rate for the inputs of the trained components.
    """

    def forward(
        base: Params,
        trained: Trained,
        gain: Gain,
        batch: TokenBatch,
        *,
        deterministic: bool = True,
        **options: Any,
    ) -> Array:
        params = {**base, "head": trained.head}
        inputs = (batch.ids, batch.mask, batch.types)
        options["deterministic"] = deterministic
        logits = adapters.apply(module, params, trained.adapter, gain, *inputs, **options)
        return logits.astype(jnp.float32)

    def loss(
        base: Params,
        trained: Trained,
        gain: Gain,
        fixed: Gain | None,
        batch: TokenBatch,
        valid: Array,
        key: Key,
    ) -> Array:
        logits = forward(
            base,
            trained,
            gain,
            batch,
            fixed=fixed,
            dropout=lora_dropout,
            deterministic=not dropout,
            rngs={"dropout": key} if dropout or lora_dropout else None,
        )
        each = example_loss(logits, batch.label, regression=regression)
        return jnp.sum(jnp.where(valid, each, 0)) / jnp.maximum(jnp.sum(valid), 1).astype(
            jnp.float32
        )

    return Objective(loss, forward, take_tokens, tuple(lengths))
