"""Adapters in models of any structure compute what the merged parameters compute, or are refused.

Flax's lifted transformations, layers that are read outside of their own ``__call__``, kernels with
several input or output axes, and layers that no call reaches.
"""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_lora import InputError, lora
from fedjax_lora.core.types import Adapter, Gain, LoRA

IN, OUT, RANK, LAYERS = 6, 5, 2, 3
X = jax.random.normal(jax.random.key(7), (4, IN))


def random_adapter(spec: lora.LoraSpec) -> tuple[Adapter, Gain]:
    """Both factors random, ranks of the layers of a stack as they are stored."""
    rng = np.random.default_rng(0)
    shapes = spec.shapes()
    values = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.4, x.dtype), shapes)
    return values, lora.uniform_gain(spec)


def adapt(module: nn.Module, *inputs: Any, targets: Any, **options: Any) -> tuple:
    """The parameters of a module with a random adapter and its gain."""
    params = module.init(jax.random.key(0), *inputs)["params"]
    # Zero biases would hide a term that reaches the bias.
    params = jax.tree.map(lambda x: x + 0.1, params)
    return params, *random_adapter(lora.make_spec(params, targets=targets, rank=RANK, **options))


def check_equals_merged(module: nn.Module, *inputs: Any, targets: Any, **options: Any) -> None:
    """Outputs, and gradients of the factors and of the base, to 1e-5; eagerly and compiled."""
    params, adapter, gain = adapt(module, *inputs, targets=targets, **options)

    def adapted(params: Any, adapter: Adapter) -> jax.Array:
        return lora.apply(module, params, adapter, gain, *inputs)

    def merged(params: Any, adapter: Adapter) -> Any:
        return module.apply({"params": lora.merge(params, adapter, gain)}, *inputs)

    def compiled(f: Callable) -> Any:
        """One program for the outputs and the gradients."""

        def loss(params: Any, adapter: Adapter) -> Any:
            outputs = f(params, adapter)
            return jnp.sum(jnp.sin(outputs)), outputs

        given = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
        return given(params, adapter)

    gradients, got = compiled(adapted)
    expected, want = compiled(merged)
    plain: Any = module.apply({"params": params}, *inputs)
    assert float(np.max(np.abs(want - plain))) > 1e-2
    np.testing.assert_allclose(adapted(params, adapter), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    for ours, right in zip(*map(jax.tree.leaves, (gradients, expected)), strict=True):
        np.testing.assert_allclose(ours, right, rtol=1e-5, atol=1e-5)
    assert all(np.any(x) for x in jax.tree.leaves(gradients[1]))


# --------------------------------------------------------------------------- lifted transformations


class Block(nn.Module):
    """A layer of a stack."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        hidden = jnp.tanh(nn.Dense(OUT, name="up")(x))
        return x + nn.Dense(IN, name="down")(hidden), None


class Lifted(nn.Module):
    """A model around a lifted `Block`."""

    lift: Callable[..., Any]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(IN, name="first")(x)
        y = self.lift(Block)(name="layers")(x, None)
        return y[0] if isinstance(y, tuple) else y


def scan(**axes: Any) -> Callable[..., Any]:
    return lambda block: nn.scan(block, split_rngs={"params": True}, length=LAYERS, **axes)


SCANS = {
    "params only": scan(variable_axes={"params": 0}),
    "everything": scan(variable_axes={True: 0}),
    "recomputed": lambda block: scan(variable_axes={"params": 0})(nn.remat(block)),
    "unrolled": scan(variable_axes={"params": 0}, unroll=LAYERS),
    "shared": lambda block: nn.scan(
        block, variable_broadcast="params", split_rngs={"params": False}, length=LAYERS
    ),
}


@pytest.mark.parametrize(
    "lift",
    [
        pytest.param(lift, id=name, marks=[pytest.mark.slow] * (name in ("everything", "unrolled")))
        for name, lift in SCANS.items()
    ],
)
def test_adapted_scan_equals_merged_parameters(lift: Callable):
    check_equals_merged(Lifted(lift), X, targets=["up|down", "first"])


@pytest.mark.parametrize("lift", [nn.remat, nn.jit], ids=["remat", "jit"])
def test_adapted_remat_and_jit_layers_equal_merged_parameters(lift: Callable):
    check_equals_merged(Lifted(lift), X, targets="up|down")


class Ensemble(nn.Module):
    """Members with parameters of their own, on the same input."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        members = nn.vmap(
            nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True},
            in_axes=None, axis_size=LAYERS,
        )  # fmt: skip
        return members(OUT, name="members")(x)


def test_adapted_vmap_equals_merged_parameters():
    check_equals_merged(Ensemble(), X, targets="members", stacked="members")


def test_stack_along_a_later_axis_is_refused():
    module = Lifted(scan(variable_axes={"params": 1}))
    params = module.init(jax.random.key(0), X)["params"]
    pairs = {"layers/up": LoRA(jnp.ones((IN, LAYERS, RANK)), jnp.ones((IN, RANK, OUT)))}
    with pytest.raises(InputError, match=r"has transformed the parameters of layers/up, which its"):
        lora.apply(module, params, pairs, {"layers/up": jnp.ones((IN, RANK))}, X)


class Mapped(nn.Module):
    """A layer whose parameters are transformed before they are used."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        halved = nn.map_variables(
            nn.Dense, "params", trans_in_fn=lambda v: jax.tree.map(lambda z: z[::1], v), init=True
        )
        return halved(OUT, name="dense")(x)


def test_adapted_map_variables_equals_merged_parameters():
    check_equals_merged(Mapped(), X, targets="dense")


@pytest.mark.parametrize(
    "change", [lambda z: 2 * z, jnp.sign, lambda z: z.astype(jnp.bfloat16), jnp.transpose],
    ids=["scaled", "signs", "cast", "transposed"],
)  # fmt: skip
def test_computing_with_whole_parameter_trees_is_refused(change: Callable):
    """It would change each factor, where the merged kernel changes their sum."""

    class Changed(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            dense = nn.map_variables(
                nn.Dense, "params", trans_in_fn=lambda v: jax.tree.map(change, v), init=True,
                trans_out_fn=lambda v: jax.tree.map(lambda z: change(z).astype(z.dtype), v),
                mutable=True,
            )  # fmt: skip
            return dense(IN, use_bias=False, dtype=jnp.float32, name="dense")(x)

    params, adapter, gain = adapt(Changed(), X, targets="dense")
    with pytest.raises(InputError, match=r"(kernel|parameters) of dense"):
        lora.apply(Changed(), params, adapter, gain, X)


def test_wrapper_that_normalises_a_kernel_is_refused_by_path():
    class Normalised(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.WeightNorm(nn.Dense(OUT, name="dense"))(x)

    params, adapter, gain = adapt(Normalised(), X, targets="dense")
    with pytest.raises(InputError, match=r"kernel of .*dense in a way that an adapter cannot"):
        lora.apply(Normalised(), params, adapter, gain, X)


def test_boxed_parameters_are_refused_with_the_way_out():
    named = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    params = nn.Dense(OUT, kernel_init=named).init(jax.random.key(0), X)["params"]
    with pytest.raises(InputError, match=r"parameter dense/kernel is in a box .*meta\.unbox"):
        lora.make_spec({"dense": params}, targets="dense", rank=RANK)
    lora.make_spec({"dense": nn.meta.unbox(params)}, targets="dense", rank=RANK)


# ------------------------------------------------------------------ kernels read outside of a layer


class Tied(nn.Module):
    """An autoencoder whose decoder is the encoder's kernel, transposed."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        encoder = nn.Dense(OUT, name="encoder")
        hidden = jnp.tanh(encoder(x))
        return hidden @ encoder.variables["params"]["kernel"].T


class Projection(nn.Module):
    """A layer with two methods and a kernel of its own."""

    def setup(self) -> None:
        self.kernel = self.param("kernel", nn.initializers.lecun_normal(), (IN, OUT))

    def encode(self, x: jax.Array) -> jax.Array:
        return jnp.einsum("ni,io->no", x, self.kernel)

    def decode(self, x: jax.Array) -> jax.Array:
        return x @ jnp.transpose(self.kernel) + jnp.sum(self.kernel**2) + self.kernel[0, 0]


class TwoMethods(nn.Module):
    """A layer that is never called, only its methods are."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layer = Projection(name="projection")
        return layer.decode(jnp.tanh(layer.encode(x)))


class Activated(nn.Dense):
    """A layer that computes something else than its base class."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        return jnp.tanh(super().__call__(inputs))


class OwnDense(nn.Module):
    """A linear layer that is not Flax's, with its activation."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (IN, OUT))
        return nn.relu(jnp.dot(x, kernel) + 0.3)


def doubled(*args: Any, **options: Any) -> jax.Array:
    """A product of a layer's own, as quantized ones are."""
    return 2 * jax.lax.dot_general(*args, **options)


class NormalizedProduct(nn.Module):
    """A layer that is given a class of products."""

    @nn.compact
    def __call__(self, *args: Any, **options: Any) -> jax.Array:
        return doubled(*args, **options)


READERS = {
    "own product": (nn.Sequential([nn.Dense(OUT, dot_general=doubled)]), "layers_0"),
    "product of a class": (
        nn.Sequential([nn.DenseGeneral(OUT, dot_general_cls=NormalizedProduct)]),
        "layers_0",
    ),
    "product of an NNX layer": (
        nn.Sequential([nnx.bridge.ToLinen(nnx.Linear, (IN, OUT), {"dot_general": doubled})]),
        "layers_0",
    ),
    "tied": (Tied(), "encoder"),
    "two methods": (TwoMethods(), "projection"),
    "subclass": (nn.Sequential([Activated(OUT), nn.Dense(IN)]), "layers_0"),
    "own layer": (nn.Sequential([OwnDense(), nn.Dense(IN)]), "layers_0"),
    "NNX layer": (
        nn.Sequential([nnx.bridge.ToLinen(nnx.Linear, args=(IN, OUT)), nn.Dense(IN)]),
        "layers_0",
    ),
}


@pytest.mark.parametrize(("module", "targets"), READERS.values(), ids=READERS)
def test_kernels_used_outside_of_flax_layers_equal_merged_parameters(
    module: nn.Module, targets: str
):
    check_equals_merged(module, X, targets=targets)


class Low(nn.Module):
    """A layer that hands its kernel to a function of `jax.lax`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (IN, OUT))
        return jax.lax.dot(x, kernel)


def test_functions_that_take_only_arrays_are_refused_by_path():
    module = nn.Sequential([nn.Dense(IN), Low()])
    params, adapter, gain = adapt(module, X, targets="layers")
    with pytest.raises(InputError, match=r"kernel of layers_1 in a way .* jnp.asarray\(kernel\)"):
        lora.apply(module, params, adapter, gain, X)


def test_dropout_of_merged_kernels_is_refused():
    params, adapter, gain = adapt(Tied(), X, targets="encoder")
    rngs = {"dropout": jax.random.key(0)}
    with pytest.raises(InputError, match="kernel of encoder is read outside of a Flax linear"):
        lora.apply(Tied(), params, adapter, gain, X, dropout=0.5, rngs=rngs)


def test_dropout_in_a_scan_needs_a_key_for_each_layer():
    module = Lifted(SCANS["params only"])
    params, adapter, gain = adapt(module, X, targets="up|down")
    rngs = {"dropout": jax.random.key(0)}
    with pytest.raises(InputError, match=r"layers/(up|down) has no key for the LoRA dropout"):
        lora.apply(module, params, adapter, gain, X, dropout=0.5, rngs=rngs)


def test_dropout_rates_of_a_compiled_layer_are_not_mixed_up():
    """The inner function is compiled once for every rate."""
    module = Lifted(nn.jit)
    params, adapter, gain = adapt(module, X, targets="up|down")
    run = lambda rate: lora.apply(  # noqa: E731
        module, params, adapter, gain, X, dropout=rate, rngs={"dropout": jax.random.key(0)}
    )
    outputs = [run(rate) for rate in (0.0, 0.5, 0.0, 0.9)]
    np.testing.assert_array_equal(outputs[0], outputs[2])
    assert all(np.any(outputs[0] != outputs[n]) for n in (1, 3)) and np.any(
        outputs[1] != outputs[3]
    )


# --------------------------------------------------------------------- adapters that have no effect


class Unused(nn.Module):
    """A layer that only initialisation calls, and one of a part of the model."""

    def setup(self) -> None:
        self.body, self.head, self.spare = nn.Dense(IN), nn.Dense(OUT), nn.Dense(OUT)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.is_initializing():
            self.spare(x)
        return self.head(self.encode(x))

    def encode(self, x: jax.Array) -> jax.Array:
        return self.body(x)


def test_adapter_without_effect_is_refused():
    params, adapter, gain = adapt(Unused(), X, targets="body|head|spare")
    run = lambda adapter: lora.apply(Unused(), params, adapter, gain, X)  # noqa: E731
    loss = lambda adapter: jnp.sum(run(adapter))  # noqa: E731
    clients = jax.tree.map(lambda x: jnp.stack([x, x]), adapter)
    compiled = jax.jit(run)
    for call in (run, compiled, compiled, jax.grad(loss), jax.checkpoint(run)):
        with pytest.raises(InputError, match="The adapter of spare has no effect: the model does"):
            call(adapter)
    with pytest.raises(InputError, match="spare"):
        jax.vmap(run)(clients)
    del adapter["spare"]
    run(adapter)


def test_calling_part_of_the_model_needs_allow_unused():
    params, adapter, gain = adapt(Unused(), X, targets="body|head")
    with pytest.raises(InputError, match="The adapter of head has no effect"):
        lora.apply(Unused(), params, adapter, gain, X, method="encode")
    part = lora.apply(Unused(), params, adapter, gain, X, method="encode", allow_unused=True)
    merged = lora.merge(params, adapter, gain)
    want: Any = Unused().apply({"params": merged}, X, method="encode")
    np.testing.assert_allclose(part, want, rtol=1e-5, atol=1e-5)


class Helper(nn.Module):
    """A kernel that is used in a function compiled once for all calls."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return _compiled(x, self.param("kernel", nn.initializers.ones_init(), (IN, OUT)))


@jax.jit
def _compiled(x: jax.Array, kernel: Any) -> jax.Array:
    return x @ jnp.asarray(kernel)


@pytest.mark.parametrize("module", [Lifted(nn.jit), nn.Sequential([Helper(), nn.Dense(OUT)])])
def test_cached_traces_count_as_uses(module: nn.Module):
    """A function inside the model that JAX has traced before is not run by Python again."""
    params, adapter, gain = adapt(module, X, targets="up|down|layers_0")
    first = lora.apply(module, params, adapter, gain, X)
    for _ in range(2):
        np.testing.assert_array_equal(lora.apply(module, params, adapter, gain, X), first)
    loss = lambda x: jnp.sum(lora.apply(module, params, x, gain, X))  # noqa: E731
    assert all(np.any(x) for x in jax.tree.leaves(jax.grad(loss)(adapter)))


def test_returned_variables_are_those_of_the_base():
    module = nn.Sequential([nn.Dense(OUT), nn.BatchNorm(use_running_average=False)])
    variables = module.init(jax.random.key(0), X)
    spec = lora.make_spec(variables["params"], targets="layers_0", rank=RANK)
    adapter, gain = random_adapter(spec)
    out, after = lora.apply(module, variables["params"], adapter, gain, X, mutable=True)
    assert out.shape == (4, OUT) and set(after) == {"params", "batch_stats"}
    jax.tree.map(np.testing.assert_array_equal, after["params"], dict(variables["params"]))


PROGRAM = """
import flax.linen as nn, jax, jax.numpy as jnp
from fedjax_lora import InputError, lora
assert False, "assertions are off"
class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        if self.is_initializing():
            nn.Dense(3, name="spare")(x)
        return nn.Dense(2, name="used")(x)
x = jnp.ones((1, 4))
params = {**Net().init(jax.random.key(0), x)["params"]}
for targets in ("used", "spare"):
    spec = lora.make_spec(params, targets=targets, rank=1)
    adapter = jax.tree.map(jnp.ones_like, lora.init(spec, jax.random.key(0)))
    try:
        y = jax.jit(lambda a: lora.apply(Net(), params, a, lora.uniform_gain(spec), x))(adapter)
        print(targets, float(jnp.max(abs(y - Net().apply({"params": params}, x)))))
    except InputError as error:
        print(error)
"""


def test_unused_adapters_are_refused_without_assertions():
    done = subprocess.run(
        [sys.executable, "-O", "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    used, spare = done.stdout.splitlines()
    assert used == "used 4.0"
    assert spare.startswith("The adapter of spare has no effect")


# ------------------------------------------------------------ several input axes or output axes


class SelfAttention(nn.Module):
    """Flax's attention, alone."""

    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.MultiHeadDotProductAttention(
            num_heads=2, qkv_features=8, use_bias=self.use_bias, name="attention"
        )(x)


TOKENS = jax.random.normal(jax.random.key(3), (2, 4, IN))


@pytest.mark.parametrize("use_bias", [True, False])
def test_flax_attention_can_be_adapted(use_bias: bool):
    module = SelfAttention(use_bias)
    params, _, _ = adapt(module, TOKENS, targets="attention")
    spec = lora.make_spec(params, targets="attention", rank=RANK)
    assert [(s.path, s.inputs, s.outputs, s.kernel_shape) for s in spec.targets] == [
        ("attention/key", IN, 8, (IN, 2, 4)),
        ("attention/out", 8, IN, (2, 4, IN)),
        ("attention/query", IN, 8, (IN, 2, 4)),
        ("attention/value", IN, 8, (IN, 2, 4)),
    ]
    check_equals_merged(module, TOKENS, targets="attention")


class Attentions(nn.Module):
    """A stack of attention layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        step = lambda layer, x: (layer(x), None)  # noqa: E731
        layers = SelfAttention(name="layers")
        lifted = nn.scan(
            step, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS
        )
        return lifted(layers, x)[0]


def test_scanned_flax_attention_can_be_adapted():
    params, _, _ = adapt(Attentions(), TOKENS, targets="attention")
    spec = lora.make_spec(params, targets="attention", rank=RANK)
    assert {s.kernel_shape for s in spec.targets} == {(IN, 2, 4), (2, 4, IN)}
    assert {s.stack for s in spec.targets} == {(LAYERS,)}
    check_equals_merged(Attentions(), TOKENS, targets="attention")


GENERAL = {
    "one to two": (nn.DenseGeneral((2, 3)), (4, IN), {}),
    "two to one": (nn.DenseGeneral(3, axis=(-2, -1)), (4, 2, IN), {}),
    "any order": (nn.DenseGeneral((2, 2), axis=(-1, 1)), (4, 2, 3, IN), {}),
    "without bias": (
        nn.DenseGeneral(3, axis=(1, 2), use_bias=False), (4, 2, IN), {"input_axes": {"layer": 2}},
    ),
    "einsum": (nn.Einsum((IN, 2, 3), "nti,iho->ntho"), (2, 4, IN), {}),
    "einsum of two axes": (nn.Einsum((2, IN, 3), "...hi,hio->...o"), (2, 4, 2, IN), {}),
    "einsum that permutes": (nn.Einsum((IN, 2, 3), "nti,iho->hnot"), (2, 4, IN), {}),
    "matrix": (nn.Einsum((IN, 3), "ni,io->no", use_bias=False), (4, IN), {}),
}  # fmt: skip


class Named(nn.Module):
    """A layer under a path of its own."""

    layer: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layer(x)


@pytest.mark.parametrize(("layer", "shape", "options"), GENERAL.values(), ids=GENERAL)
def test_dense_general_and_einsum_kernels_can_be_adapted(
    layer: nn.Module, shape: tuple, options: dict
):
    x = jax.random.normal(jax.random.key(0), shape)
    check_equals_merged(Named(layer), x, targets="layer", **options)


@pytest.mark.parametrize(
    ("layer", "shape", "options", "sentence"),
    [
        (nn.DenseGeneral(3, axis=(1, 2), use_bias=False), (4, 2, IN), {}, "which axes are inputs"),
        (
            nn.DenseGeneral(3, axis=(1, 2)), (4, 2, IN), {"input_axes": {"layer": 1}},
            r"layer is 12 x 3, but its adapter is 2 x 18; .* input_axes={'layer': 2}",
        ),
        (
            nn.DenseGeneral(3, axis=-1, batch_dims=(0,)), (4, IN), {"input_axes": {"layer": 2}},
            "layer has batch axes",
        ),
        (
            nn.Einsum((2, IN, 3), "nti,hio->ntho", use_bias=False), (2, 4, IN),
            {"input_axes": {"layer": 1}},
            "The einsum 'nti,hio->ntho' of layer is no product with a matrix",
        ),
        (
            nn.Einsum((3, IN), "ni,oi->no", use_bias=False), (4, IN), {},
            "The einsum 'ni,oi->no' of layer is no product with a matrix",
        ),
        (
            nn.Conv(3, (2,)), (2, 4, IN), {}, "layer is a convolution, which cannot be adapted",
        ),
        (
            nn.ConvTranspose(3, (2,)), (2, 4, IN), {},
            "layer is a convolution, which cannot be adapted",
        ),
    ],
)  # fmt: skip
def test_unsupported_layers_are_refused_in_one_sentence(
    layer: nn.Module, shape: tuple, options: dict, sentence
):
    x = jax.random.normal(jax.random.key(0), shape)
    with pytest.raises(InputError, match=sentence):
        params, adapter, gain = adapt(Named(layer), x, targets="layer", **options)
        lora.apply(Named(layer), params, adapter, gain, x)


def test_convolution_kernels_are_refused_by_name():
    params = {"Conv_0": {"kernel": jnp.zeros((3, 3, IN, OUT)), "bias": jnp.zeros(OUT)}}
    with pytest.raises(InputError, match=r"Target Conv_0 has a kernel of shape \(3, 3, 6, 5\); ad"):
        lora.make_spec(params, targets="Conv", rank=1)


# ---------------------------------------------------------------------------- other libraries


def test_apply_merged_works_for_any_function():
    params, adapter, gain = adapt(Tied(), X, targets="encoder")
    apply_fn = lambda params, x: Tied().apply({"params": params}, x)  # noqa: E731
    ours = lora.apply_merged(apply_fn, params, adapter, gain, X)
    want = lora.apply(Tied(), params, adapter, gain, X)
    np.testing.assert_allclose(ours, want, rtol=1e-5, atol=1e-5)


def test_kernels_convert_to_matrices_and_back():
    params, _, _ = adapt(Attentions(), TOKENS, targets="attention")
    spec = lora.make_spec(params, targets="attention", rank=RANK)
    kernels = lora.kernels_of(params, spec)
    assert kernels["layers/attention/out"].shape == (LAYERS, 8, IN)
    back = lora.with_kernels(params, jax.tree.map(lambda x: 2 * x, kernels))
    for name in ("query", "key", "value", "out"):
        old, new = (tree["layers"]["attention"][name] for tree in (params, back))
        np.testing.assert_array_equal(new["kernel"], 2 * old["kernel"])
        assert new["bias"] is old["bias"]
