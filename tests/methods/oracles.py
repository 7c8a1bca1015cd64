"""Every method once more: NumPy, float64, true ranks, the papers' own notation.

Nothing here knows of padding, masks or maximum ranks as data: a client is a list of ragged
matrices ``B: [d, r]`` and ``A: [r, k]`` whose product ``s B A`` it adds to ``W: [d, k]``. Rules are
written out as loops over clients and rows, so that they share no idea with the code under test.

Adding a method to the registry needs a function of its name here, with the same options.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Pair(NamedTuple):
    B: np.ndarray  # [d, r]
    A: np.ndarray  # [r, k]


class Client(NamedTuple):
    """A participant: absent clients are not in the list at all."""

    n: float  # number of examples
    s: float  # scale of its product
    pairs: dict[str, Pair]  # by name of the matrix, all of the client's rank
    rows: dict[str, list[int]]  # which of the R components these are


class Round(NamedTuple):
    clients: list[Client]
    old: dict[str, Pair]  # the server's R components
    scale: float  # at which the server's components are read
    W: dict[str, np.ndarray]  # base kernels


class Answer(NamedTuple):
    pairs: dict[str, Pair]  # R components for the server
    W: dict[str, np.ndarray]  # base kernels afterwards


def share(clients: list[Client], weights: str) -> list[float]:
    sizes = [1.0 if weights == "uniform" else c.n for c in clients]
    return [x / sum(sizes) for x in sizes]


def rank(pair: Pair) -> int:
    return pair.A.shape[0]


def row(pair: Pair, j: int) -> Pair:
    return Pair(pair.B[:, j : j + 1], pair.A[j : j + 1])


def concatenate(pairs: list[Pair]) -> Pair:
    return Pair(np.hstack([p.B for p in pairs]), np.vstack([p.A for p in pairs]))


def combination(pairs: list[Pair], weights: list[float]) -> Pair:
    return Pair(
        sum(w * p.B for w, p in zip(weights, pairs, strict=True)),
        sum(w * p.A for w, p in zip(weights, pairs, strict=True)),
    )


def rows_kept(new: Pair, old: Pair) -> Pair:
    """What nobody sent stays as the server had it."""
    r = rank(new)
    return concatenate([new, Pair(old.B[:, r:], old.A[r:])])


def per_matrix(round: Round, rule: Callable[[list[Pair]], Pair]) -> Answer:
    pairs = {
        name: rows_kept(rule([c.pairs[name] for c in round.clients]), old)
        for name, old in round.old.items()
    }
    return Answer(pairs, round.W)


def fedit(round: Round, *, weights: str = "examples") -> Answer:
    return per_matrix(round, lambda pairs: combination(pairs, share(round.clients, weights)))


def padded_with_zeros(pair: Pair, r: int) -> Pair:
    d, k = pair.B.shape[0], pair.A.shape[1]
    return concatenate([pair, Pair(np.zeros((d, r - rank(pair))), np.zeros((r - rank(pair), k)))])


def zero_padding(round: Round, *, weights: str = "examples") -> Answer:
    def rule(pairs: list[Pair]) -> Pair:
        top = max(map(rank, pairs))
        return combination(
            [padded_with_zeros(p, top) for p in pairs], share(round.clients, weights)
        )

    return per_matrix(round, rule)


def hetlora(round: Round, *, norm: str = "client") -> Answer:
    def squares(name: str) -> list[float]:
        return [
            float(np.sum((c.s * c.pairs[name].B @ c.pairs[name].A) ** 2)) for c in round.clients
        ]

    everywhere = np.sum([squares(name) for name in round.old], axis=0)
    answer = {}
    for name, old in round.old.items():
        sizes = np.sqrt(everywhere if norm == "client" else squares(name))
        weights = [x / sum(sizes) for x in sizes]
        pairs = [c.pairs[name] for c in round.clients]
        top = max(map(rank, pairs))
        mean = combination([padded_with_zeros(p, top) for p in pairs], weights)
        answer[name] = rows_kept(mean, old)
    return Answer(answer, round.W)


def masked_mean(round: Round, *, weights: str = "examples") -> Answer:
    p = share(round.clients, weights)

    def rule(pairs: list[Pair]) -> Pair:
        rows = []
        for j in range(max(map(rank, pairs))):
            owners = [i for i, pair in enumerate(pairs) if rank(pair) > j]
            mass = sum(p[i] for i in owners)
            rows.append(
                combination([row(pairs[i], j) for i in owners], [p[i] / mass for i in owners])
            )
        return concatenate(rows)

    return per_matrix(round, rule)


def replication(
    round: Round, *, donors: str = "owners", inner: str = "outer", weights: str = "examples"
) -> Answer:
    """Average the donors, copy what a client lacks from that mean, then average everybody."""
    outer = share(round.clients, weights)
    giving = [1.0] * len(outer) if inner == "uniform" else outer

    def mean_of(chosen: list[int], pairs: list[Pair]) -> Pair:
        mass = sum(giving[i] for i in chosen)
        return combination([pairs[i] for i in chosen], [giving[i] / mass for i in chosen])

    def rule(pairs: list[Pair]) -> Pair:
        ranks = [rank(pair) for pair in pairs]
        top = max(ranks)
        highest = mean_of([i for i, r in enumerate(ranks) if r == top], pairs)
        padded = []
        for pair in pairs:
            missing = []
            for j in range(rank(pair), top):
                if donors == "highest":
                    missing.append(row(highest, j))
                else:
                    owners = [i for i, r in enumerate(ranks) if r > j]
                    rows = [row(q, j) if rank(q) > j else q for q in pairs]
                    missing.append(mean_of(owners, rows))
            padded.append(concatenate([pair, *missing]))
        return combination(padded, outer)

    return per_matrix(round, rule)


def fed_plora(
    round: Round, *, selection: str = "random", indices: str = "global", weights: str = "uniform"
) -> Answer:
    """Modules averaged over those who trained them; the sets are the clients' ``rows``."""
    p = share(round.clients, weights)
    answer = {}
    for name, old in round.old.items():
        modules = []
        for j in range(rank(old)):
            sent = [
                (p[i], row(c.pairs[name], c.rows[name].index(j)))
                for i, c in enumerate(round.clients)
                if j in c.rows[name]
            ]
            if not sent:
                modules.append(row(old, j))
                continue
            mass = sum(w for w, _ in sent)
            modules.append(combination([m for _, m in sent], [w / mass for w, _ in sent]))
        answer[name] = concatenate(modules)
    return Answer(answer, round.W)


def mean_of_products(round: Round, name: str, weights: str) -> np.ndarray:
    """The ideal update, ``sum_i p_i s_i B_i A_i``."""
    p = share(round.clients, weights)
    return sum(p[i] * c.s * c.pairs[name].B @ c.pairs[name].A for i, c in enumerate(round.clients))


def hlora(round: Round, *, weights: str = "examples", sigma: str = "a") -> Answer:
    """``M = U S V^T``; ``sigma`` names our factor: ours ``a`` is the papers' A, ``b`` their B."""
    answer = {}
    for name, old in round.old.items():
        U, S, Vt = np.linalg.svd(mean_of_products(round, name, weights), full_matrices=False)
        r = rank(old)
        U, S, Vt = U[:, :r], S[:r] / round.scale, Vt[:r]
        if sigma == "a":
            answer[name] = Pair(U, S[:, None] * Vt)
        elif sigma == "b":
            answer[name] = Pair(U * S, Vt)
        else:
            answer[name] = Pair(U * np.sqrt(S), np.sqrt(S)[:, None] * Vt)
    return Answer(answer, round.W)


def flexlora(round: Round, *, weights: str = "examples", sigma: str = "b") -> Answer:
    return hlora(round, weights=weights, sigma=sigma)


def flora(round: Round, *, weights: str = "examples", init: str = "kaiming") -> Answer:
    p = share(round.clients, weights)
    W = dict(round.W)
    for name in round.old:
        weighted = [
            Pair(c.pairs[name].B, p[i] * c.s * c.pairs[name].A) for i, c in enumerate(round.clients)
        ]
        stacked = concatenate(weighted)
        W[name] = W[name] + stacked.B @ stacked.A
    nothing = {name: Pair(0 * old.B, 0 * old.A) for name, old in round.old.items()}
    return Answer(nothing, W)


ORACLES: dict[str, Callable[..., Answer]] = {
    "fedit": fedit,
    "zero_padding": zero_padding,
    "hetlora": hetlora,
    "masked_mean": masked_mean,
    "replication": replication,
    "fed_plora": fed_plora,
    "hlora": hlora,
    "flexlora": flexlora,
    "flora": flora,
}

SINGULAR = {"hlora", "flexlora"}
"""Factors are singular vectors: unique up to a sign per component, where values are not tied."""

PRODUCT_SPACE = {"hlora", "flexlora", "flora"}
"""The result depends on the clients' products only, not on how they are factored."""
