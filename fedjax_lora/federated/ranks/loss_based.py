"""Loss-based rank allocation of Byun & Lee."""

import numpy as np

from fedjax_lora.core.errors import InputError
from fedjax_lora.federated.ranks.base import Allocation, Population
from fedjax_lora.federated.ranks.schedule import (
    PromotedInit,
    PromotionOrder,
    RankSchedule,
    ScoreBy,
    ScoredClients,
)


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
    """Everybody begins with ``low``; after the first round the best share gets ``high``.

    A client's score is that of its own model (adapter and head) after a local training at rank
    ``low``, on the server's validation examples. Exactly ``ceil(share * N)`` clients are promoted,
    from the second round on; ties go to the smaller id. A client whose training breaks down comes
    last in any order.

    Args:
      population: the federation.
      low: rank before the first scores, and of those who are not promoted.
      high: rank of the promoted clients.
      share: how many of the scored clients are promoted, in (0, 1].
      score: mean loss (the abstract says loss-based) or accuracy.
      every: score again before the rounds 1, 1 + every, 1 + 2 every, ... (counted from 1), always
        at rank ``low`` so that data are compared and not ranks, and decide anew after each of them;
        None decides once.
      scored: ``all``: all clients train from the initial model and are scored, nothing is
        aggregated, then the first round begins. ``cohort``: clients are scored when they first take
        part (with ``every``: those who take part in the scoring rounds), unscored ones keep
        ``low``, and the share of those scored so far is promoted, so that a client may lose the
        high rank again while others are still to come. The paper does not say how 10 of 100 clients
        per round fit its ranking. The default is ``all``, because only losses of models that began
        at the same point compare the clients' data (later cohorts begin at a better model), and
        because the right number is promoted at once. It costs ``N / cohort`` rounds of training and
        traffic; ``cohort`` trains those it scores twice. The bytes of scoring (a model in float32
        each way) are part of a round's bytes, and told apart as well.
      order: ``best`` scores first; ``worst`` first and ``random`` are the controls of the paper's
        Fig. 4. Random scores are drawn: they need no validation examples and cost nothing.
      promoted: what promoted clients receive in the components beyond ``low``, which the paper does
        not say. ``server``: what the server holds there, with averaging methods its initial random
        ``a`` and zero ``b``. ``fresh``: those values are drawn anew when ranks are first raised,
        for methods that fill all components in the first round too (Fed-PLoRA, or an SVD), which
        then lose what they learned there.

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
    review = RankSchedule(
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
    return Allocation(np.full(population.clients, low), review)
