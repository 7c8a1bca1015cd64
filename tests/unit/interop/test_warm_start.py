"""A run that begins with an adapter begins with its model, whatever the method, rank and scale."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import InputError, interop, lora, methods
from fedjax_lora.core.types import LoRA
from fedjax_lora.methods import Cohort
from tests._helpers import small_encoders


def template_for(model, **options):
    base = {"encoder": model.params["encoder"]}
    return lora.make_spec(base, **{"targets": "attention", "rank": 6} | options)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_encoders.load(small_encoders.checkpoint(tmp_path_factory.mktemp("base"), "bert"))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """An adapter of ranks 4 and 2 in layers 0 and 2, of scale 1.5, with a head."""
    path = tmp_path_factory.mktemp("adapter")
    interop.save_adapter(path, small_encoders.fitted(model))
    return path


def begun(model, folder, spec, *, keep_scale=True):
    first = interop.load_adapter(folder, model)
    spec = interop.warm_start_spec(spec, first, keep_scale=keep_scale)
    fresh = lora.init(spec, jax.random.key(3))
    return spec, fresh, interop.warm_start(spec, fresh, first)


def products(spec, adapter):
    return lora.deltas(adapter, lora.uniform_gain(spec))


@pytest.mark.parametrize("rule", list(lora.SCALES))
@pytest.mark.parametrize("keep_scale", [True, False])
def test_warm_start_keeps_the_outputs_and_adds_fresh_components(rule, keep_scale, model, folder):
    spec = template_for(model, scale=rule, alpha=9.0)
    spec, fresh, adapter = begun(model, folder, spec, keep_scale=keep_scale)
    ours = small_encoders.fitted(model)
    for path, want in lora.deltas(ours.adapter, ours.gain).items():
        np.testing.assert_allclose(products(spec, adapter)[path], want, atol=1e-5)
        a, b = adapter[path]
        if keep_scale:
            assert spec.server_scale == pytest.approx(1.5)
            np.testing.assert_array_equal(a[0, :, :4], ours.adapter[path].a[0])
            np.testing.assert_array_equal(b[2, :2], ours.adapter[path].b[2, :2])
        # Ranks 4, none and 2 of 6.
        for layer, rank in enumerate((4, 0, 2)):
            np.testing.assert_array_equal(a[layer, :, rank:], fresh[path].a[layer, :, rank:])
            assert np.all(np.any(np.asarray(a[layer]) != 0, axis=0)), "every component can learn"
            assert not np.any(b[layer, rank:])


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_starts_from_the_given_adapter(name, model, folder):
    """Its client of the highest rank computes what the adapter computes."""
    spec, _, adapter = begun(model, folder, template_for(model))
    method = methods.make(name, spec)
    kernels = {s.path: model_kernel(model, s.path) for s in spec.targets}
    server = method.init(adapter, kernels)
    cohort = Cohort(
        id=jnp.array([1], jnp.int32),
        rank=jnp.array([6], jnp.int32),
        weight=jnp.ones(1),
        scale=jnp.full(1, spec.server_scale),
        round=jnp.asarray(0, jnp.int32),
        key=jax.random.key(0),
    )
    mine = jax.tree.map(lambda x: x[1:2], method.init_clients(3))
    start = method.broadcast(server, mine, cohort)
    own = products(spec, adapter)
    for path, pair in lora.fold(start.adapter, start.coefficients).items():
        change = lora.delta(LoRA(pair.a[0], pair.b[0]), start.gain[path][0])
        whole = server.kernels.get(path, kernels[path]) + change
        np.testing.assert_allclose(whole, kernels[path] + own[path], atol=1e-5)


def model_kernel(model, path):
    node = model.params
    for part in path.split("/"):
        node = node[part]
    return node["kernel"]


def test_head_is_reused_only_for_the_same_task(model, folder):
    ours = small_encoders.fitted(model)
    taken = interop.with_saved_modules(model, folder).params["head"]
    jax.tree.map(np.testing.assert_array_equal, taken, ours.head)
    other = dataclasses.replace(
        model, config=dataclasses.replace(model.config, num_labels=2), params=dict(model.params)
    )
    assert interop.with_saved_modules(other, folder).params["head"] is model.params["head"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rank": 3}, "it has rank 4, and the largest rank is 3"),
        ({"targets": "/query$"}, "attention/output is not adapted"),
        ({"layers": [0, 1]}, r"layers \[2\] of encoder/layers/attention/key are not adapted"),
    ],
)
def test_adapter_that_does_not_fit_the_run_is_refused_with_the_reason(
    options, sentence, model, folder
):
    with pytest.raises(InputError, match=sentence):
        begun(model, folder, template_for(model, **options))


def test_adapter_of_another_base_is_refused(model, folder, tmp_path):
    other = small_encoders.checkpoint(tmp_path, "bert", seed=1)
    with pytest.raises(InputError, match="trained on another model: its base is"):
        interop.with_saved_modules(small_encoders.load(other), folder)
    with pytest.raises(InputError, match="pooling is 'mean', not 'family'"):
        interop.with_saved_modules(small_encoders.load(model.folder, pooling="mean"), folder)
