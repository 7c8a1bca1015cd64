"""The loss of completions: what counts, against NumPy, and what is never in memory."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lora import federated
from fedjax_lora.core.types import ClientParams
from fedjax_lora.federated.causal_lm import token_scores
from fedjax_lora.federated.objectives import TokenBatch

KEY = jax.random.key(0)
WORDS, WIDTH = 11, 6


class Out(NamedTuple):
    hidden: Any


class Lookup(nn.Module):
    """A token's state is its row of a table."""

    @nn.compact
    def __call__(self, ids: Any, mask: Any, *, deterministic: bool) -> Out:
        return Out(nn.Embed(WORDS, WIDTH, name="words")(ids))


TABLE, VOCABULARY = (
    np.random.default_rng(n).normal(size=(WORDS, WIDTH)).astype(np.float32) for n in range(2)
)
BASE = {"words": {"embedding": jnp.asarray(TABLE)}, "vocabulary": jnp.asarray(VOCABULARY)}


def logits(params: Any, hidden: Any) -> Any:
    return hidden @ params["vocabulary"].T


def objective(**options: Any) -> Any:
    return federated.causal_lm(Lookup(), (8,), logits=logits, **options)


def batch_of(rows: list[tuple[int, int]], seed: int = 0, width: int = 8) -> TokenBatch:
    """Random texts with so many prompt and completion tokens."""
    rng = np.random.default_rng(seed)
    prompt, answer = (np.array(x)[:, None] for x in zip(*rows, strict=True))
    place = np.arange(width)[None]
    mask = place < prompt + answer
    types = (mask & (place >= prompt)).astype(np.int32)
    ids = rng.integers(0, WORDS, mask.shape, dtype=np.int32)
    return TokenBatch(*map(jnp.asarray, (ids, mask, types, np.zeros(len(rows), np.int32))))


def token_losses(batch: TokenBatch) -> list[list[float]]:
    """Of each row, the cross-entropy of each completion token, in float64 and one by one."""
    ids, types = np.asarray(batch.ids), np.asarray(batch.types)
    found = []
    for row in range(len(ids)):
        own = []
        for t in range(1, ids.shape[1]):
            if types[row, t]:
                z = VOCABULARY.astype(np.float64) @ TABLE[ids[row, t - 1]]
                own.append(float(np.log(np.exp(z).sum()) - z[ids[row, t]]))
        found.append(own)
    return found


def loss_of(batch: TokenBatch, valid: list[bool], **options: Any) -> float:
    made = objective(**options)
    loss = jax.jit(lambda base, batch: made.loss(
        base, ClientParams({}, {}), {}, None, batch, jnp.array(valid), KEY
    ))  # fmt: skip
    return float(loss(BASE, batch))


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 4), st.booleans()), min_size=3, max_size=3
    ),
    st.sampled_from([1, 40, 2**23]),
)
def test_every_completion_token_of_a_valid_row_counts_once(rows, chunk_numbers):
    """Long and short completions, prompts, padding and rows that are not valid, in any mix."""
    batch = batch_of([(prompt, answer) for prompt, answer, _ in rows])
    valid = [v for *_, v in rows]
    tokens = [x for own, v in zip(token_losses(batch), valid, strict=True) if v for x in own]
    want = float(np.mean(tokens)) if tokens else 0.0
    assert loss_of(batch, valid, chunk_numbers=chunk_numbers) == pytest.approx(want, rel=2e-5)


def test_outputs_are_sums_of_each_row():
    batch = batch_of([(2, 5), (1, 1), (7, 1), (3, 0)])
    out = np.asarray(objective().outputs(BASE, ClientParams({}, {}), {}, batch))
    want = token_losses(batch)
    np.testing.assert_allclose(out[:, 0], [sum(own) for own in want], rtol=1e-5)
    assert out[:, 2].tolist() == [5, 1, 1, 0]
    assert ((out[:, 1] >= 0) & (out[:, 1] <= out[:, 2])).all()
    score = objective().score(jnp.asarray(out), batch)
    np.testing.assert_array_equal(score.loss, out[:, 0])
    np.testing.assert_array_equal(score.count, out[:, 2])


def test_hits_count_tokens_of_highest_probability():
    batch = batch_of([(1, 7)])
    likeliest = (TABLE @ VOCABULARY.T).argmax(axis=1)
    ids = np.zeros((1, 8), np.int32)
    for t in range(1, 8):  # follow the model, but for one token
        ids[0, t] = likeliest[ids[0, t - 1]] if t != 3 else (likeliest[ids[0, 2]] + 1) % WORDS
    out = objective().outputs(BASE, ClientParams({}, {}), {}, batch._replace(ids=jnp.asarray(ids)))
    assert out[0, 1:].tolist() == [6, 7]


def test_chunked_loss_has_the_gradients_of_the_full_loss():
    rng = np.random.default_rng(3)
    hidden = jnp.asarray(rng.normal(size=(3, 7, WIDTH)), jnp.float32)
    target = jnp.asarray(rng.integers(0, WORDS, (3, 7)), jnp.int32)
    weight = jnp.asarray(rng.normal(size=(3, 7)), jnp.float32)

    def total(hidden: Any, chunk_numbers: int) -> Any:
        loss, _ = token_scores(
            lambda x: x @ BASE["vocabulary"].T, hidden, target, chunk_numbers=chunk_numbers
        )
        return jnp.sum(weight * loss)

    want = jax.jit(jax.grad(total), static_argnums=1)(hidden, 2**23)
    for size in (1, 4 * WORDS, 5 * WORDS, 20 * WORDS):  # 21, 6, 5 and 2 parts, most with a rest
        got = jax.jit(jax.grad(total), static_argnums=1)(hidden, size)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_full_logits_are_never_materialised():
    """Neither forward nor backward, for two clients: no array is as large as all logits of one."""
    rows, width, vocabulary = 4, 64, 4096
    hidden = jax.ShapeDtypeStruct((2, rows, width, WIDTH), jnp.float32)
    target = jax.ShapeDtypeStruct((2, rows, width), jnp.int32)
    table = jax.ShapeDtypeStruct((vocabulary, WIDTH), jnp.float32)

    def memory(chunk_numbers: int) -> int:
        def loss(hidden: Any, target: Any, table: Any) -> Any:
            each, _ = token_scores(
                lambda x: x @ table.T, hidden, target, chunk_numbers=chunk_numbers
            )
            return jnp.mean(each)

        grad = jax.vmap(jax.grad(loss), in_axes=(0, 0, None))
        return (
            jax.jit(grad)
            .lower(hidden, target, table)
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
        )

    logits_of_one = 4 * rows * width * vocabulary
    assert memory(2**30) > 2 * logits_of_one
    assert memory(16 * vocabulary) < logits_of_one / 2
