"""In how many rounds no client of the cohort has the highest rank, in the heavy-tailed mix.

The components between the second highest and the highest rank then have no owner.

    python -m experiments.papers.fed_plora_vs_flexlora.unowned
"""

import numpy as np

from experiments.papers.fed_plora_vs_flexlora import SEEDS, base_of
from fedjax_lora.federated import ranks
from fedjax_lora.federated.sampling import uniform


def rounds_without_the_highest_rank(seed: int) -> int:
    """Count these rounds in a run of the small size, from its ranks and cohorts."""
    fed = base_of("small", "heavy_tail")("sst2").federation
    rank = ranks.allocate(fed.ranks, clients=fed.clients, seed=seed, component_size=1).ranks
    draw, weight = uniform(), np.ones(fed.clients)
    cohorts = (draw(seed, t, weight, fed.cohort) for t in range(fed.rounds))
    return sum(rank[cohort].max() < rank.max() for cohort in cohorts)


if __name__ == "__main__":
    print(*(f"seed {seed}: {rounds_without_the_highest_rank(seed)}" for seed in SEEDS), sep="\n")
