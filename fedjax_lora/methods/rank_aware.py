"""Methods that weigh each component by its owners and then factor the product again."""

from typing import Literal

from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import Array, LoRA
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.averaging import Weights, combine, owner_shares, owners
from fedjax_lora.methods.base import Cohort, Method
from fedjax_lora.methods.svd import Sigma, refactoring


@checked_options
def raflora(
    spec: LoraSpec,
    *,
    empty: Literal["keep", "drop"] = "keep",
    weights: Weights = "examples",
    sigma: Sigma = "both",
) -> Method:
    """raFLoRA: mean of products with each component weighted over its owners, then SVD.

    ``M = sum_j sum_{k: r_k > j} (n_k / N_j) s_k a_k[:, j] b_k[j, :]`` with ``N_j`` the examples of
    the clients that own component `j`. The paper groups the components between two rank levels of
    the federation into partitions; all components of a partition have the same owners, so this is
    the same sum. With equal ranks it is FlexLoRA. High components are not diluted by clients that
    do not have them, which would let their energy decay geometrically over the rounds.

    Args:
      spec: the adapted layers.
      empty: a component without an owner in the cohort enters with the server's value, or not at
        all. A public re-implementation drops it, the paper's rule is not known; dropping loses in
        one round the energy that the method is there to keep.
      weights: of the means.
      sigma: the factor that carries the singular values; the re-implementation halves them.

    Wu et al., "Preventing Rank Collapse in Federated Low-Rank Adaptation with Client
    Heterogeneity", arXiv 2602.13486.
    """

    def weigh(cohort: Cohort) -> Array:
        return owner_shares(cohort.weight, owners(cohort, spec.rank), weights)

    return refactoring(
        spec,
        weigh,
        name="raflora",
        paper="arXiv 2602.13486",
        sigma=sigma,
        keep=empty == "keep",
    )


@checked_options
def rb_lora(spec: LoraSpec, *, weights: Weights = "examples", sigma: Sigma = "b") -> Method:
    """RB-LoRA: rank-balanced mean of the factors, product, SVD.

    Component `j` of the n-weighted mean of zero-padded factors is multiplied by
    ``n / sum_{k: r_k > j} n_k``, which makes it the masked mean; the product of these factors is
    factored again and each client gets its `r` leading components.

    What the paper's rule is cannot be settled from what is public. The released code computes the
    multiplier and never calls it: its registry runs n-weighted zero padding and then an SVD. Three
    readings are possible: that one (no multiplier), the multiplier on both factors, which is taken
    here from the words "rank-wise components", and the multiplier on one factor only. On random
    updates their models differ from each other by 11 %, 52 % and 88 % of the update. The code's
    ``V`` in place of ``V^T`` is taken as a slip.

    "RB-LoRA: Rank-Balanced Aggregation for Low-Rank Adaptation with Federated Fine-Tuning",
    Findings of EACL 2026, code seonha01/rb-lora.
    """

    def weigh(cohort: Cohort) -> Array:
        return owner_shares(cohort.weight, owners(cohort, spec.rank), weights)

    return refactoring(
        spec,
        weigh,
        name="rb_lora",
        paper="Findings of EACL 2026",
        sigma=sigma,
        join=_mean_factors,
        keep=True,
    )


def _mean_factors(pair: LoRA, gain: Array, share: Array) -> LoRA:
    """The mean of the factors of one layer, the gain taken into `a`."""
    at_scale = {"": LoRA(pair.a * gain[:, None], pair.b)}
    return combine(at_scale, share)[""]
