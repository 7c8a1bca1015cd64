"""Reference implementations of every method: NumPy, float64, true ranks, the papers' notation.

Nothing here knows of padding, masks or maximum ranks as data: a client is a list of ragged
matrices ``B: [d, r]`` and ``A: [r, k]`` whose product ``s B A`` it adds to ``W: [d, k]``. Rules are
written out as loops over clients and rows, so that they share no idea with the code under test.

Adding a method to the registry needs a function of its name here, with the same options.
"""

from collections.abc import Callable
from decimal import Decimal
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
    began: dict[str, Pair]  # the same rows before training


class Round(NamedTuple):
    clients: list[Client]
    old: dict[str, Pair]  # the server's R components
    scale: float  # at which the server's components are read
    W: dict[str, np.ndarray]  # base kernels
    number: int  # from 0
    beyond: dict[str, np.ndarray]  # what the server keeps besides, for methods that do


class Answer(NamedTuple):
    pairs: dict[str, Pair]  # R components for the server, or those the method kept
    W: dict[str, np.ndarray]  # base kernels afterwards
    ranks: list[int] | None = None  # of the clients from now on, if they change


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


def rows_kept(new: Pair, old: Pair, empty: str = "keep") -> Pair:
    """What no client sent keeps the server's value, or counts as zero with padding to R."""
    r = rank(new)
    if empty == "zero":
        return padded_with_zeros(new, rank(old))
    return concatenate([new, Pair(old.B[:, r:], old.A[r:])])


def per_matrix(round: Round, rule: Callable[[list[Pair]], Pair], empty: str = "keep") -> Answer:
    pairs = {
        name: rows_kept(rule([c.pairs[name] for c in round.clients]), old, empty)
        for name, old in round.old.items()
    }
    return Answer(pairs, round.W)


def fedit(round: Round, *, weights: str = "examples") -> Answer:
    return per_matrix(round, lambda pairs: combination(pairs, share(round.clients, weights)))


def padded_with_zeros(pair: Pair, r: int) -> Pair:
    d, k = pair.B.shape[0], pair.A.shape[1]
    return concatenate([pair, Pair(np.zeros((d, r - rank(pair))), np.zeros((r - rank(pair), k)))])


def zero_padding(round: Round, *, empty: str = "keep", weights: str = "examples") -> Answer:
    def rule(pairs: list[Pair]) -> Pair:
        top = max(map(rank, pairs))
        return combination(
            [padded_with_zeros(p, top) for p in pairs], share(round.clients, weights)
        )

    return per_matrix(round, rule, empty)


def first_rows(pair: Pair, r: int) -> Pair:
    return Pair(pair.B[:, :r], pair.A[:r])


def hetlora(
    round: Round,
    *,
    norm: str = "client",
    gamma: float = 0.99,
    penalty: float = 0.01,
    min_rank: int = 1,
    empty: str = "keep",
) -> Answer:
    def cut(r: int) -> int:
        return int(Decimal(str(gamma)) * r)

    def tail(pairs: dict[str, Pair]) -> float:
        size = 0.0
        for pair in pairs.values():
            t = cut(rank(pair))
            size += np.linalg.norm(pair.B[:, t:]) * np.linalg.norm(pair.A[t:])
        return size

    def after_training(c: Client) -> int:
        r = rank(next(iter(c.pairs.values())))
        shorter = max(min_rank, cut(r))
        return min(r, shorter) if tail(c.pairs) < tail(c.began) else r

    ranks = [after_training(c) for c in round.clients]
    sent = [
        c._replace(pairs={name: first_rows(p, r) for name, p in c.pairs.items()})
        for c, r in zip(round.clients, ranks, strict=True)
    ]

    def squares(name: str) -> list[float]:
        return [float(np.sum((c.s * c.pairs[name].B @ c.pairs[name].A) ** 2)) for c in sent]

    everywhere = np.sum([squares(name) for name in round.old], axis=0)
    answer = {}
    for name, old in round.old.items():
        sizes = np.sqrt(everywhere if norm == "client" else squares(name))
        weights = [x / sum(sizes) for x in sizes]
        pairs = [c.pairs[name] for c in sent]
        top = max(map(rank, pairs))
        mean = combination([padded_with_zeros(p, top) for p in pairs], weights)
        answer[name] = rows_kept(mean, old, empty)
    return Answer(answer, round.W, ranks)


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
    """Average the donors, copy what a client lacks from that mean, then average all clients."""
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


def leading(M: np.ndarray, r: int, scale: float, sigma: str) -> Pair:
    """``M = U S V^T``; ``sigma`` names our factor: ours ``a`` is the papers' A, ``b`` their B."""
    U, S, Vt = np.linalg.svd(M, full_matrices=False)
    U, S, Vt = U[:, :r], S[:r] / scale, Vt[:r]
    if sigma == "a":
        return Pair(U, S[:, None] * Vt)
    if sigma == "b":
        return Pair(U * S, Vt)
    return Pair(U * np.sqrt(S), np.sqrt(S)[:, None] * Vt)


def hlora(round: Round, *, weights: str = "examples", sigma: str = "a") -> Answer:
    answer = {
        name: leading(mean_of_products(round, name, weights), rank(old), round.scale, sigma)
        for name, old in round.old.items()
    }
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


def raflora_product(round: Round, name: str, empty: str, weights: str) -> np.ndarray:
    """Partition by partition between the rank levels, as the paper has it."""
    p, old = share(round.clients, weights), round.old[name]
    pairs = [c.pairs[name] for c in round.clients]
    M = np.zeros_like(old.B @ old.A)
    low = 0
    for high in sorted({rank(pair) for pair in pairs}):
        chosen = [i for i, pair in enumerate(pairs) if rank(pair) >= high]
        mass = sum(p[i] for i in chosen)
        for i in chosen:
            part = pairs[i].B[:, low:high] @ pairs[i].A[low:high]
            M = M + p[i] / mass * round.clients[i].s * part
        low = high
    if empty == "keep":
        M = M + round.scale * old.B[:, low:] @ old.A[low:]
    return M


def raflora(
    round: Round, *, empty: str = "keep", weights: str = "examples", sigma: str = "both"
) -> Answer:
    answer = {
        name: leading(raflora_product(round, name, empty, weights), rank(old), round.scale, sigma)
        for name, old in round.old.items()
    }
    return Answer(answer, round.W)


def rb_lora_product(round: Round, name: str, weights: str) -> np.ndarray:
    """The mean of zero-padded factors, row `j` multiplied by n over the examples of its owners."""
    p, old = share(round.clients, weights), round.old[name]
    pairs = [Pair(c.pairs[name].B, c.s * c.pairs[name].A) for c in round.clients]
    top = max(map(rank, pairs))
    mean = combination([padded_with_zeros(pair, top) for pair in pairs], p)
    factor = [1 / sum(p[i] for i, q in enumerate(pairs) if rank(q) > j) for j in range(top)]
    balanced = Pair(mean.B * factor, np.array(factor)[:, None] * mean.A)
    full = rows_kept(balanced, Pair(old.B, round.scale * old.A))
    return full.B @ full.A


def rb_lora(round: Round, *, weights: str = "examples", sigma: str = "b") -> Answer:
    answer = {
        name: leading(rb_lora_product(round, name, weights), rank(old), round.scale, sigma)
        for name, old in round.old.items()
    }
    return Answer(answer, round.W)


def florist(
    round: Round, *, threshold: float = 0.9, weights: str = "examples", sigma: str = "b"
) -> Answer:
    answer = {}
    for name, old in round.old.items():
        M = mean_of_products(round, name, weights)
        energy = np.linalg.svd(M, compute_uv=False) ** 2
        if threshold == 1:
            kept = np.linalg.matrix_rank(M)
        else:
            kept = next(q for q in range(1, 99) if energy[:q].sum() >= threshold * energy.sum())
        answer[name] = leading(M, min(kept, rank(old)), round.scale, sigma)
    return Answer(answer, round.W)


def fslora(round: Round, *, indices: str = "layer", weights: str = "uniform") -> Answer:
    """The clients' ``rows`` are their sketches, of each matrix or alike for all."""
    p = share(round.clients, weights)
    answer = {}
    for name, old in round.old.items():
        B, A = old.B.copy(), old.A.copy()
        for i, c in enumerate(round.clients):
            for n, j in enumerate(c.rows[name]):
                B[:, j] += p[i] * (c.pairs[name].B[:, n] - c.began[name].B[:, n])
                A[j] += p[i] * (c.pairs[name].A[n] - c.began[name].A[n])
        answer[name] = Pair(B, A)
    return Answer(answer, round.W)


def lora_a2(round: Round, *, b_rate: float = 5.0, weights: str = "examples") -> Answer:
    """Every client holds all rows; those that it has not chosen have not changed."""
    return fslora(round, weights=weights)


def ffa_lora(round: Round, *, weights: str = "examples") -> Answer:
    mean = masked_mean(round, weights=weights)
    return Answer({n: Pair(mean.pairs[n].B, old.A) for n, old in round.old.items()}, round.W)


def rolora(round: Round, *, weights: str = "examples") -> Answer:
    mean = masked_mean(round, weights=weights)
    if round.number % 2 == 0:
        return Answer({n: Pair(mean.pairs[n].B, old.A) for n, old in round.old.items()}, round.W)
    return Answer({n: Pair(old.B, mean.pairs[n].A) for n, old in round.old.items()}, round.W)


def fedex_lora(round: Round, *, residual_rank: int = 0, weights: str = "examples") -> Answer:
    mean = fedit(round, weights=weights)
    W = dict(round.W)
    for name in round.old:
        r = rank(round.clients[0].pairs[name])
        B, A = first_rows(mean.pairs[name], r)
        residual = mean_of_products(round, name, weights) - round.clients[0].s * B @ A
        if residual_rank:
            B, A = leading(residual, residual_rank, 1.0, "b")
            residual = B @ A
        W[name] = W[name] + residual
    return Answer(mean.pairs, W)


def lora_fair(
    round: Round, *, penalty: float = 1.0, relative: bool = True, weights: str = "examples"
) -> Answer:
    """Least squares with the root of the penalty times the identity below, by an SVD of the whole.

    The relative penalty is in units of the mean eigenvalue of ``s^2 A A^T``.
    """
    mean, answer = fedit(round, weights=weights), {}
    for name, old in round.old.items():
        r = rank(round.clients[0].pairs[name])
        B, A = first_rows(mean.pairs[name], r)
        s = round.clients[0].s
        missed = (mean_of_products(round, name, weights) - s * B @ A).T  # [k, d]
        gain = np.linalg.eigvalsh(s**2 * A @ A.T).mean() if relative else 1.0
        rows = np.vstack([s * A.T, np.sqrt(penalty * gain) * np.eye(r)])
        change = np.linalg.lstsq(rows, np.vstack([missed, np.zeros((r, len(B)))]), rcond=None)[0]
        answer[name] = rows_kept(Pair(B + change.T, A), old)
    return Answer(answer, round.W)


def fedsa_lora(round: Round, *, weights: str = "examples") -> Answer:
    """What the server can know is A; its B is only there to be looked at."""
    return fedit(round, weights=weights)


def fedrora(
    round: Round,
    *,
    largest: str = "magnitude",
    first: float = 1.0,
    coefficient_rate: float = 100.0,
    weights: str = "examples",
) -> Answer:
    """The global model; `fedrora_own` is what matters to clients."""
    return hlora(round, weights=weights)


def fedrora_own(
    round: Round,
    name: str,
    ranks: list[int],
    *,
    largest: str = "magnitude",
    weights: str = "examples",
) -> list[list[tuple[float, np.ndarray]]]:
    """For each client its coefficients and the matrices ``u_k v_k^T`` they belong to, in order."""
    U, _, Vt = np.linalg.svd(mean_of_products(round, name, weights))
    chosen = []
    for c, r in zip(round.clients, ranks, strict=True):
        delta = c.s * c.pairs[name].B @ c.pairs[name].A
        found = []
        for k in range(rank(round.old[name])):
            found.append((float(U[:, k] @ delta @ Vt[k]), np.outer(U[:, k], Vt[k])))
        found.sort(key=lambda one: -abs(one[0]) if largest == "magnitude" else -one[0])
        chosen.append(found[:r])
    return chosen


def truncated(M: np.ndarray, r: int) -> np.ndarray:
    """The best approximation of rank `r`."""
    U, S, Vt = np.linalg.svd(M, full_matrices=False)
    return U[:, :r] * S[:r] @ Vt[:r]


def fedhl_update(round: Round, name: str, weights: str, eps: float) -> np.ndarray:
    """The update at full rank; what clients began with is in their ``began``."""
    before = {n: round.scale * old.B @ old.A for n, old in round.old.items()}
    before = {n: D + round.beyond.get(n, 0) for n, D in before.items()}
    begun = [{n: c.s * c.began[n].B @ c.began[n].A for n in before} for c in round.clients]
    p = share(round.clients, "uniform" if weights == "truncation" else weights)
    if weights == "truncation":
        energy = sum(np.sum(D**2) for D in before.values())
        lost = [sum(np.sum((before[n] - d[n]) ** 2) for n in before) / energy for d in begun]
        p = [1 / (x + eps) for x in lost]
        p = [x / sum(p) for x in p]
    D = before[name]
    for i, c in enumerate(round.clients):
        D = D + p[i] * (c.s * c.pairs[name].B @ c.pairs[name].A - begun[i][name])
    return D


def fedhl(
    round: Round, *, weights: str = "truncation", eps: float = 0.01, sigma: str = "a"
) -> Answer:
    answer, W = {}, {}
    for name, old in round.old.items():
        D = fedhl_update(round, name, weights, eps)
        answer[name] = leading(D, rank(old), round.scale, sigma)
        first = round.W[name] - round.beyond.get(name, 0)
        W[name] = first + D - truncated(D, rank(old))
    return Answer(answer, W)


def fedmomentum(
    round: Round, *, energy: float = 0.9999, weights: str = "examples", sigma: str = "both"
) -> Answer:
    answer, W = {}, dict(round.W)
    for name, old in round.old.items():
        M = mean_of_products(round, name, weights)
        squares = np.linalg.svd(M, compute_uv=False) ** 2
        r, kept = rank(old), len(squares)
        if energy < 1:
            kept = next(q for q in range(1, 99) if squares[:q].sum() >= energy * squares.sum())
        answer[name] = leading(M, r, round.scale, sigma)
        W[name] = W[name] + truncated(M, max(kept, r)) - truncated(M, r)
    return Answer(answer, W)


def eclora_mean(round: Round, name: str, weights: str) -> np.ndarray:
    """The mean product with the error of the round before."""
    return mean_of_products(round, name, weights) + round.beyond.get(name, 0)


def eclora(round: Round, *, weights: str = "examples", sigma: str = "b") -> Answer:
    answer = {
        name: leading(eclora_mean(round, name, weights), rank(old), round.scale, sigma)
        for name, old in round.old.items()
    }
    return Answer(answer, round.W)


def fedsvd_product(round: Round, name: str, weights: str) -> np.ndarray:
    """The mean `B` times the `A` of the round."""
    return masked_mean(round, weights=weights).pairs[name].B @ round.old[name].A


def fedsvd(round: Round, *, weights: str = "examples") -> Answer:
    """``A`` has orthonormal rows, ``B`` the singular values; no scale is in either."""
    answer = {}
    for name, old in round.old.items():
        U, S, Vt = np.linalg.svd(fedsvd_product(round, name, weights), full_matrices=False)
        r = rank(old)
        # `leading` with sigma="b" has ours in `b`, the papers' B; likewise here.
        answer[name] = Pair(U[:, :r] * S[:r], Vt[:r])
    return Answer(answer, round.W)


def rotation(overlap: np.ndarray) -> np.ndarray:
    """The rotation `Q` nearest to the overlap; reflections are turned round (Kabsch)."""
    U, _, Vt = np.linalg.svd(overlap)
    flip = np.eye(len(overlap))
    flip[-1, -1] = np.sign(np.linalg.det(U @ Vt))
    return U @ flip @ Vt


def fedrot_lora(
    round: Round, *, align: str = "alternate", strength: float = 1.0, weights: str = "examples"
) -> Answer:
    in_b = align == "b" or (align == "alternate" and round.number % 2 == 0)

    def rotated(c: Client, name: str) -> Pair:
        (B, A), (first_B, first_A) = c.pairs[name], c.began[name]
        overlap = B.T @ first_B if in_b else A @ first_A.T
        if not np.any(overlap):
            return Pair(B, A)
        Q = rotation(overlap)
        if strength < 1:
            U, _, Vt = np.linalg.svd((1 - strength) * np.eye(len(Q)) + strength * Q)
            Q = U @ Vt
        return Pair(B @ Q, Q.T @ A)

    clients = [c._replace(pairs={n: rotated(c, n) for n in c.pairs}) for c in round.clients]
    return masked_mean(round._replace(clients=clients), weights=weights)


def frlora(round: Round, *, weights: str = "examples") -> Answer:
    """Modules averaged over those who trained them; the change joins the base."""
    W = dict(round.W)
    for name, mean in fed_plora(round, weights=weights).pairs.items():
        old = round.old[name]
        W[name] = W[name] + round.scale * (mean.B @ mean.A - old.B @ old.A)
    return Answer(round.old, W)


def cores_averaged(round: Round, weights: str) -> Answer:
    """The columns of ``a H``, our `A`, averaged over those who trained their head; `B` is fixed."""
    mean = fed_plora(round, weights=weights).pairs
    return Answer({n: Pair(old.B, mean[n].A) for n, old in round.old.items()}, round.W)


def ravan(
    round: Round, *, heads: int = 0, selection: str = "random", weights: str = "examples"
) -> Answer:
    return cores_averaged(round, weights)


def fed_sb(round: Round, *, bases: str = "kernel", weights: str = "uniform") -> Answer:
    return cores_averaged(round, weights)


ORACLES: dict[str, Callable[..., Answer]] = {
    fn.__name__: fn
    for fn in (
        fedit, zero_padding, hetlora, masked_mean, replication, fed_plora, hlora, flexlora, flora,
        raflora, rb_lora, florist, fslora, ffa_lora, rolora, lora_a2, fedex_lora, lora_fair,
        fedsa_lora, fedrora, fedhl, fedmomentum, eclora, fedsvd, fedrot_lora, frlora,
        ravan, fed_sb,
    )
}  # fmt: skip

SINGULAR: dict[str, Callable[..., np.ndarray]] = {
    "hlora": lambda round, name, weights="examples", **_: mean_of_products(round, name, weights),
    "flexlora": lambda round, name, weights="examples", **_: mean_of_products(round, name, weights),
    "florist": lambda round, name, weights="examples", **_: mean_of_products(round, name, weights),
    "raflora": lambda round, name, empty="keep", weights="examples", **_: raflora_product(
        round, name, empty, weights
    ),
    "fedrora": lambda round, name, weights="examples", **_: mean_of_products(round, name, weights),
    "rb_lora": lambda round, name, weights="examples", **_: rb_lora_product(round, name, weights),
    "fedhl": lambda round, name, weights="truncation", eps=0.01, **_: fedhl_update(
        round, name, weights, eps
    ),
    "fedmomentum": lambda round, name, weights="examples", **_: mean_of_products(
        round, name, weights
    ),
    "eclora": lambda round, name, weights="examples", **_: eclora_mean(round, name, weights),
    "fedsvd": lambda round, name, weights="examples", **_: fedsvd_product(round, name, weights),
}
"""The product that is factored: unique up to a sign per component, where values are not tied."""

PRODUCT_SPACE = {"hlora", "flexlora", "flora", "fedrora", "fedmomentum", "eclora"}
"""The result is the mean of the clients' products (its best rank R), however they are factored."""

KERNELS = {"flora", "fedex_lora", "fedhl", "fedmomentum", "frlora"}
"""Methods that change the base."""

CORES = {"ravan", "fed_sb"}
"""Clients train a core between fixed factors."""

HOLD_ALL = {"fed_plora", "lora_a2", "frlora"} | CORES
"""Clients compute with all components, whatever their rank."""

KEEPS_BEYOND = {"fedhl", "eclora"}
"""The server keeps what its adapter cannot hold, as matrices, for later rounds."""

CHOSEN_ROWS = {"fed_plora", "fslora"}
"""Clients send components that they chose, not their first ones."""

CHANGES = {"fslora", "lora_a2"}
"""The server adds the clients' mean change, not renormalised over owners."""

ONE_FACTOR = {"ffa_lora", "rolora", "lora_a2", "fedsvd"}
"""A round trains one of the factors (`b` in round 0)."""
