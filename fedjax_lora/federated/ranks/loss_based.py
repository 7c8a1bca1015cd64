"""Loss-based rank allocation of Byun & Lee."""

import numpy as np

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import checked_options
from fedjax_lora.federated.ranks.base import Allocation, Population
from fedjax_lora.federated.ranks.schedule import (
    PromotedInit,
    PromotionOrder,
    RankSchedule,
    ScoreBy,
    ScoredClients,
)


@checked_options
def loss_based(
    population: Population,
    *,
    low: int,
    high: int,
    share: int | float,
    score: ScoreBy = "loss",
    every: int | None = None,
    scored: ScoredClients = "all",
    order: PromotionOrder = "best",
    promoted: PromotedInit = "server",
) -> Allocation:
    """Start all clients at rank ``low``; promote the best-scored share to ``high``.

    A client's score is that of its own model (adapter and head) after local training at rank
    ``low``, on the server's validation examples. Exactly ``ceil(share * N)`` clients are promoted,
    from the second round on; ties go to the smaller id. A client whose training diverges ranks last
    in any order.

    Args:
      population: the federation.
      low: rank before the first scores, and of the clients that are not promoted.
      high: rank of the promoted clients.
      share: share of the scored clients that is promoted, in (0, 1].
      score: mean loss (the abstract says loss-based) or accuracy.
      every: score again before the rounds 1, 1 + every, 1 + 2 every, ... (counted from 1) and
        decide again after each of them; None decides once. Scoring always trains at rank ``low``,
        so that the clients' data are compared and not their ranks.
      scored: ``all``: before the first round all clients train from the initial model and are
        scored, without aggregation. ``cohort``: clients are scored when they first take part (with
        ``every``: the cohorts of the scoring rounds), clients without a score keep ``low``, and the
        share of those scored so far is promoted, so that a client may lose the high rank again as
        other clients are scored. The paper does not say how its ranking works with 10 of 100
        clients per round. The default is ``all``, because only losses of models that started from
        the same parameters compare the clients' data (later cohorts start from a better model), and
        because the right number of clients is promoted at once. It costs ``N / cohort`` rounds of
        training and traffic; ``cohort`` trains the clients it scores twice. The bytes of scoring (a
        model in float32 each way) are part of a round's bytes and are also reported separately.
      order: ``best`` scores first; ``worst`` first and ``random`` are the controls of the paper's
        Fig. 4. Random scores are drawn, and need neither validation examples nor training.
      promoted: what promoted clients receive in the components beyond ``low``, which the paper does
        not say. ``server``: the server's values, with averaging methods its initial random ``a``
        and zero ``b``. ``fresh``: new initial values, drawn when ranks are first raised; for
        methods that fill all components in the first round (Fed-PLoRA, or an SVD), which then lose
        what these components had learned.

    Byun & Lee, "Towards Federated Low-Rank Adaptation of Language Models with Rank Heterogeneity",
    arXiv 2406.17477.

    Raises:
      InputError: ``low`` above ``high``, or a share or ``every`` out of range.
    """
    if low > high:
        raise InputError(f"Rank allocation 'loss_based' needs low <= high, got {low} and {high}.")
    if not 0 < share <= 1:
        raise InputError(f"Rank allocation 'loss_based' needs a share in (0, 1], got {share}.")
    if every is not None and every < 1:
        raise InputError(f"Rank allocation 'loss_based' needs every of at least 1, got {every}.")
    schedule = RankSchedule(
        low=low,
        high=high,
        share=share,
        score=score,
        every=every,
        scored=scored,
        order=order,
        promoted=promoted,
        seed=population.seed,
    )
    return Allocation(np.full(population.clients, low), schedule)
