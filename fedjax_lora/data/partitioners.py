"""Ways to deal examples to clients, each a factory whose keyword arguments are its options.

A factory returns a function `(labels, groups, clients, rng) -> Assignment` that names the client of
every example; `partition` calls it and sees to what all ways share.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedjax_lora.core.errors import InputError


class Assignment(NamedTuple):
    """The client of each example, `int[E]`, and the high-quality clients, `bool[N]`, if any."""

    owner: np.ndarray
    quality: np.ndarray | None = None


Partitioner = Callable[[np.ndarray, np.ndarray | None, int, np.random.Generator], Assignment]


def iid() -> Partitioner:
    """Equal shares (to within one example) of the shuffled data."""

    def assign(labels, groups, clients, rng):
        return Assignment(rng.permutation(np.arange(len(labels)) % clients))

    return assign


def dirichlet(*, alpha: float = 0.5) -> Partitioner:
    """Label skew: each class is shared out in proportions drawn from Dirichlet(alpha).

    Hsu, Qi & Brown, https://arxiv.org/abs/1909.06335; Yurochkin et al.,
    https://arxiv.org/abs/1905.12022. Small alpha: a class sits with few clients.
    """
    _positive("dirichlet", alpha=alpha)

    def assign(labels, groups, clients, rng):
        return Assignment(_label_skew(need_classes(labels, "dirichlet"), clients, alpha, rng))

    return assign


def shards(*, per_client: int = 2) -> Partitioner:
    """Pathological skew: sorted by label, cut into equal shards, `per_client` to each client.

    McMahan et al., https://arxiv.org/abs/1602.05629.
    """
    if not isinstance(per_client, int) or per_client < 1:
        raise InputError(
            f"shards(per_client={per_client!r}): per_client is a whole number above 0."
        )

    def assign(labels, groups, clients, rng):
        count = clients * per_client
        if count > len(labels):
            raise InputError(
                f"shards(per_client={per_client}) cuts {count} shards for {clients} clients, but "
                f"there are {len(labels)} examples; ask for fewer."
            )
        shuffled = rng.permutation(len(labels))  # examples of one class are in random order
        order = shuffled[np.argsort(labels[shuffled], kind="stable")]
        owner = np.empty(len(labels), np.int64)
        shard_owner = rng.permutation(np.arange(count) % clients)
        for client, shard in zip(shard_owner, np.array_split(order, count), strict=True):
            owner[shard] = client
        return Assignment(owner)

    return assign


def quantity(*, alpha: float = 0.5) -> Partitioner:
    """Quantity skew: client sizes in proportions drawn from Dirichlet(alpha), classes at random.

    Li et al., https://arxiv.org/abs/2102.02079.
    """
    _positive("quantity", alpha=alpha)

    def assign(labels, groups, clients, rng):
        return Assignment(_label_skew(np.zeros(len(labels), np.int64), clients, alpha, rng))

    return assign


def natural() -> Partitioner:
    """The data's own clients, by its group column; fewer clients get whole groups round-robin.

    With as many clients as groups, client `i` is group `i` (in the order of the codes).
    """

    def assign(labels, groups, clients, rng):
        if groups is None:
            raise InputError(
                "The partition 'natural' needs a group column and this task has none; "
                "choose another partition, or a file(...) task with group='column'."
            )
        names, code = np.unique(groups, return_inverse=True)
        if clients > len(names):
            raise InputError(
                f"The partition 'natural' has {len(names)} groups for {clients} clients; "
                f"ask for at most {len(names)} clients."
            )
        return Assignment(code % clients)

    return assign


def quality(
    *, share: float = 0.1, alpha_high: float = 100.0, alpha_low: float = 0.3
) -> Partitioner:
    """Quality skew: a few clients with a balanced class mix, all others with a skewed one.

    Byun & Lee, https://arxiv.org/abs/2406.17477. They draw both kinds from Dirichlet distributions
    whose parameters they do not publish: the defaults are this library's choice. Here the two
    kinds get random parts of the data in proportion to their numbers, and each part is dealt by
    label skew, so that "balanced" means the mix of the whole data set.

    Args:
      share: part of the clients that are of high quality; at least one is.
      alpha_high: Dirichlet parameter of the high-quality clients.
      alpha_low: Dirichlet parameter of the others.
    """
    _positive("quality", share=share, alpha_high=alpha_high, alpha_low=alpha_low)
    if share > 1:
        raise InputError(f"quality(share={share}): a share is at most 1.")

    def assign(labels, groups, clients, rng):
        labels = need_classes(labels, "quality")
        high = rng.permutation(clients) < max(1, round(share * clients))
        part = rng.permutation(np.arange(len(labels)) % clients)
        owner = np.empty(len(labels), np.int64)
        for kind, alpha in ((high, alpha_high), (~high, alpha_low)):
            ids, own = np.flatnonzero(kind), kind[part]
            if len(ids):
                owner[own] = ids[_label_skew(labels[own], len(ids), alpha, rng)]
        return Assignment(owner, high)

    return assign


PARTITIONERS: dict[str, Callable[..., Partitioner]] = {
    way.__name__: way for way in (iid, dirichlet, shards, quantity, natural, quality)
}


def _label_skew(labels: np.ndarray, clients: int, alpha: float, rng) -> np.ndarray:
    """Owner of each example, `int64[E]`: every class cut at shares drawn from Dirichlet(alpha)."""
    owner = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        # Rounding the cumulated shares keeps the sum exact, whatever the shares are.
        cuts = np.rint(np.cumsum(simplex(alpha, clients, rng))[:-1] * len(own)).astype(np.int64)
        for client, part in enumerate(np.split(own, np.minimum(cuts, len(own)))):
            owner[part] = client
    return owner


def simplex(alpha: float, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `float64[size]` from the symmetric Dirichlet(alpha), for any finite positive alpha.

    Computed with logarithms: a plain draw is 0/0 for tiny alpha, where all gamma variates
    underflow. For alpha < 1 it uses Gamma(alpha) = Gamma(alpha + 1) * U^(1 / alpha).
    """
    if alpha >= 1:
        log = np.log(rng.standard_gamma(alpha, size))
        log -= log.max()
    else:
        scaled = alpha * np.log(rng.standard_gamma(alpha + 1, size)) + np.log1p(-rng.random(size))
        with np.errstate(over="ignore"):  # the quotient may be -inf; its exponential is 0
            log = (scaled - scaled.max()) / alpha
    share = np.exp(log)
    return share / share.sum()


def need_classes(labels: np.ndarray, what: str) -> np.ndarray:
    """Return the labels, or refuse scores on behalf of `what`."""
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"{what} needs class labels, and these are {labels.dtype} scores (a regression task); "
            "use iid, quantity, shards or natural."
        )
    return labels


def _positive(name: str, **options: float) -> None:
    for option, value in options.items():
        if not (isinstance(value, int | float) and 0 < value < np.inf):
            raise InputError(f"{name}({option}={value!r}): {option} must be a number above 0.")
