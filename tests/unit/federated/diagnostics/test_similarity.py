"""Cosines of modules against the modules written out as matrices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import methods
from fedjax_lora.federated.diagnostics import module_cosines
from tests._helpers.cohorts import GLOBAL, R, make_cohort, play

_cosines = jax.jit(module_cosines)
WEIGHT = [3.0, 1.0, 0.0, 2.0, 1.0]


def modules(cohort, start, result):
    """Per client a list of (matrix, index, the module as a vector), for what it trained."""
    found = []
    for k in np.flatnonzero(np.asarray(cohort.weight) > 0):
        own = []
        for target in GLOBAL.targets:
            a, b = (np.asarray(x[k], np.float64) for x in result[target.path])
            mask = np.asarray(start.trainable[target.path].b[k])[..., 0]
            for layer, j in itertools.product(range(len(target.layers or (True,))), range(R)):
                at = (layer,) if target.stack else ()
                if mask[(*at, j)]:
                    module = np.outer(a[(*at, slice(None), j)], b[(*at, j)]).ravel()
                    own.append(((target.path, layer), j, module))
        found.append(own)
    return found


@pytest.mark.parametrize("spec", ["zero_padding", "fed_plora", "fed_plora(indices='layer')"])
def test_cosines_equal_those_of_dense_modules(spec: str):
    cohort = make_cohort(GLOBAL, [1, 4, 4, 2, 3], WEIGHT)  # the absent one comes back as NaN
    played = play(spec, GLOBAL, cohort)
    path = GLOBAL.targets[0].path
    result = jax.tree.map(np.array, played.result)
    result[path].b[1, 0] = 0  # a client's modules of one layer have no direction
    same, cross = [], []
    for one, other in itertools.combinations(modules(cohort, played.start, result), 2):
        for (where, j, x), (there, i, y) in itertools.product(one, other):
            lengths = np.linalg.norm(x) * np.linalg.norm(y)
            if where == there and lengths > 0:
                (same if i == j else cross).append(x @ y / lengths)
    got = _cosines(cohort, played.start, result)
    assert float(got.same) == pytest.approx(np.mean(same), abs=1e-6)
    assert float(got.cross) == pytest.approx(np.mean(cross), abs=1e-6)
    assert abs(np.mean(same) - np.mean(cross)) > 1e-4


def test_unchanged_clients_have_cosine_one():
    """Modules of one index are equal; rescaling or flipping both factors changes nothing."""
    cohort = make_cohort(GLOBAL, [R, R, 2])
    played = play("zero_padding", GLOBAL, cohort)
    got = _cosines(cohort, played.start, played.start.adapter)
    assert float(got.same) == pytest.approx(1, abs=1e-6)
    flipped = jax.tree.map(
        lambda x: x * jnp.array([1, -2, 5.0]).reshape(3, *(1,) * (x.ndim - 1)), played.start.adapter
    )
    again = _cosines(cohort, played.start, flipped)
    np.testing.assert_allclose(again, got, atol=1e-6)


@pytest.mark.parametrize("rank", [[2], [1, 1]])
def test_single_client_has_no_cosine(rank: list[int]):
    cohort = make_cohort(GLOBAL, rank)
    start = play("zero_padding", GLOBAL, cohort).start
    got = _cosines(cohort, start, start.adapter)
    assert np.isnan(got.cross)
    assert np.isnan(got.same) == (len(rank) == 1)


def test_modules_of_one_client_are_not_compared():
    """Copies of one module in one client, noise in the other."""
    cohort = make_cohort(GLOBAL, [R, R])
    method = methods.make("zero_padding", GLOBAL)
    assert method.select is None
    played = play("zero_padding", GLOBAL, cohort)
    result = jax.tree.map(np.array, played.result)
    before = _cosines(cohort, played.start, result)
    for pair in result.values():
        pair.a[0], pair.b[0] = pair.a[0, ..., :1], pair.b[0, ..., :1, :]
    after = _cosines(cohort, played.start, result)
    assert float(after.cross) < 0.9 and not np.isclose(after.cross, before.cross)
