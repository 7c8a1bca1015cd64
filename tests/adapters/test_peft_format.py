"""What is written for PEFT multiplies out to what we had: alpha is neither lost nor doubled."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_model
from safetensors.numpy import load_file
from small_model import random_adapter

from fedjax_lora import adapters
from fedjax_lora.adapters import peft


@pytest.mark.parametrize("rule", list(adapters.SCALES))
def test_written_factors_carry_the_scale_once(rule: str, tmp_path: pathlib.Path):
    """``lora_alpha / r * B A`` is our product transposed, for every adapted layer and no other."""
    template = small_model.template(scale=rule, layers=[0, 2])
    adapter = random_adapter(template)
    name_of = lambda path, layer: path.replace("/", ".") + ("" if layer is None else f".{layer}")  # noqa: E731
    peft.save(tmp_path, template, adapter, name_of=name_of, base_model="base", saved_modules={})
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    deltas = adapters.deltas(adapter, adapters.uniform_gain(template))
    names = ["head", *(f"layers.{n}.{k}" for n in ("query", "value") for k in (0, 2))]
    assert sorted(config["target_modules"]) == sorted(names)
    assert len(tensors) == 2 * len(names)
    for name in names:
        A = tensors[f"base_model.model.{name}.lora_A.weight"].astype(np.float64)
        B = tensors[f"base_model.model.{name}.lora_B.weight"].astype(np.float64)
        assert A.shape[0] == B.shape[1] == config["r"]
        path, _, layer = name.rpartition(".") if name != "head" else (name, "", "")
        want = deltas[path.replace(".", "/")]
        want = want[int(layer)] if layer else want
        np.testing.assert_allclose(config["lora_alpha"] / config["r"] * B @ A, want.T, atol=1e-5)


def test_changed_kernels_become_one_adapter():
    """Exactly, at the rank the change really has."""
    template = small_model.template()
    rng = np.random.default_rng(0)
    before = {
        s.path: jnp.asarray(rng.normal(size=(*s.stack, s.inputs, s.outputs)), jnp.float32)
        for s in template.sites
    }
    rounds = [random_adapter(small_model.template(rank=1), seed) for seed in (1, 2)]
    gain = adapters.uniform_gain(small_model.template(rank=1))
    after = before
    for adapter in rounds:
        after = {p: after[p] + d for p, d in adapters.deltas(adapter, gain).items()}
    rest = adapters.truncate(random_adapter(template, 3), jnp.asarray(1, jnp.int32))
    one = peft.from_kernels(template, before, after, rest)
    extra = adapters.deltas(rest, adapters.uniform_gain(template))
    for path, pair in one.items():
        product = template.server_scale * pair.a @ pair.b
        np.testing.assert_allclose(product, after[path] - before[path] + extra[path], atol=1e-6)
    ranks = {pair.a.shape[-1] for pair in one.values()}
    assert len(ranks) == 1
    # 2 + 1 components, or a few of the size of float32's rounding of the kernels.
    assert next(iter(ranks)) >= 3
    nothing = jax.tree.map(jnp.zeros_like, rest)
    same = peft.from_kernels(template, before, before, nothing)
    assert not any(np.any(pair.a @ pair.b) for pair in same.values())


def test_narrow_sites_have_the_rank_of_the_wide_ones():
    """As where keys and values have fewer heads; the products are exact, the factors fit."""
    template = small_model.template()
    rng = np.random.default_rng(0)
    before = {
        s.path: jnp.asarray(rng.normal(size=(*s.stack, s.inputs, s.outputs)), jnp.float32)
        for s in template.sites
    }
    after = {p: x + jnp.asarray(rng.normal(size=x.shape), jnp.float32) for p, x in before.items()}
    nothing = jax.tree.map(jnp.zeros_like, random_adapter(template))
    one = peft.from_kernels(template, before, after, nothing)
    sides = {min(x.shape[-2:]) for x in before.values()}
    assert len(sides) > 1
    for path, pair in one.items():
        assert pair.a.shape[-1] == pair.b.shape[-2] == max(sides)
        product = template.server_scale * pair.a @ pair.b
        np.testing.assert_allclose(product, after[path] - before[path], atol=1e-5)
