"""Partitioners, which assign examples to clients; each is a factory with its options as keywords.

A factory returns a function `(labels, groups, clients, rng) -> Assignment`. The function
`fedjax_lora.data.partition` calls it and ensures the properties that all partitions share.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import checked_options


class Assignment(NamedTuple):
    """The client of each example.

    Attributes:
      owner: `int[E]` client ids.
      quality: `bool[N]`, the high-quality clients, or None.
    """

    owner: np.ndarray
    quality: np.ndarray | None = None


Partitioner = Callable[[np.ndarray, np.ndarray | None, int, np.random.Generator], Assignment]
"""`(labels, groups, clients, rng) -> Assignment`; `groups` is the natural client of each example"""


def iid() -> Partitioner:
    """Assign equal shares (to within one example) of the shuffled data."""

    def assign(labels, groups, clients, rng):
        return Assignment(rng.permutation(np.arange(len(labels)) % clients))

    return assign


@checked_options
def dirichlet(*, alpha: float = 0.5, balanced: bool = False) -> Partitioner:
    """Label skew: split each class over the clients in proportions drawn from Dirichlet(alpha).

    Hsu, Qi & Brown, https://arxiv.org/abs/1909.06335; Yurochkin et al.,
    https://arxiv.org/abs/1905.12022.

    Args:
      alpha: above 0; the smaller, the fewer clients share a class.
      balanced: give all clients equally many examples (to within one), each with a class mix drawn
        from Dirichlet(alpha), as far as the classes last (Acar et al.,
        https://arxiv.org/abs/2111.04263).
    """
    _positive("dirichlet", alpha=alpha)
    skew = _balanced_label_skew if balanced else _label_skew

    def assign(labels, groups, clients, rng):
        return Assignment(skew(need_classes(labels, "dirichlet"), clients, alpha, rng))

    return assign


@checked_options
def shards(*, per_client: int = 2) -> Partitioner:
    """Pathological skew: sort by label, cut into equal shards, assign some to each client.

    McMahan et al., https://arxiv.org/abs/1602.05629.

    Args:
      per_client: shards of each client.
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
        shuffled = rng.permutation(len(labels))  # random order within a class
        order = shuffled[np.argsort(labels[shuffled], kind="stable")]
        owner = np.empty(len(labels), np.int64)
        shard_owner = rng.permutation(np.arange(count) % clients)
        for client, shard in zip(shard_owner, np.array_split(order, count), strict=True):
            owner[shard] = client
        return Assignment(owner)

    return assign


@checked_options
def quantity(*, alpha: float = 0.5) -> Partitioner:
    """Quantity skew: draw client sizes from Dirichlet(alpha), independently of the classes.

    Li et al., https://arxiv.org/abs/2102.02079.

    Args:
      alpha: above 0; the smaller, the more the sizes differ.
    """
    _positive("quantity", alpha=alpha)

    def assign(labels, groups, clients, rng):
        return Assignment(_label_skew(np.zeros(len(labels), np.int64), clients, alpha, rng))

    return assign


def natural() -> Partitioner:
    """Natural clients, from the data's group column.

    With as many clients as groups, client `i` is group `i` (in the order of the codes); fewer
    clients are assigned whole groups round-robin.
    """

    def assign(labels, groups, clients, rng):
        if groups is None:
            raise InputError(
                "The partition 'natural' needs a group column and this task has none; "
                "choose another partition, or a file(...) task with group='column' or "
                "client_files=True."
            )
        names, code = np.unique(groups, return_inverse=True)
        if clients > len(names):
            raise InputError(
                f"The partition 'natural' has {len(names)} groups for {clients} clients; "
                f"ask for at most {len(names)} clients."
            )
        return Assignment(code % clients)

    return assign


@checked_options
def quality(
    *, share: float = 0.1, alpha_high: float = 100.0, alpha_low: float = 0.3
) -> Partitioner:
    """Quality skew: a few clients with a balanced class mix, all others with a skewed one.

    Byun & Lee, https://arxiv.org/abs/2406.17477. The paper draws both kinds of clients from
    Dirichlet distributions without publishing their parameters; the defaults are this library's
    choice. Here each kind receives a random part of the data in proportion to its number of
    clients, and each part is assigned by label skew, so that a balanced mix is that of the whole
    data set.

    Args:
      share: share of the clients that are of high quality; at least one client is.
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
            ids, examples = np.flatnonzero(kind), kind[part]
            if len(ids):
                owner[examples] = ids[_label_skew(labels[examples], len(ids), alpha, rng)]
        return Assignment(owner, high)

    return assign


PARTITIONERS: dict[str, Callable[..., Partitioner]] = {
    partitioner.__name__: partitioner
    for partitioner in (iid, dirichlet, shards, quantity, natural, quality)
}
"""Factories of partitioners by name; options are their keyword arguments."""


def _label_skew(
    labels: np.ndarray, clients: int, alpha: float, rng: np.random.Generator
) -> np.ndarray:
    """Split every class in shares drawn from Dirichlet(alpha); the owner of each example."""
    owner = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        examples = rng.permutation(np.flatnonzero(labels == label))
        counts = round_shares(simplex(alpha, clients, rng), len(examples), rng)
        owner[examples] = np.repeat(np.arange(clients), counts)
    return owner


def _balanced_label_skew(
    labels: np.ndarray, clients: int, alpha: float, rng: np.random.Generator
) -> np.ndarray:
    """Give equally many examples to all clients, with class mixes from Dirichlet(alpha).

    The mixes are scaled to the numbers of examples of the classes and clients (Sinkhorn); what is
    left over by rounding moves from the clients with too many examples to those with too few.
    """
    if not len(labels):
        return np.empty(0, np.int64)
    _, code, size = np.unique(labels, return_inverse=True, return_counts=True)
    mix = np.stack([simplex(alpha, len(size), rng) for _ in range(clients)]) + 1e-12
    for _ in range(200):
        mix *= size / mix.sum(axis=0)
        mix *= len(labels) / clients / mix.sum(axis=1, keepdims=True)
    owner = np.empty(len(labels), np.int64)
    for label, count in enumerate(size):
        examples = rng.permutation(np.flatnonzero(code == label))
        counts = round_shares(mix[:, label] / mix[:, label].sum(), count, rng)
        owner[examples] = np.repeat(np.arange(clients), counts)
    room = np.bincount(rng.permutation(np.arange(len(labels)) % clients), minlength=clients)
    room = room[rng.permutation(clients)]
    order = rng.permutation(len(labels))
    place = np.empty(len(labels), np.int64)  # of an example among those of its client, at random
    by_client = order[np.argsort(owner[order], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=clients))[:-1]])
    place[by_client] = np.arange(len(labels)) - starts[owner[by_client]]
    extra = rng.permutation(np.flatnonzero(place >= room[owner]))
    lacking = np.maximum(room - np.bincount(owner, minlength=clients), 0)
    owner[extra] = np.repeat(np.arange(clients), lacking)
    return owner


def round_shares(shares: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Round ``shares * size`` at random to whole numbers that sum to ``size``.

    Each count is its share rounded down or up, and its expectation is exactly the share, so that no
    client gains by its number: rounding the cumulative shares in the order of the clients gives
    the examples of all classes to the same clients where a class has fewer examples than there are
    clients. This is systematic sampling (Madow, 1949) in a random order. It adds less noise than a
    multinomial draw, and equal shares of a multiple of the clients stay equal.

    Args:
      shares: ``float64[N]``, sum 1.
      size: the sum of the result.
      rng: source of the order and of the offset.

    Returns:
      ``int64[N]``.
    """
    order = rng.permutation(len(shares))
    ends = np.floor(np.cumsum(shares[order]) * size + rng.random()).astype(np.int64)
    ends[-1] = size
    counts = np.empty(len(shares), np.int64)
    counts[order] = np.diff(np.minimum(ends, size), prepend=0)
    return counts


def simplex(alpha: float, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `float64[size]` from the symmetric Dirichlet(alpha), for any finite positive alpha.

    The computation uses logarithms, because a plain draw is 0/0 for tiny alpha, where all gamma
    variates underflow. For alpha < 1 it uses Gamma(alpha) = Gamma(alpha + 1) * U^(1 / alpha).
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


def need_classes(labels: np.ndarray, subject: str) -> np.ndarray:
    """Return class labels as an array.

    Args:
      labels: `int[E]` classes or `float[E]` scores.
      subject: what needs classes, for the message.

    Raises:
      InputError: the labels are scores.
    """
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"{subject} needs class labels, and these are {labels.dtype} scores (a regression "
            "task); use iid, quantity, shards or natural."
        )
    return labels


def _positive(name: str, **options: float) -> None:
    for option, value in options.items():
        if not (isinstance(value, int | float) and 0 < value < np.inf):
            raise InputError(f"{name}({option}={value!r}): {option} must be a number above 0.")
