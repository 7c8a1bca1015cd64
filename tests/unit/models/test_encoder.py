"""Encoder modules beyond parity: options that keep the function, and dropout."""

import collections
import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import models
from fedjax_lora.core.errors import InputError

IDS = np.arange(3, 17, dtype=np.int32).reshape(2, 7)
MASK = np.arange(7)[None] < np.array([[7], [4]])


@functools.partial(jax.jit, static_argnames=("module", "deterministic"))
def forward(module, params, ids, mask, key, deterministic):
    rngs = None if deterministic else {"dropout": key}
    return module.apply({"params": params}, ids, mask, deterministic=deterministic, rngs=rngs)


def logits(model, params=None, ids=IDS, mask=MASK, key=None):
    """With dropout if there is a key; compiled once for each module and shape."""
    params = model.params if params is None else params
    return forward(model.module, params, ids, mask, key, key is None)


def tiny(**options):
    """`models.tiny` with a layer loop, which compiles faster."""
    return with_config(models.tiny(**options), scan_unroll=1)


def with_config(model, **changes):
    config = dataclasses.replace(model.config, **changes)
    return dataclasses.replace(model, config=config, module=models.SequenceClassifier(config))


@pytest.mark.parametrize("family", ["bert", pytest.param("albert", marks=pytest.mark.slow)])
def test_remat_and_unroll_change_neither_value_nor_gradient(family):
    model = tiny(family=family)

    def gradient(model):
        def loss(layers):
            encoder = model.params["encoder"] | {"layers": layers}
            return jnp.sum(logits(model, model.params | {"encoder": encoder}) ** 2)

        return jax.jit(jax.value_and_grad(loss))(model.params["encoder"]["layers"])

    unrolled = gradient(with_config(model, remat=family == "albert", scan_unroll=99))
    looped = gradient(with_config(model, remat=family == "bert", scan_unroll=1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), unrolled, looped)


@pytest.mark.parametrize("family", ["bert", pytest.param("albert", marks=pytest.mark.slow)])
@pytest.mark.parametrize("pooling", ["family", pytest.param("mean", marks=pytest.mark.slow)])
def test_omitting_positions_not_pooled_keeps_the_result(family, pooling):
    model = with_config(models.tiny(family=family, pooling=pooling), scan_unroll=99)

    @functools.partial(jax.jit, static_argnums=1)
    def pooled(layers, pooled_only):
        encoder = models.Encoder(model.config)
        variables = {"params": model.params["encoder"] | {"layers": layers}}
        return encoder.apply(variables, IDS, MASK, pooled_only=pooled_only).pooled

    layers = model.params["encoder"]["layers"]
    value = lambda short: jax.value_and_grad(lambda x: jnp.sum(pooled(x, short) ** 2))(layers)  # noqa: E731
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), value(True), value(False)
    )


def test_the_last_layer_computes_only_what_the_first_token_needs():
    model = with_config(models.tiny(), scan_unroll=99)
    config, (n, t) = model.config, IDS.shape
    run = lambda **o: jax.jit(functools.partial(models.Encoder(config).apply, **o))  # noqa: E731
    variables = {"params": model.params["encoder"]}
    flops = lambda **o: run(**o).lower(variables, IDS, MASK).cost_analysis()["flops"]  # noqa: E731
    saved = flops(pooled_only=False) - flops(pooled_only=True)
    # Query and output projection, the two feed-forward products, and both products of attention.
    each = 2 * config.hidden * (2 * config.hidden + 2 * config.intermediate + 2 * t)
    products = n * (t - 1) * each
    assert products < saved < 1.5 * products, "what is not a product is little"


def test_explicit_attention_equals_fused_attention():
    model = with_config(tiny(), attention_dropout=1e-9)
    spelled = logits(model, key=jax.random.key(0))
    np.testing.assert_allclose(spelled, logits(model), atol=1e-5)


def test_dropout_depends_on_the_key():
    model = tiny(dropout=0.5)
    one, two = logits(model, key=jax.random.key(1)), logits(model, key=jax.random.key(2))
    assert np.array_equal(one, logits(model, key=jax.random.key(1)))
    assert not np.allclose(one, two)


@pytest.mark.parametrize(
    ("family", "attention", "feed_forward", "head"),
    [("bert", 2, 1, 1), ("roberta", 2, 1, 2), ("distilbert", 1, 1, 1), ("albert", 2, 0, 1)],
)
def test_dropout_is_applied_where_transformers_applies_it(family, attention, feed_forward, head):
    model = tiny(family=family, dropout=0.5)
    found = set()

    def note(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            found.add(context.module.path)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        trace = functools.partial(model.module.apply, deterministic=False)
        key = {"dropout": jax.random.key(0)}
        jax.eval_shape(lambda: trace({"params": model.params}, IDS, MASK, rngs=key))
    counts = collections.Counter("/".join(path[:-1]) for path in found)
    layers = "encoder/layers"
    want = {
        "encoder/embeddings": 1,
        f"{layers}/attention": attention,
        f"{layers}/feed_forward": feed_forward,
        "head": head,
    }
    assert counts == collections.Counter(want)


def test_dropout_at_rate_zero_needs_no_key():
    model = tiny()
    call = jax.jit(lambda p: model.module.apply({"params": p}, IDS, MASK, deterministic=False))
    np.testing.assert_array_equal(call(model.params), logits(model))


def test_padding_does_not_change_outputs():
    model = tiny()
    padded = np.where(MASK, IDS, 99)
    np.testing.assert_allclose(logits(model, ids=padded), logits(model), atol=1e-6)
    np.testing.assert_allclose(
        logits(model, ids=IDS[1:, :4], mask=MASK[1:, :4]), logits(model)[1:], atol=1e-5
    )


@pytest.mark.parametrize("pooling", ["family", "mean"])
def test_text_without_tokens_has_finite_outputs(pooling):
    model = tiny(pooling=pooling)
    assert np.isfinite(logits(model, mask=np.zeros_like(MASK))).all()


def test_extra_collections_are_scanned_and_found_by_path():
    model = tiny(layers=3)
    seen = {}

    def double(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if context.method_name != "__call__" or not context.module.has_variable("extra", "gain"):
            return y
        gain = context.module.get_variable("extra", "gain")
        seen["/".join(context.module.path)] = gain.shape
        return y * gain[None, None]

    gain = {"encoder": {"layers": {"attention": {"query": {"gain": jnp.ones((3, 1))}}}}}
    with nn.intercept_methods(double):
        run = jax.jit(lambda variables: model.module.apply(variables, IDS, MASK))
        out = run({"params": model.params, "extra": gain})
    assert seen == {"encoder/layers/attention/query": (1,)}
    np.testing.assert_allclose(out, logits(model), atol=1e-6)


def test_too_long_texts_and_wrong_masks_are_refused():
    for family in ("bert", "roberta"):
        model = tiny(family=family)
        assert model.config.max_tokens == 64
        ids = np.ones((1, 65), np.int32)
        with pytest.raises(InputError, match=r"65 tokens .* at most 64; truncate"):
            logits(model, ids=ids, mask=ids > 0)
    # Under a run-time type checker the annotation already refuses it.
    with pytest.raises((InputError, TypeError), match=r"must be boolean, not int|Bool"):
        logits(tiny(), mask=MASK.astype(np.int32))


def test_tiny_model_is_reproducible_and_follows_its_options():
    one, two = models.tiny(key=jax.random.key(0)), models.tiny()
    assert one.fingerprint == two.fingerprint != models.tiny(key=jax.random.key(1)).fingerprint
    assert one.tokenizer is None and one.folder is None
    assert "encoder/layers/attention/query/kernel" in one.new_params
    assert one.params["encoder"]["layers"]["attention"]["query"]["kernel"].shape == (2, 32, 32)
    with pytest.raises(InputError, match="Unknown model family 'brt'; did you mean 'bert'"):
        models.tiny(family="brt")
