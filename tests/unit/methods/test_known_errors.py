"""Known aggregation errors of other code bases, tested in every registered method.

Each error has a test here that a method with it fails, whatever else the method does; that the
comparison with the oracles would notice them too is shown in `test_oracles`, with rules that are
wrong on purpose. Invariants that hold for every aggregator and are tested elsewhere are listed in
`INVARIANTS`.
"""

import ast
import functools
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import lora, methods
from fedjax_lora.core.types import LoRA
from fedjax_lora.lora import LoraSpec, LoraTarget
from tests._helpers import cohorts, oracles, problems
from tests._helpers.cohorts import EXACT, make_cohort, ranks_for
from tests._helpers.oracle_comparison import compare

every_method = pytest.mark.parametrize("name", list(methods.METHODS))

FIXED_A = {"ffa_lora", "rolora", "fedsvd"}
"""Only `b` is trained in round 0; `a` is the server's."""

FIXED_B = oracles.CORES
"""A core is trained, which moves the columns of `a`; `b` is the server's."""

R, SIZE = 2, 5
SQUARE = LoraSpec(
    targets=(LoraTarget("x", SIZE, SIZE, None),), rank=R, alpha=6.0
)  # multiplies by 3

WEIGHS = {"hetlora": "norm"} | dict.fromkeys(("fed_plora", "fslora", "fedhl", "fed_sb"), "uniform")
"""By what a method weighs its clients unless told otherwise; the others by their examples."""


def change_of_model(
    name: str, a: np.ndarray, b: np.ndarray, weight: list[float], lora_spec: LoraSpec = SQUARE
) -> np.ndarray:
    """What the server's model adds to its first kernel after clients of full rank return these.

    ``a`` is ``[c, i, R]``, ``b`` is ``[c, R, o]``.
    """
    method, aggregate = cohorts.compiled(EXACT.get(name, name), lora_spec)
    target = lora_spec.targets[0]
    kernel = jnp.zeros((target.inputs, target.outputs))
    common = a[0] if name in FIXED_A else 0 * a[0]
    server = method.init({target.path: cohorts.pair(common, 0 * b[0])}, {target.path: kernel})
    if name in FIXED_B:
        old = server.adapter[target.path]
        server = server._replace(adapter={target.path: cohorts.pair(old.a, b[0])})
    cohort = make_cohort(lora_spec, [lora_spec.rank] * len(weight), weight)
    start = method.broadcast(server, method.init_clients(len(weight)), cohort)
    result = {target.path: cohorts.pair(a, b)}
    state = method.init_clients(len(weight))
    after = aggregate(server, state, cohort, start, result).server
    delta = lora.deltas(after.adapter, lora.uniform_gain(lora_spec))[target.path]
    return np.asarray(delta + after.kernels.get(target.path, kernel))


def factors(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, SIZE, R)), rng.normal(size=(count, R, SIZE))


# ---------------------------------------------------------------------------------- their errors


@every_method
def test_no_client_is_dropped(name: str):
    """Elsewhere a typo kept the first client only: every present client must have influence."""
    a, b = factors(3)
    base = change_of_model(name, a, b, [1.0, 2.0, 3.0])
    for k in range(3):
        other = [np.copy(x) for x in (a, b)]
        for x in other:
            x[k] += 1.0
        assert np.max(np.abs(change_of_model(name, *other, [1.0, 2.0, 3.0]) - base)) > 0.1


@pytest.mark.parametrize(
    "name",
    problems.one_of_each_kind(
        {*problems.KINDS, "hetlora", "raflora", "rb_lora", "florist", "lora_fair"}
    ),
)
def test_axes_are_not_inferred_from_their_length(name: str):
    """The rank axis was looked for by its size. Here clients, layers, inputs, outputs and R agree.

    The same comparison finds absent components that are averaged as zeros.
    """
    four = LoraSpec(targets=(LoraTarget("layers/x", 4, 4, (True,) * 4),), rank=4, alpha=6.0)
    compare(name, four, ranks_for(name, [1, 2, 4, 3], 4), np.array([3, 5, 2, 7]))


@every_method
def test_products_are_not_transposed(name: str):
    """Elsewhere the transpose was decomposed, which has the right shape for a square layer."""
    a, b = np.zeros((2, SIZE, R)), np.zeros((2, R, SIZE))
    a[:, 0, 0], b[:, 0, 3] = 2.0, 5.0
    want = np.zeros((SIZE, SIZE))
    want[0, 3] = 3.0 * 2.0 * 5.0
    np.testing.assert_allclose(change_of_model(name, a, b, [1.0, 1.0]), want, atol=1e-5)


@every_method
@pytest.mark.parametrize("factor", ["a", "b"])
def test_clients_are_weighed_once_in_the_product(name: str, factor: str):
    """Stacks without weights, and weights on one factor of two: by hand, for either factor.

    Two clients with 1 and 3 examples share one factor and hold 1 and 5 times the other, so that
    means of factors and means of products agree: 4 times, or 3 times if clients count equally.
    """
    if name in (FIXED_A if factor == "a" else FIXED_B):
        return  # clients cannot differ in it
    a, b = (np.repeat(x[:1], 2, axis=0) for x in factors(1))
    product = 3.0 * a[0] @ b[0]
    (a if factor == "a" else b)[1] *= 5.0
    mean = {"examples": 4.0, "uniform": 3.0, "norm": (1 * 1 + 5 * 5) / 6}
    want = mean[WEIGHS.get(name, "examples")] * product
    ours = change_of_model(name, a, b, [1.0, 3.0])
    np.testing.assert_allclose(ours, want, atol=2e-6 * np.max(np.abs(want)))


@every_method
@pytest.mark.parametrize(
    ("alpha", "times"), [pytest.param(3.0, 1.5, marks=pytest.mark.slow), (16.0, 8.0)]
)
def test_alpha_is_neither_lost_nor_doubled(name: str, alpha: float, times: float):
    """Elsewhere it was lost on conversion; `test_peft_format` checks the exported files."""
    lora_spec = LoraSpec(targets=SQUARE.targets, rank=R, alpha=alpha)
    a, b = (np.repeat(x[:1], 2, axis=0) for x in factors(1))
    want = times * a[0] @ b[0]
    ours = change_of_model(name, a, b, [1.0, 3.0], lora_spec)
    np.testing.assert_allclose(ours, want, atol=2e-6 * np.max(np.abs(want)))


@pytest.mark.parametrize("name", problems.one_of_each_kind())
def test_method_source_has_no_hard_coded_constants(name: str):
    """Elsewhere rank 360 and alpha 16 were: here rank, alpha and number of clients differ."""
    lora_spec = LoraSpec(targets=(LoraTarget("x", 9, 14, None),), rank=7, alpha=2.5)
    compare(name, lora_spec, ranks_for(name, [7, 2, 5], 7), np.array([3, 5, 2]))


# ------------------------------------------------------------------------------------- invariants

INVARIANTS = {
    "clients with equal adapters leave the product as it is": (
        "test_properties",
        "test_identical_clients_agree_on_their_model",
    ),
    "one client gets its own product back": (
        "test_properties",
        "test_aggregate_of_one_client_is_its_own_model",
    ),
    "the order of clients is irrelevant": (
        "test_properties",
        "test_order_of_clients_does_not_matter",
    ),
    "the stack is the weighted sum of scaled products": (
        "test_flora",
        "test_base_absorbs_the_exact_mean_of_products",
    ),
    "the factors are the best of their rank": (
        "test_svd",
        "test_truncation_error_is_the_discarded_singular_values",
    ),
    "padding is exactly zero before and after training": (
        "test_properties",
        "test_inactive_components_are_exactly_zero",
    ),
    "the scale is applied once": ("test_properties", "test_the_scale_is_applied_exactly_once"),
    "weights of every component sum to one": (
        "test_properties",
        "test_averaging_weights_sum_to_one",
    ),
}


@pytest.mark.parametrize("invariant", INVARIANTS)
def test_every_known_error_has_a_test(invariant: str):
    """The test named above exists once and contains an assertion."""
    module, name = INVARIANTS[invariant]
    tree = ast.parse((pathlib.Path(__file__).parent / f"{module}.py").read_text("utf-8"))
    found = [x for x in tree.body if isinstance(x, ast.FunctionDef) and x.name == name]
    assert len(found) == 1
    called = {ast.unparse(x.func) for x in ast.walk(found[0]) if isinstance(x, ast.Call)}
    asserts = any(isinstance(x, ast.Assert) for x in ast.walk(found[0]))
    assert asserts or any("assert" in call for call in called)


def first_client_only(aggregate, server, clients, cohort, start, result):
    weight = jnp.where(jnp.arange(len(cohort.weight)) == 0, cohort.weight, 0.0)
    return aggregate(server, clients, cohort._replace(weight=weight), start, result)


def transposed(aggregate, *args):
    out = aggregate(*args)
    adapter = {path: LoRA(p.b.mT, p.a.mT) for path, p in out.server.adapter.items()}
    return out._replace(server=out.server._replace(adapter=adapter))


def unweighted(aggregate, server, clients, cohort, start, result):
    equal = cohort._replace(weight=jnp.ones_like(cohort.weight))
    return aggregate(server, clients, equal, start, result)


def weights_on_a_only(aggregate, server, clients, cohort, start, result):
    summed = {path: LoRA(p.a, len(cohort.weight) * p.b) for path, p in result.items()}
    return aggregate(server, clients, cohort, start, summed)


@pytest.mark.parametrize(
    ("error", "test", "options"),
    [
        (first_client_only, test_no_client_is_dropped, ()),
        (transposed, test_products_are_not_transposed, ()),
        (unweighted, test_clients_are_weighed_once_in_the_product, ("a",)),
        (weights_on_a_only, test_clients_are_weighed_once_in_the_product, ("b",)),
        (weights_on_a_only, test_alpha_is_neither_lost_nor_doubled, (3.0, 1.5)),
    ],
)
def test_method_with_the_known_error_is_detected(
    error, test, options, monkeypatch: pytest.MonkeyPatch
):
    method = methods.make("zero_padding", SQUARE)
    broken = functools.partial(error, method.aggregate)
    monkeypatch.setattr(cohorts, "compiled", lambda *_: (method, broken))
    with pytest.raises(AssertionError):
        test("zero_padding", *options)
