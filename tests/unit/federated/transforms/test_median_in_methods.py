"""The coordinate-wise median in methods that normalise over different clients."""

import jax
import numpy as np
import pytest

from fedjax_lora import federated, methods
from fedjax_lora.core.types import ClientParams
from tests._helpers import cohorts
from tests._helpers.cohorts import GLOBAL, assert_close

RANKS = [1, 2, 3, 4, 4, 2]
WEIGHT = np.array([30, 5, 11, 17, 0, 2], np.float32)
PRESENT = WEIGHT > 0
PATH = "head/dense"


def aggregated(spec: str):
    """The server's `b` before and after, the clients' medians, and who trained what: ``[c, R]``."""
    method = methods.make(spec, GLOBAL)
    cohort = cohorts.make_cohort(GLOBAL, RANKS, WEIGHT)
    server = cohorts.on_device(cohorts.make_server(method, GLOBAL))
    start = method.broadcast(server, (), cohort)
    result = cohorts.train(start, cohorts.random_adapter(GLOBAL, 5, len(RANKS)))
    (update,) = federated.transforms.make_transforms(["median"], method)
    begun, trained, mask = (ClientParams(x, {}) for x in (start.adapter, result, start.trainable))
    keys = jax.random.split(jax.random.key(0), len(RANKS))
    sent, weight = update.apply(begun, cohorts.on_device(trained), mask, cohort.weight, keys)
    after = method.aggregate(server, (), cohort._replace(weight=weight), start, sent.adapter)
    trains = np.asarray(start.trainable[PATH].b)[..., 0] & PRESENT[:, None]
    b = np.asarray(result[PATH].b, np.float64)
    medians = np.stack([np.median(b[trains[:, j], j], axis=0) for j in range(GLOBAL.rank)])
    old, new = (np.asarray(x.adapter[PATH].b, np.float64) for x in (server, after.server))
    return old, new, medians, trains


@pytest.mark.parametrize("spec", ["masked_mean", "replication", "fed_plora", "ffa_lora"])
def test_median_is_taken_over_the_owners_of_a_component(spec: str):
    _, new, medians, _ = aggregated(spec)
    assert_close(new, medians, 1e-6)


@pytest.mark.parametrize("spec", ["zero_padding", "zero_padding(weights='uniform')"])
def test_zero_padding_counts_zeros_in_the_median(spec: str):
    _, new, medians, trains = aggregated(spec)
    weight = PRESENT.astype(float) if "uniform" in spec else WEIGHT
    share = (weight / weight.sum()) @ trains  # of a component's owners
    assert share[0] == 1 and np.all(share[1:] < 1)
    assert_close(new, share[:, None] * medians, 1e-6)


def test_fslora_step_scales_with_the_share_of_training_clients():
    old, new, medians, trains = aggregated("fslora")
    share = (PRESENT / PRESENT.sum()) @ trains
    assert_close(new, old + share[:, None] * (medians - old), 1e-6)
