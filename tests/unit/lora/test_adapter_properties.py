"""Templates, factors and their PEFT form, for models of any shape."""

import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from fedjax_lora import lora
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import LoRA
from fedjax_lora.interop import matrices, peft_writer
from fedjax_lora.lora import LoraSpec

SIDE = st.integers(1, 9)
NAMES = st.sampled_from(["query", "value", "output", "up", "k9", "x_y"])


@st.composite
def models(draw):
    """Parameters with plain and stacked kernels under any names, and things that are no kernels."""
    params = {"norm": {"scale": np.ones(3)}, "words": {"embedding": np.ones((4, 3))}}
    for name in draw(st.sets(NAMES, max_size=3)):
        params[name] = {"kernel": np.zeros((draw(SIDE), draw(SIDE))), "bias": np.zeros(2)}
    depth = draw(st.integers(1, 4))
    stacked = draw(st.sets(NAMES, min_size=0 if len(params) > 2 else 1, max_size=3))
    params["layers"] = {n: {"kernel": np.zeros((depth, draw(SIDE), draw(SIDE)))} for n in stacked}
    return params


@st.composite
def places(draw):
    """Any of them and how to adapt it, with any layers left out."""
    params = draw(models())
    smallest = min(
        min(leaf.shape[-2:])
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if "kernel" in jax.tree_util.keystr(path)
    )
    depth = [part["kernel"].shape[0] for part in params["layers"].values()]
    layers = None
    if depth:
        layers = draw(st.none() | st.sets(st.integers(0, depth[0] - 1), min_size=1))
    return params, {
        "rank": draw(st.integers(1, smallest)),
        "alpha": draw(st.none() | st.floats(0.1, 64)),
        "scale": draw(st.sampled_from(sorted(lora.SCALES))),
        "layers": None if layers is None else sorted(layers),
    }


def spec_of(place) -> LoraSpec:
    params, options = place
    return lora.make_spec(params, targets=".", **options)


def drawn(spec: LoraSpec, seed: int) -> dict[str, LoRA]:
    """Normal factors, zero at the layers that are left out."""
    rng = np.random.default_rng(seed)
    whole = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), spec.shapes())
    mask = lora.factor_mask(lora.spread(spec, jnp.ones(spec.rank, bool)))
    return lora.keep(whole, mask)


@given(models(), st.integers(-1, 12))
@settings(deadline=None, max_examples=60)
def test_spec_targets_exactly_the_matching_kernels_or_is_refused(params, rank):
    paths = {n for n, part in params.items() if "kernel" in part}
    paths |= {f"layers/{name}" for name in params["layers"]}
    smallest = min(
        min((params[p] if p in params else params["layers"][p.split("/")[1]])["kernel"].shape[-2:])
        for p in paths
    )
    if not 1 <= rank <= smallest:
        with pytest.raises(InputError, match="rank"):
            lora.make_spec(params, targets=".", rank=rank)
        return
    spec = lora.make_spec(params, targets=".", rank=rank)
    assert {target.path for target in spec.targets} == paths
    for target in spec.targets:
        pair = spec.shapes()[target.path]
        assert pair.a.shape == (*target.stack, target.inputs, rank)
        assert pair.b.shape == (*target.stack, rank, target.outputs)
    size = sum(target.adapted * (target.inputs + target.outputs) for target in spec.targets)
    assert lora.parameter_count(spec, rank) == rank * size


@given(places(), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_peft_factors_give_the_same_outputs(place, seed):
    """``alpha / r * B A`` of every adapted layer, read from the files, is ours transposed."""
    spec = spec_of(place)
    adapter = drawn(spec, seed)
    name_of = lambda path, layer: path if layer is None else f"{path}.{layer}"  # noqa: E731
    with tempfile.TemporaryDirectory() as folder:
        gain = lora.uniform_gain(spec)
        factors = matrices.split(spec.targets, adapter, gain, name_of)
        peft_writer.save(folder, factors, base_model="base", task_type="SEQ_CLS", saved_modules={})
        tensors = load_file(pathlib.Path(folder) / "adapter_model.safetensors")
        config = json.loads((pathlib.Path(folder) / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    seen = 0
    for target in spec.targets:
        a, b = (np.asarray(x, np.float64) for x in adapter[target.path])
        for layer, adapted in enumerate(target.layers or (True,)):
            name = name_of(target.path, layer if target.stack else None)
            stem = f"base_model.model.{name}.lora_"
            assert (f"{stem}A.weight" in tensors) == (name in config["target_modules"]) == adapted
            if adapted:
                seen += 1
                A, B = (tensors[f"{stem}{x}.weight"].astype(np.float64) for x in "AB")
                ours = a[layer] @ b[layer] if target.stack else a @ b
                want = spec.server_scale * ours  # the gain of a component is a float32
                np.testing.assert_allclose(scale * (B @ A).T, want, rtol=1e-6, atol=1e-6)
    assert len(tensors) == 2 * seen == 2 * len(config["target_modules"])
