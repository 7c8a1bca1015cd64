"""Objectives: the loss that clients minimise, over one batch of the data on the device."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from fedjax_lora import lora
from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import Adapter, Array, ClientParams, Gain, Key, Params, PyTree


class Score(NamedTuple):
    """Sums over the predictions of each example, ``float32[n]``."""

    loss: Array  # over what is predicted
    hits: Array  # predictions whose highest logit is right; 0 for regression
    count: Array  # predictions: 1, or the tokens of a completion


class AdaptedForward(Protocol):
    """A forward pass with an adapter, for example `fedjax_lora.lora.apply` of a Linen module."""

    def __call__(
        self, params: Params, adapter: Adapter, gain: Gain, /, *inputs: PyTree, **options: Any
    ) -> PyTree:
        """The outputs of the adapted model for these inputs."""
        ...


LossFn = Callable[[Callable[..., PyTree], PyTree, Key], Array]
"""``(apply, batch, key) -> float32[n]``, see `fedjax_lora.federated.local_training`."""


class BatchLoss(NamedTuple):
    """The part of an `Objective` that local training needs: a loss, and how a batch is taken."""

    loss: Callable[..., Array]
    take: Callable[[PyTree, Array, int], PyTree]
    lengths: tuple[int, ...] = (0,)
    unpad: Callable[[PyTree, Array, int], PyTree] | None = None


class Objective(NamedTuple):
    """A task: its loss for local training, its outputs and score for evaluation.

    Attributes:
      loss: ``(base, trained, gain, fixed, batch, valid: bool[n], key) -> float32[]``, the mean over
        what the valid examples predict. ``fixed`` is None or the gains of components that dropout
        must spare.
      outputs: ``(base, trained, gain, batch) -> [n, ...]``, the model's predictions.
      take: ``(data, index: int32[n], length: int) -> batch``.
      score: ``(outputs, batch) -> Score``.
      lengths: static lengths a batch is cut to, ascending; ``take`` receives one of them.
      unpad: ``(batch, valid: bool[n], tokens: int) -> batch``, one that is computed without its
        padding; its valid texts have at most so many tokens. None if padding is computed too.
    """

    loss: Callable[..., Array]
    outputs: Callable[..., Array]
    take: Callable[[PyTree, Array, int], PyTree]
    score: Callable[[Array, PyTree], Score]
    lengths: tuple[int, ...] = (0,)
    unpad: Callable[[PyTree, Array, int], PyTree] | None = None


TrainingObjective = Objective | BatchLoss


def mean_of_examples(
    module: nn.Module | AdaptedForward, loss_fn: LossFn, *, lora_dropout: float = 0.0
) -> BatchLoss:
    """The mean of a user's loss over the valid examples of a batch.

    The data are any pytree with leaves ``[E, ...]``, a batch is the same with leaves ``[n, ...]``.
    Parameters that are trained in full replace those of the base at the same paths.

    Args:
      module: see `fedjax_lora.federated.local_training`, as the following two.
      loss_fn: the loss of each example.
      lora_dropout: rate for the inputs of the trained components.

    Raises:
      InputError: when traced, if ``loss_fn`` does not return one loss per example.
    """
    forward = functools.partial(lora.apply, module) if isinstance(module, nn.Module) else module

    def loss(
        base: Params,
        trained: ClientParams,
        gain: Gain,
        fixed: Gain | None,
        batch: Any,
        valid: Array,
        key: Key,
    ) -> Array:
        params = with_head(base, trained.head)
        options = {"fixed": fixed, "dropout": lora_dropout} if lora_dropout else {}
        each = loss_fn(
            functools.partial(forward, params, trained.adapter, gain, **options), batch, key
        )
        if jnp.shape(each) != valid.shape:
            raise InputError(
                f"loss_fn returned shape {jnp.shape(each)} for a batch of {valid.shape[0]} "
                "examples; return one loss per example, [n], without taking their mean."
            )
        total = jnp.sum(jnp.where(valid, each, 0))
        return total / jnp.maximum(jnp.sum(valid), 1).astype(total.dtype)

    return BatchLoss(loss, _rows)


def with_head(params: Params, head: Params) -> Params:
    """The parameters with fully trained ones replaced; arrays are shared, not copied."""
    return trees.replace(params, trees.flat(head)) if head else params


def _rows(data: Any, index: Array, length: int) -> Any:
    """Rows of any pytree with a leading example axis; ``length`` has no meaning here."""
    return jax.tree.map(lambda x: x[index], data)


class TokenBatch(NamedTuple):
    """A batch of encoded texts."""

    ids: Array  # int32[n, t]
    mask: Array  # bool[n, t], true at real tokens
    types: Array  # int32[n, t]
    label: Array  # int32[n] or float32[n]
    # int32[rows], of a batch that is computed without its padding: where in the flattened batch its
    # tokens are; n * t for rows to spare
    at: Array | None = None


def take_tokens(data: PyTree, index: Array, length: int) -> TokenBatch:
    """Rows of a `fedjax_lora.data.Tokens`, cut to ``length`` tokens if they are wider."""
    length = min(length, data.ids.shape[1])
    position = jnp.arange(length, dtype=data.length.dtype)
    return TokenBatch(
        ids=data.ids[index, :length],
        mask=position[None] < data.length[index][:, None],
        types=data.types[index, :length],
        label=data.label[index],
    )


def unpad_tokens(batch: TokenBatch, valid: Array, tokens: int) -> TokenBatch:
    """The batch with the places of the tokens of its valid texts; they are at most ``tokens``."""
    mask = batch.mask & valid[:, None]
    at = jnp.nonzero(mask.reshape(-1), size=tokens, fill_value=mask.size)[0]
    return batch._replace(mask=mask, at=at.astype(jnp.int32))


def class_score(output: Array, label: Array) -> Score:
    """Cross-entropy of logits ``[n, classes]``."""
    loss = optax.softmax_cross_entropy_with_integer_labels(output, label)
    hits = (jnp.argmax(output, axis=1) == label.astype(jnp.int32)).astype(jnp.float32)
    return Score(loss, hits, jnp.ones_like(loss))


def value_score(output: Array, label: Array) -> Score:
    """Squared error of outputs ``[n, 1]``."""
    loss = jnp.square(output[:, 0] - label)
    return Score(loss, jnp.zeros_like(loss), jnp.ones_like(loss))


def mean_loss(score: Score, valid: Array) -> Array:
    """The mean over all predictions of the valid examples, ``float32[]``; 0 without any."""
    total, count = (jnp.sum(jnp.where(valid, x, 0)) for x in (score.loss, score.count))
    return total / jnp.maximum(count, 1)


def make_objective(
    forward: Callable[..., Array],
    score: Callable[[Array, PyTree], Score],
    lengths: Sequence[int],
    *,
    dropout: bool,
    lora_dropout: float,
    unpadded: bool = False,
) -> Objective:
    """An objective on `TokenBatch`es from its two halves.

    Args:
      forward: ``(base, trained, gain, batch, *, deterministic, **options) -> outputs``; the options
        are those of `fedjax_lora.lora.apply`.
      score: ``(outputs, batch) -> Score``.
      lengths: length buckets.
      dropout: use the model's dropout rates in training.
      lora_dropout: rate for the inputs of the trained components.
      unpadded: ``forward`` understands a batch's ``at``.
    """

    def loss(
        base: Params,
        trained: ClientParams,
        gain: Gain,
        fixed: Gain | None,
        batch: TokenBatch,
        valid: Array,
        key: Key,
    ) -> Array:
        output = forward(
            base,
            trained,
            gain,
            batch,
            fixed=fixed,
            dropout=lora_dropout,
            deterministic=not dropout,
            rngs={"dropout": key} if dropout or lora_dropout else None,
        )
        return mean_loss(score(output, batch), valid)

    unpad = unpad_tokens if unpadded else None
    return Objective(loss, forward, take_tokens, score, tuple(lengths), unpad)


def text_classification(
    module: nn.Module,
    lengths: Sequence[int],
    *,
    regression: bool = False,
    dropout: bool = False,
    lora_dropout: float = 0.0,
    unpadded: bool = False,
) -> Objective:
    """Cross-entropy (squared error for regression) of an encoder with a task head.

    Args:
      module: called as ``module(ids, mask, types, deterministic=...)``, returns ``[n, classes]``;
        its parameters are the base's with the trained ones under ``head``.
      lengths: length buckets.
      regression: one output, float labels.
      dropout: use the model's dropout rates in training.
      lora_dropout: rate for the inputs of the trained components.
      unpadded: the module also takes ``at``, that of a `TokenBatch`, and computes nothing else.
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
        inputs = (batch.ids, batch.mask, batch.types)
        options["deterministic"] = deterministic
        if batch.at is not None:
            options["at"] = batch.at
        logits = lora.apply(module, params, trained.adapter, gain, *inputs, **options)
        return logits.astype(jnp.float32)

    one = value_score if regression else class_score
    return make_objective(
        forward,
        lambda output, batch: one(output, batch.label),
        lengths,
        dropout=dropout,
        lora_dropout=lora_dropout,
        unpadded=unpadded,
    )
