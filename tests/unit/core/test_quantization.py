"""Bases in bfloat16, int8 and nf4: values of the codes, memory, and the operations on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import federated, lora, methods, models
from fedjax_lora.core import quantization, trees
from fedjax_lora.core.errors import InputError
from tests._helpers import small_decoders as decoders

# Table 5 of QLoRA (arXiv 2305.14314, appendix E).
NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]
)  # fmt: skip


def kernel(inputs=128, outputs=20):
    value = np.random.default_rng(0).normal(size=(inputs, outputs)).astype(np.float32)
    value[:, 3] *= 100  # one loud output must not spoil the others
    value[:, 5] = 0
    return value


def test_int8_rounds_relative_to_the_largest_weight_of_each_output():
    value = kernel().astype(np.float64)
    scale = np.abs(value).max(axis=0) / 127.5
    codes = quantization.encode(jnp.asarray(kernel()), "int8")
    assert codes.qvalue.dtype == jnp.int8 and codes.shape == value.shape
    # Ties and the last bit of float32 aside, no code is nearer.
    error = np.abs(np.asarray(quantization.dequantize(codes)) - value)
    assert (error <= (0.5 + 1e-4) * scale).all()
    assert np.abs(np.asarray(codes.qvalue[:, 3], np.int32)).max() in (127, 128)


@pytest.mark.parametrize("inputs", [128, 20])
def test_nf4_takes_the_nearest_of_sixteen_quantiles_in_each_block(inputs):
    value = kernel(inputs).astype(np.float64)
    block = 64 if inputs == 128 else 4
    blocks = value.reshape(inputs // block, block, -1)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    relative = blocks / np.where(largest > 0, largest, 1)
    nearest = NF4[np.abs(relative[..., None] - NF4).argmin(-1)] * largest
    codes = quantization.encode(jnp.asarray(kernel(inputs)), "nf4")
    np.testing.assert_allclose(
        quantization.dequantize(codes), nearest.reshape(value.shape), atol=1e-4
    )
    assert trees.size_bytes(codes.qvalue) == value.size / 2


def checkpoint(tmp_path, key, **options):
    folder, _ = decoders.saved(
        tmp_path, "qwen2", num_hidden_layers=2, hidden_size=64, intermediate_size=128
    )
    return models.load(str(folder), num_labels=None, scan_unroll=1, key=key, **options)


@pytest.mark.parametrize(("kind", "share"), [("bfloat16", 0.5), ("int8", 0.25), ("nf4", 0.125)])
def test_quantized_bases_use_less_memory_and_have_similar_outputs(kind, share, tmp_path, key):
    exact, small = (checkpoint(tmp_path, key, storage=kept) for kept in ("float32", kind))
    assert small.fingerprint != exact.fingerprint
    jax.tree.map(
        lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype) or pytest.fail(f"{x} {y}"),
        small.params,
        models.abstract_params(small.config, kind),
    )
    path = "decoder/layers/mlp/up_proj/kernel"
    one, other = (trees.flat(model.params)[path] for model in (exact, small))
    scales = 0 if kind == "bfloat16" else other.scale.size * 4
    assert trees.size_bytes(other) == trees.size_bytes(one) * share + scales
    flat = trees.flat(small.params)
    assert flat["decoder/norm/scale"].dtype == jnp.float32
    assert flat["decoder/embed_tokens/embedding"].dtype == jnp.bfloat16
    batch = decoders.texts()

    @jax.jit
    def run(params):
        return models.logits(params, small.module.apply({"params": params}, *batch).hidden)

    logits = [np.asarray(run(m.params))[batch.attention_mask] for m in (exact, small)]
    error = np.sqrt(np.mean((logits[1] - logits[0]) ** 2)) / logits[0].std()
    assert 1e-4 < error < {"bfloat16": 0.03, "int8": 0.1, "nf4": 0.7}[kind]


@pytest.mark.parametrize(
    "kind", ["int8", *(pytest.param(x, marks=pytest.mark.slow) for x in ("bfloat16", "nf4"))]
)
def test_quantized_base_is_shared_by_clients_under_vmap(kind, tmp_path, key):
    """Values and gradients are those of the decoded base, client by client."""
    small = checkpoint(tmp_path, key, storage=kind)
    decoded = trees.nested(
        {p: quantization.dequantize(x) for p, x in trees.flat(small.params).items()}
    )
    spec = lora.make_spec(small.params, targets="o_proj|up_proj", rank=2)
    many = decoders.random_adapters(spec, key, 3)
    gain = lora.uniform_gain(spec)
    batch = decoders.texts()

    @jax.value_and_grad
    def loss(adapter, params):
        return jnp.sum(lora.apply(small.module, params, adapter, gain, *batch).hidden ** 2)

    together = jax.jit(jax.vmap(loss, in_axes=(0, None)))(many, small.params)
    for client in range(3):
        one = jax.jit(loss)(jax.tree.map(lambda x: x[client], many), decoded)  # noqa: B023
        jax.tree.map(
            lambda got, want: np.testing.assert_allclose(got[client], want, rtol=2e-3, atol=2e-3),  # noqa: B023
            together,
            one,
        )


def test_methods_that_change_the_base_keep_full_kernels(tmp_path, key):
    small = checkpoint(tmp_path, key, storage="int8")
    spec = lora.make_spec(small.params, rank=2)
    kernels = trees.flat(small.params)
    at = {target.path: kernels[f"{target.path}/kernel"] for target in spec.targets}

    def state(name):
        method = methods.make(name, spec)
        adapter = lora.init(spec, key)
        return federated.init_state(method, adapter, at, {}, clients=2, heads="average").server

    assert state("fed_plora").kernels == {}
    kept = state("flora").kernels
    for path, value in kept.items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, quantization.dequantize(at[path]), rtol=1e-6)
    full = lora.with_kernels(small.params, kept)
    batch = decoders.texts()
    one, other = (
        small.module.apply({"params": params}, *batch).hidden for params in (small.params, full)
    )
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_merging_into_a_quantized_kernel_gives_a_full_array(tmp_path, key):
    small = checkpoint(tmp_path, key, storage="nf4")
    spec = lora.make_spec(small.params, rank=2)
    adapter, gain = decoders.random_adapters(spec, key), lora.uniform_gain(spec)
    merged = lora.merge(small.params, adapter, gain)
    batch = decoders.texts()
    got = small.module.apply({"params": merged}, *batch).hidden
    want = lora.apply(small.module, small.params, adapter, gain, *batch).hidden
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_unavailable_storage_type_is_refused(monkeypatch):
    with pytest.raises(InputError, match="storage is 'int4' but must be one of float32, bfloat16"):
        quantization.check("int4")
    monkeypatch.setattr(quantization, "is_installed", lambda module: False)
    quantization.check("bfloat16")
    with pytest.raises(InputError, match=r"needs the package qwix; install fedjax-lora\[quant"):
        quantization.check("nf4")
