"""The decoder on its own: the cache, positions, dropout, and what does not change its function."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import models
from fedjax_lora.core.errors import InputError
from fedjax_lora.models.rope import Rope
from tests._helpers import small_decoders as decoders


def small(family="qwen3", **fields):
    """A language model with a loop over its layers, which compiles faster."""
    model = models.tiny(family=family, num_labels=None, layers=2, vocab_size=50)
    config = dataclasses.replace(model.config, **{"scan_unroll": 1} | fields)
    params = models.random_params(config, jax.random.key(0))
    return dataclasses.replace(
        model, config=config, module=models.LanguageModel(config), params=params
    )


@functools.partial(jax.jit, static_argnames="module")
def outputs(module, params, *given, **options):
    """Compiled once for the tests of one model and one shape."""
    return module.apply({"params": params}, *given, **options)


def hidden(model, batch, **options):
    return np.asarray(outputs(model.module, model.params, *batch, **options).hidden)


SLIDING = {"sliding_window": 3, "full_layers": (1,), "qk_norm": True}


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("steps", [(11,), (4, 7), (5, 1, 1, 1, 3)])
def test_cached_decoding_in_chunks_equals_one_pass(steps, left):
    model = small(**SLIDING)
    ids, mask = decoders.texts(left=left)
    want = hidden(model, (ids, mask))
    cache = models.init_cache(model.config, rows=4, slots=14)
    parts, at = [], 0
    for tokens in steps:
        piece = slice(at, at + tokens)
        out = outputs(model.module, model.params, ids[:, piece], mask[:, piece], cache=cache)
        parts.append(out.hidden)
        cache, at = out.cache, at + tokens
    np.testing.assert_allclose(np.concatenate(parts, axis=1)[mask], want[mask], atol=1e-5)
    assert int(cache.filled) == 11
    np.testing.assert_array_equal(cache.mask, np.pad(mask, ((0, 0), (0, 3))))


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_cached_decoding_with_learned_positions_equals_one_pass(family):
    model = models.tiny(family=family, num_labels=None, vocab_size=50)
    ids, mask = decoders.texts(left=True)
    want = hidden(model, (ids, mask))
    cache = models.init_cache(model.config, rows=4, slots=11)
    first = outputs(model.module, model.params, ids[:, :8], mask[:, :8], cache=cache)
    rest = outputs(model.module, model.params, ids[:, 8:], mask[:, 8:], cache=first.cache)
    got = np.concatenate([first.hidden, rest.hidden], axis=1)
    np.testing.assert_allclose(got[mask], want[mask], atol=1e-5)


def test_attention_is_causal_and_limited_to_the_sliding_window():
    ids, mask = decoders.texts()
    at = 6
    other = ids.copy()
    other[0, at] = 3 if ids[0, at] != 3 else 4
    model = small(layers=1, sliding_window=3)
    moved = np.abs(hidden(model, (ids, mask)) - hidden(model, (other, mask))).max(axis=-1)
    assert (moved[0, at : at + 3] > 1e-4).all()
    assert (moved[0, :at] == 0).all() and (moved[0, at + 3 :] == 0).all() and (moved[1:] == 0).all()


def test_padding_is_not_attended():
    model = small()
    ids, mask = decoders.texts()
    noise = np.where(mask, ids, 17).astype(np.int32)
    one, other = hidden(model, (ids, mask)), hidden(model, (noise, mask))
    np.testing.assert_array_equal(one[mask], other[mask])


def test_positions_are_relative_and_counted_without_padding():
    model = small()
    ids, mask = decoders.texts(left=True)
    count = np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32)
    want = hidden(model, (ids, mask))
    np.testing.assert_allclose(hidden(model, (ids, mask), positions=count), want, atol=1e-5)
    shifted = hidden(model, (ids, mask), positions=count + 9)
    np.testing.assert_allclose(shifted[mask], want[mask], atol=1e-4)
    stretched = hidden(model, (ids, mask), positions=2 * count)
    assert np.abs(stretched - want)[mask].max() > 1e-2


def test_dynamic_rope_scaling_of_a_text_ignores_other_rows():
    model = small(max_positions=6, rope=Rope(type="dynamic", factor=2.0))
    ids, mask = decoders.texts()
    together = hidden(model, (ids, mask))
    alone = hidden(model, (ids[2:3], mask[2:3]))
    np.testing.assert_allclose(together[2][mask[2]], alone[0][mask[2]], atol=1e-5)
    plain = hidden(small(max_positions=12), (ids, mask))
    assert np.abs(together - plain)[0].max() > 1e-3  # 11 tokens: stretched
    np.testing.assert_allclose(together[1][mask[1]], plain[1][mask[1]], atol=1e-5)  # 3 tokens: not


def test_remat_and_unroll_change_neither_value_nor_gradient():
    batch = decoders.texts()

    def gradient(**fields):
        model = small(**SLIDING, **fields)

        @jax.jit
        @jax.value_and_grad
        def loss(params):
            out = model.module.apply({"params": params}, *batch)
            return jnp.mean(models.logits(params, out.hidden) ** 2)

        return loss(model.params)

    want = gradient()
    got = gradient(scan_unroll=99, remat=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, want)


def test_dropout_needs_a_key_and_depends_on_it():
    batch = decoders.texts()

    def running(rate):
        model = small(attention_dropout=rate)

        @jax.jit
        def run(key):
            out = model.module.apply(
                {"params": model.params}, *batch, deterministic=False, rngs={"dropout": key}
            )
            return out.hidden

        return lambda seed: np.asarray(run(jax.random.key(seed)))

    run = running(0.5)
    np.testing.assert_array_equal(run(1), run(1))
    assert np.abs(run(1) - run(2)).max() > 1e-3
    # When nothing is dropped, the spelled-out attention is the fused one.
    mask = batch.attention_mask
    want = hidden(small(), batch)
    np.testing.assert_allclose(running(1e-9)(0)[mask], want[mask], atol=1e-4)


def test_mean_pooling_is_the_mean_of_real_tokens(key):
    model = models.tiny(family="llama", num_labels=3, pooling="mean", vocab_size=50)
    ids, mask = decoders.texts()
    logits = model.module.apply({"params": model.params}, ids, mask, np.zeros_like(ids))
    states = models.Decoder(model.config).apply({"params": model.params["decoder"]}, ids, mask)
    means = [h[m].mean(axis=0) for h, m in zip(np.asarray(states.hidden), mask, strict=True)]
    want = np.stack(means) @ np.asarray(model.params["head"]["score"]["kernel"])
    np.testing.assert_allclose(logits, want, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_chunked_logits_equal_unchunked_ones(tied):
    model = small(tied=tied)
    assert ("vocabulary" in model.params) != tied
    states = hidden(model, decoders.texts())
    whole = models.logits(model.params, jnp.asarray(states))
    table = model.params["decoder"]["embed_tokens"] if tied else model.params["vocabulary"]
    np.testing.assert_allclose(whole, states @ np.asarray(table["embedding"]).T, atol=1e-5)
    part = models.logits(model.params, jnp.asarray(states[2, 3:5]))
    np.testing.assert_allclose(part, whole[2, 3:5], atol=1e-5)
    half = models.logits(model.params, jnp.asarray(states, jnp.bfloat16))
    assert half.dtype == jnp.float32


def test_too_long_texts_and_invalid_masks_are_refused():
    model = small(max_positions=8, rope=Rope(type="linear", factor=1.25))
    assert model.config.max_tokens == 10
    ids, mask = decoders.texts()
    apply = lambda *x: model.module.apply({"params": model.params}, *x)  # noqa: E731
    with pytest.raises(InputError, match="have 11 tokens but this qwen3 model takes at most 10"):
        apply(ids, mask)
    # Under a run-time type checker the annotation already refuses it.
    with pytest.raises((InputError, TypeError), match=r"must be boolean, not int|Bool"):
        apply(ids[:, :5], mask[:, :5].astype(np.int32))


def test_every_out_of_range_config_field_is_named():
    wrong = {
        "heads": 0,
        "kv_heads": 0,
        "dtype": "float16",
        "pooling": "max",
        "scan_unroll": 0,
        "sliding_window": 0,
        "num_labels": -1,
        "attention_dropout": 1.0,
        "family": "lama",
        "rope": Rope(type="ntk", factor=0.0),
    }
    with pytest.raises(InputError) as error:
        dataclasses.replace(small().config, **wrong)
    for name in wrong:
        assert name in str(error.value)
    assert "did you mean 'llama'" in str(error.value)
    with pytest.raises(InputError, match="the high one above the low one"):
        small(rope=Rope(type="llama3", low_frequency=4.0, high_frequency=4.0))
