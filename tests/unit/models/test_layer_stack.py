"""Layers in a loop, without one, and with one array per layer are the same function."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import lora, models
from fedjax_lora.models import layer_stack
from tests._helpers import small_decoders as decoders

IDS = np.arange(3, 17, dtype=np.int32).reshape(2, 7)
MASK = np.arange(7)[None] < np.array([[7], [4]])


def logits(model, params):
    return jax.jit(model.module.apply)({"params": params}, IDS, MASK)


def apart(model):
    return layer_stack.split_layers(
        model.params, lambda path: models.is_stacked(model.config, path)
    )


@pytest.mark.parametrize("family", ["bert", "albert", "mistral"])
def test_one_array_per_layer_gives_the_same_outputs(family):
    model = models.tiny(family=family, layers=3)
    np.testing.assert_array_equal(logits(model, apart(model)), logits(model, model.params))


def test_quantized_kernels_are_stored_per_layer(tmp_path, key):
    """A model of one layer has no loop over layers and is stored per layer as well."""
    pytest.importorskip("qwix")
    folder, _ = decoders.saved(tmp_path, "llama", "SequenceClassification", num_hidden_layers=1)
    model = models.load(str(folder), num_labels=3, storage="int8", key=key)
    base = models.frozen_base(model)
    (kernel,) = base["decoder"]["layers"]["self_attn"]["q_proj"]["kernel"]
    assert kernel.qvalue.shape == (24, 24)
    got = logits(model, base | {"head": model.params["head"]})
    np.testing.assert_array_equal(got, logits(model, model.params))


def test_one_array_per_layer_shares_memory_on_a_cpu():
    model = models.tiny()
    whole = model.params["encoder"]["layers"]["attention"]["query"]["kernel"]
    parts = apart(model)["encoder"]["layers"]["attention"]["query"]["kernel"]
    assert [np.shares_memory(part, np.asarray(whole)) for part in parts] == [True, True]


def test_frozen_base_has_the_layout_that_its_module_expects():
    model = models.tiny()
    looped = dataclasses.replace(model.config, scan_unroll=1)
    kernel = lambda base: base["encoder"]["layers"]["attention"]["query"]["kernel"]  # noqa: E731
    assert isinstance(kernel(models.frozen_base(model)), tuple)
    assert kernel(models.frozen_base(dataclasses.replace(model, config=looped))).shape == (
        2,
        32,
        32,
    )
    assert "head" not in models.frozen_base(model)


def test_changed_kernels_take_the_layout_of_the_base():
    model = models.tiny()
    path = "encoder/layers/attention/query"
    kernel = 2 * model.params["encoder"]["layers"]["attention"]["query"]["kernel"]
    changed = lora.with_kernels(models.frozen_base(model), {path: kernel})
    parts = changed["encoder"]["layers"]["attention"]["query"]["kernel"]
    assert isinstance(parts, tuple)
    np.testing.assert_array_equal(jnp.stack(parts), kernel)


class Drop(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=False)(x)


class Masks(nn.Module):
    unroll: int

    @nn.compact
    def __call__(self, x):
        def step(layer, carry, last):
            masks, at = carry
            return jax.lax.dynamic_update_index_in_dim(masks, layer(x), at, 0), at + 1

        start = (jnp.zeros((3, *x.shape)), jnp.zeros((), jnp.int32))
        return layer_stack.run(Drop(name="layers"), step, start, count=3, scan_unroll=self.unroll)[
            0
        ]


@pytest.mark.parametrize("unroll", [1, 3])
def test_every_layer_has_its_own_dropout(unroll):
    masks = Masks(unroll).apply({}, jnp.ones((8, 8)), rngs={"dropout": jax.random.key(0)})
    assert len({np.asarray(mask).tobytes() for mask in masks}) == 3
