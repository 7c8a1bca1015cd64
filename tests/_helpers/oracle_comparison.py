"""One round of a method against its float64 oracle."""

from typing import Any

import numpy as np

from fedjax_lora.core import registry
from fedjax_lora.lora import LoraSpec
from tests._helpers import cohorts, oracles
from tests._helpers.cohorts import assert_close, play

# Ours is float32 (unit roundoff 6e-8), the oracle float64. An average of at most six terms, and a
# product of at most 6 * 4 components, are good to a few roundoffs of the largest entry. Singular
# subspaces are less certain by the largest value over the gap they are separated by.
TOLERANCE = 2e-6


def compare(spec: str, lora_spec: LoraSpec, rank: Any, weight: Any, seed: int = 3) -> None:
    """One round from a random server, ours against the oracle's."""
    cohort = cohorts.make_cohort(lora_spec, rank, weight, round=seed, seed=seed)
    method, _ = cohorts.compiled(spec, lora_spec)
    server = cohorts.make_server(method, lora_spec, seed)
    played = play(spec, lora_spec, cohort, server=server, seed=seed)
    name, options = registry.parse(spec)
    round = cohorts.oracle_round(spec, lora_spec, server, cohort, played)
    want = oracles.ORACLES[name](round, **options)
    got = cohorts.matrices(lora_spec, played.outcome.server.adapter)
    assert got.keys() == want.pairs.keys()
    uncertain = dict.fromkeys(want.W, TOLERANCE)  # of kernels
    for matrix, pair in want.pairs.items():
        if name in oracles.SINGULAR:
            product = oracles.SINGULAR[name](round, matrix, **options)
            s = np.linalg.svd(product, compute_uv=False)
            compare_singular(matrix, got[matrix], pair, s)
            uncertain[matrix] = beyond(s, oracles.rank(pair)) / np.max(np.abs(want.W[matrix]))
        else:
            assert_close(got[matrix].B, pair.B, TOLERANCE, f"B of {matrix}")
            assert_close(got[matrix].A, pair.A, TOLERANCE, f"A of {matrix}")
    present = np.asarray(cohort.weight) > 0
    ranks = np.asarray(cohort.rank)[present] if want.ranks is None else want.ranks
    np.testing.assert_array_equal(np.asarray(played.outcome.rank)[present], ranks)
    if played.outcome.server.kernels:
        kernels = cohorts.dense(lora_spec, played.outcome.server.kernels)
        for matrix, kernel in want.W.items():
            assert_close(kernels[matrix], kernel, uncertain[matrix], f"W of {matrix}")
    assert_left_out_layers_are_zero(lora_spec, played.outcome.server.adapter)


def beyond(s: np.ndarray, r: int) -> float:
    """The error of what a product has beyond its `r` leading components: that of the components."""
    gap = s[r - 1] - s[r] if r < len(s) else s[r - 1]
    return TOLERANCE * s[0] * max(1.0, s[0] / gap)


def compare_singular(matrix: str, mine: oracles.Pair, want: oracles.Pair, s: np.ndarray) -> None:
    """Equal up to a sign per component, so far as the spectrum ``s`` determines them."""
    gap = np.append(s[:-1] - s[1:], s[-1])
    kept = oracles.rank(want)
    assert not np.any(mine.B[:, kept:])  # what a threshold has cut away
    for j in range(kept):
        product = mine.B[:, : j + 1] @ mine.A[: j + 1]
        uncertain = TOLERANCE * max(1.0, s[0] / gap[j]) if s[j] > 1e-6 * s[0] else TOLERANCE
        assert_close(product, want.B[:, : j + 1] @ want.A[: j + 1], uncertain, f"{matrix} to {j}")
        if s[j] <= 1e-6 * s[0]:
            continue  # a component of size zero has no direction
        sign = 1.0 if mine.B[:, j] @ want.B[:, j] > 0 else -1.0
        uncertain = TOLERANCE * s[0] / min(gap[j], gap[j - 1] if j else np.inf)
        assert_close(sign * mine.B[:, j], want.B[:, j], uncertain, f"B of {matrix}, {j}")
        assert_close(sign * mine.A[j], want.A[j], uncertain, f"A of {matrix}, {j}")


def assert_left_out_layers_are_zero(lora_spec: LoraSpec, adapter: Any) -> None:
    for target in lora_spec.targets:
        for layer, adapted in enumerate(target.layers or ()):
            if not adapted:
                assert not np.any(np.asarray(adapter[target.path].a)[..., layer, :, :])
                assert not np.any(np.asarray(adapter[target.path].b)[..., layer, :, :])
