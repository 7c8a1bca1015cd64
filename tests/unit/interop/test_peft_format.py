"""Exported PEFT factors have the same product: alpha is applied exactly once."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from fedjax_lora import InputError, lora
from fedjax_lora.interop import matrices, peft_writer
from tests._helpers import small_model
from tests._helpers.small_model import random_adapter


@pytest.mark.parametrize("rule", list(lora.SCALES))
def test_exported_factors_include_the_scale_once(rule: str, tmp_path: pathlib.Path):
    """``lora_alpha / r * B A`` is our product transposed, for every adapted layer and no other."""
    spec = small_model.spec(scale=rule, layers=[0, 2])
    adapter, gain = random_adapter(spec), lora.uniform_gain(spec)
    factors = matrices.split(spec.targets, adapter, gain, name_of)
    peft_writer.save(tmp_path, factors, base_model="base", task_type="SEQ_CLS", saved_modules={})
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    deltas = lora.deltas(adapter, gain)
    names = ["head", *(f"layers.{n}.{k}" for n in ("query", "value") for k in (0, 2))]
    assert sorted(config["target_modules"]) == sorted(names)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert len(tensors) == 2 * len(names)
    for name in names:
        A = tensors[f"base_model.model.{name}.lora_A.weight"].astype(np.float64)
        B = tensors[f"base_model.model.{name}.lora_B.weight"].astype(np.float64)
        assert A.shape[0] == B.shape[1] == config["r"]
        path, _, layer = name.rpartition(".") if name != "head" else (name, "", "")
        want = deltas[path.replace(".", "/")]
        want = want[int(layer)] if layer else want
        np.testing.assert_allclose(config["lora_alpha"] / config["r"] * B @ A, want.T, atol=1e-5)


def name_of(path: str, layer: int | None) -> str:
    return path.replace("/", ".") + ("" if layer is None else f".{layer}")


def test_inactive_components_are_left_out_and_unequal_gains_are_kept():
    """A client that uses components 1 and 3 at two scales, and one that adds nothing at the end."""
    spec = small_model.spec()
    adapter = random_adapter(spec)
    gain = {s.path: np.zeros((*s.stack, spec.rank), np.float32) for s in spec.targets}
    for path in gain:
        gain[path][..., 1], gain[path][..., 3] = 2.0, 0.5
    gain["head"][...] = [1.0, 1.0, 1.0, 0.25]
    adapter["head"] = adapter["head"]._replace(b=adapter["head"].b.at[3].set(0.0))
    gain = {path: jnp.asarray(x) for path, x in gain.items()}
    factors = matrices.split(spec.targets, adapter, gain, name_of)
    assert {name: pair.rank for name, pair in factors.items() if pair.rank != 2} == {"head": 3}
    for name, want in lora.deltas(adapter, gain).items():
        for layer in range(3) if name != "head" else (None,):
            a, b, scale = factors[name_of(name, layer)]
            got = want if layer is None else want[layer]
            np.testing.assert_allclose(scale * a @ b, got, atol=1e-6)


def test_changed_kernels_are_exported_as_one_adapter():
    """The change is represented exactly, at its own rank."""
    spec = small_model.spec()
    rng = np.random.default_rng(0)
    before = {
        s.path: jnp.asarray(rng.normal(size=(*s.stack, s.inputs, s.outputs)), jnp.float32)
        for s in spec.targets
    }
    rounds = [random_adapter(small_model.spec(rank=1), seed) for seed in (1, 2)]
    gain = lora.uniform_gain(small_model.spec(rank=1))
    after = before
    for adapter in rounds:
        after = {p: after[p] + d for p, d in lora.deltas(adapter, gain).items()}
    rest = small_model.cut(random_adapter(spec, 3), 1)
    own = lora.uniform_gain(spec)
    one, ones = matrices.from_kernels(before, after, rest, own)
    extra = lora.deltas(rest, own)
    for path, product in lora.deltas(one, ones).items():
        # Dropped components are no larger than what float32 rounds off the kernels.
        np.testing.assert_allclose(product, after[path] - before[path] + extra[path], atol=1e-6)
        assert one[path].a.shape[-1] == 3, "2 + 1 components, and no rounding errors among them"
    nothing = jax.tree.map(jnp.zeros_like, rest)
    same, ones = matrices.from_kernels(before, before, nothing, own)
    assert not any(np.any(x) for x in lora.deltas(same, ones).values())


def test_kernels_with_several_axes_are_refused():
    params = {"attention": {"query": {"kernel": jnp.ones((6, 2, 4)), "bias": jnp.ones((2, 4))}}}
    spec = lora.make_spec(params, targets="query", rank=2)
    adapter, gain = random_adapter(spec), lora.uniform_gain(spec)
    with pytest.raises(InputError, match=r"matrices only: attention/query has a kernel of shape"):
        matrices.split(spec.targets, adapter, gain, name_of)


def test_exported_layers_are_padded_to_one_rank_and_one_scale():
    """Inference engines may read one ``r`` and one ``lora_alpha`` for all tensors."""
    rng = np.random.default_rng(0)
    sizes = {"x": (2, 0.5), "y": (4, 1.5), "z": (1, 1.5)}
    factors = {
        name: peft_writer.Factors(
            rng.normal(size=(6, rank)).astype(np.float32),
            rng.normal(size=(rank, 5)).astype(np.float32),
            scale,
        )
        for name, (rank, scale) in sizes.items()
    }
    padded = matrices.pad_ranks(factors)
    assert {(pair.rank, pair.scale) for pair in padded.values()} == {(4, 1.5)}
    for name, (a, b, scale) in factors.items():
        np.testing.assert_allclose(
            padded[name].scale * padded[name].a @ padded[name].b, scale * a @ b, atol=1e-6
        )
        again = matrices.unpad(padded[name])
        assert again.rank == sizes[name][0]
        np.testing.assert_array_equal(again.a, a)
    fresh = peft_writer.Factors(np.ones((6, 3), np.float32), np.zeros((3, 5), np.float32), 1.0)
    assert matrices.unpad(fresh).rank == 3, "what can be trained is kept"


def test_servers_with_one_scale_for_all_layers_compute_the_exported_products(tmp_path):
    """By the rules of vLLM (`lora/peft_helper.py`) and of llama.cpp (its converter of adapters).

    vLLM reads one rank and one alpha, and refuses `modules_to_save`; llama.cpp divides alpha by the
    rank of each pair, and refuses tensors that are no factors. Neither reads patterns.
    """
    rng = np.random.default_rng(0)
    clients = {"client0": {"q_proj": (2, 0.5), "v_proj": (4, 1.5)}, "client1": {"q_proj": (3, 2.0)}}
    for client, sizes in clients.items():
        factors = {
            f"model.layers.0.self_attn.{name}": peft_writer.Factors(
                rng.normal(size=(6, rank)).astype(np.float32),
                rng.normal(size=(rank, 5)).astype(np.float32),
                scale,
            )
            for name, (rank, scale) in sizes.items()
        }
        options = {"base_model": "org/base", "task_type": "CAUSAL_LM", "saved_modules": {}}
        peft_writer.save(tmp_path / client, matrices.pad_ranks(factors), **options)
        config = json.loads((tmp_path / client / "adapter_config.json").read_text())
        assert {"r", "lora_alpha", "target_modules"} <= config.keys()
        refused = ("modules_to_save", "use_dora", "rank_pattern", "alpha_pattern")
        assert config["bias"] == "none" and not any(config.get(name) for name in refused)
        tensors = load_file(tmp_path / client / "adapter_model.safetensors")
        assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in tensors)
        for name, (a, b, scale) in factors.items():
            A, B = (tensors[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
            assert A.shape[0] <= config["r"], "what --max-lora-rank must hold"
            for multiplier in (
                config["lora_alpha"] / config["r"],  # vLLM
                config["lora_alpha"] / A.shape[0],  # llama.cpp
            ):
                np.testing.assert_allclose(multiplier * B @ A, (scale * a @ b).T, atol=1e-5)
