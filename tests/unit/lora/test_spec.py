"""LoRA specs: targets, presets, scales, parameter counts, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import lora
from fedjax_lora.core.errors import InputError
from fedjax_lora.lora import LoraSpec, LoraTarget
from tests._helpers import small_model
from tests._helpers.small_model import PARAMS, TEMPLATE, R

MATRIX = jax.ShapeDtypeStruct((8, 8), jnp.float32)
STACK = jax.ShapeDtypeStruct((2, 8, 8), jnp.float32)
BIAS = jax.ShapeDtypeStruct((8,), jnp.float32)


def linear(kernel=STACK) -> dict:
    return {"kernel": kernel, "bias": BIAS}


ENCODER = {
    "embeddings": {"word": {"embedding": MATRIX}, "projection": linear(MATRIX)},
    "encoder": {
        "layers": {
            "attention": {n: linear() for n in ("query", "key", "value", "output")},
            "mlp": {"intermediate": linear(), "output": linear()},
            "norm": {"scale": BIAS},
        }
    },
    "classifier": linear(MATRIX),
}
DECODER = {
    "embed_tokens": {"embedding": MATRIX},
    "layers": {
        "self_attn": {n: linear() for n in ("q_proj", "k_proj", "v_proj", "o_proj")},
        "mlp": {n: linear() for n in ("gate_proj", "up_proj", "down_proj")},
    },
    "lm_head": linear(MATRIX),
}


def test_spec_lists_paths_shapes_and_types():
    """Paths, shapes and types of a scanned model's adapter, written out."""
    assert TEMPLATE.targets == (
        LoraTarget("head", 12, 7, None),
        LoraTarget("layers/query", 12, 10, (True, True, True)),
        LoraTarget("layers/value", 12, 10, (True, True, True)),
    )
    shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), TEMPLATE.shapes())
    assert shapes == {
        "head": (((12, 4), "float32"), ((4, 7), "float32")),
        "layers/query": (((3, 12, 4), "float32"), ((3, 4, 10), "float32")),
        "layers/value": (((3, 12, 4), "float32"), ((3, 4, 10), "float32")),
    }
    made = lora.init(TEMPLATE, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, str(x.dtype)), made) == shapes


def paths(tree: dict, targets) -> list[str]:
    return [s.path for s in lora.make_spec(tree, targets=targets, rank=2).targets]


@pytest.mark.parametrize(
    ("tree", "preset", "want"),
    [
        (ENCODER, "attention-qv", ["attention/query", "attention/value"]),
        (
            ENCODER,
            "attention",
            ["attention/key", "attention/output", "attention/query", "attention/value"],
        ),
        (
            ENCODER,
            "all-linear",
            [
                "attention/key",
                "attention/output",
                "attention/query",
                "attention/value",
                "mlp/intermediate",
                "mlp/output",
            ],
        ),
        (DECODER, "attention-qv", ["self_attn/q_proj", "self_attn/v_proj"]),
        (DECODER, "attention", [f"self_attn/{x}_proj" for x in "koqv"]),
        (
            DECODER,
            "all-linear",
            [f"mlp/{x}_proj" for x in ("down", "gate", "up")]
            + [f"self_attn/{x}_proj" for x in "koqv"],
        ),
    ],
)
def test_presets_select_targets_by_path(tree: dict, preset: str, want: list[str]):
    """Never embeddings, norms or heads."""
    prefix = "encoder/layers/" if tree is ENCODER else "layers/"
    assert paths(tree, preset) == [prefix + path for path in want]
    assert set(lora.PRESETS) == {"attention-qv", "attention", "all-linear"}


def test_patterns_select_targets_by_regular_expression():
    assert paths(ENCODER, "classifier") == ["classifier"]
    assert paths(ENCODER, ["mlp", "attention-qv"]) == [
        f"encoder/layers/{x}"
        for x in ("attention/query", "attention/value", "mlp/intermediate", "mlp/output")
    ]
    assert paths(ENCODER, "^embeddings") == ["embeddings/projection"]


def test_selected_layers_of_a_stack_are_marked():
    targets = small_model.spec(layers=[2, 0]).targets
    assert [s.layers for s in targets] == [None, (True, False, True), (True, False, True)]
    assert [s.adapted for s in targets] == [1, 2, 2]
    assert [s.stack for s in targets] == [(), (3,), (3,)]
    flat = lora.make_spec(
        {"h_0": {"kernel": MATRIX}, "blocks": {"x": {"kernel": STACK}}},
        targets=".",
        rank=2,
        stacked="blocks",
    )
    assert [s.layers for s in flat.targets] == [(True, True), None]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"scale": "alpha/q"}, "Unknown scale rule 'alpha/q'; did you mean 'alpha/"),
        ({"targets": "queries"}, "Targets 'queries' match no layer; presets: attention-qv, "),
        ({"targets": []}, "Targets () match no layer"),
        ({"targets": "queries"}, "layers of this model: embed, head, layers/output, "),
        ({"targets": "(query"}, "Targets '(query' hold an invalid regular expression: missing )"),
        ({"rank": 0}, "LoRA rank must be at least 1, got 0."),
        ({"rank": -3}, "LoRA rank must be at least 1, got -3."),
        ({"rank": 8}, "LoRA rank 8 exceeds what a layer can have: head is 12 x 7."),
        (
            {"rank": 11},
            "LoRA rank 11 exceeds what a layer can have: head is 12 x 7; layers/query is 12 x 10; "
            "layers/value is 12 x 10.",
        ),
        (
            {"layers": [1, 3, -1]},
            "Layers [3, -1] do not exist in layers/query, which has layers 0..2.",
        ),
        ({"layers": [], "targets": "query"}, "LoRA layers=[] leaves no layer to adapt"),
        ({"alpha": 0.0}, "LoRA alpha must be above 0 and finite, got 0."),
        ({"alpha": -1.0}, "LoRA alpha must be above 0 and finite, got -1."),
        ({"alpha": float("nan")}, "LoRA alpha must be above 0 and finite, got nan."),
    ],
)
def test_invalid_specs_are_refused_with_the_reason(options: dict, sentence: str):
    with pytest.raises(InputError) as caught:
        small_model.spec(**options)
    assert sentence in str(caught.value)


def test_kernels_that_are_not_matrices_are_refused():
    tree = {"conv": {"kernel": STACK}, "layers": {"x": {"kernel": jnp.zeros((2, 3, 4, 5))}}}
    with pytest.raises(
        InputError, match=r"Target conv has a kernel of shape \(2, 8, 8\); adapters"
    ):
        lora.make_spec(tree, targets="conv", rank=1)
    with pytest.raises(InputError, match=r"Target layers/x has a kernel of shape \(2, 3, 4, 5\)"):
        lora.make_spec(tree, targets="layers", rank=1)


@pytest.mark.parametrize(("rank", "count"), [(5, 138_240), (7, 193_536), (20, 552_960)])
def test_parameter_counts_of_distilbert_match_the_paper(rank: int, count: int):
    """Three 768 x 768 projections in each of six layers; and in bytes what the paper prints."""
    layer = {n: {"kernel": jax.ShapeDtypeStruct((6, 768, 768), jnp.float32)} for n in "qkv"}
    spec = lora.make_spec({"layers": layer}, targets="layers", rank=20)
    assert lora.parameter_count(spec, rank) == count
    mebibytes = {5: 0.53, 7: 0.74, 20: 2.11}
    assert round(count * 4 / 2**20, 2) == mebibytes[rank]
    sizes = [lora.parameter_count(spec, r) for r in (5, 20)]
    assert 0.9 * sizes[0] + 0.1 * sizes[1] == 179_712


def test_parameter_count_is_the_size_of_the_arrays():
    """Left-out layers do not count."""
    for spec in (TEMPLATE, small_model.spec(layers=[1])):
        for rank in range(1, R + 1):
            adapter = small_model.cut(small_model.random_adapter(spec), rank)
            used = sum(int(np.count_nonzero(x)) for x in jax.tree.leaves(adapter))
            assert lora.parameter_count(spec, rank) == used


@pytest.mark.parametrize(
    ("rule", "numbers"),
    [
        ("alpha/R", [1.5, 1.5, 1.5, 1.5]),
        ("alpha/r", [6.0, 3.0, 2.0, 1.5]),
        ("alpha/sqrt(R)", [3.0, 3.0, 3.0, 3.0]),
        ("alpha/sqrt(r)", [6.0, 6 / 2**0.5, 6 / 3**0.5, 3.0]),
    ],
)
def test_scale_rules_agree_for_integers_arrays_and_tracers(rule: str, numbers: list[float]):
    """For one rank, for ranks of a cohort in NumPy or JAX, traced or not; and as gains."""
    spec = small_model.spec(scale=rule)
    assert set(lora.SCALES) >= {rule}
    assert spec.server_scale == numbers[-1]
    ranks = np.arange(1, 5, dtype=np.int32)
    cohort = jnp.asarray(ranks)
    for scale in (spec.scale(ranks), spec.scale(cohort), jax.jit(spec.scale)(cohort)):
        np.testing.assert_allclose(np.broadcast_to(scale, 4), numbers, rtol=1e-6)
    np.testing.assert_allclose([spec.scale(int(r)) for r in ranks], numbers, rtol=1e-12)
    gains = lora.uniform_gain(spec, cohort)
    for n, (r, number) in enumerate(zip(ranks, numbers, strict=True)):
        want = np.where(np.arange(R) < r, number, 0)
        alone = lora.uniform_gain(spec, int(r))
        for path in gains:
            rows = np.asarray(gains[path][n]).reshape(-1, R)
            np.testing.assert_allclose(rows, np.broadcast_to(want, rows.shape), rtol=1e-6)
            np.testing.assert_array_equal(alone[path], gains[path][n])
    whole = lora.uniform_gain(spec)
    assert whole["head"].shape == (R,) and whole["layers/query"].shape == (3, R)
    np.testing.assert_allclose(whole["head"], numbers[-1], rtol=1e-6)


def test_default_alpha_is_the_rank():
    spec = lora.make_spec(PARAMS, targets="head", rank=3)
    assert (spec.alpha, spec.server_scale) == (3.0, 1.0)


def test_specs_are_hashable_values():
    """Hashable and comparable, so they can be static arguments and cache keys."""
    again = small_model.spec()
    assert again == TEMPLATE and hash(again) == hash(TEMPLATE)
    assert small_model.spec(layers=[0]) != TEMPLATE
    assert isinstance(TEMPLATE, LoraSpec)
