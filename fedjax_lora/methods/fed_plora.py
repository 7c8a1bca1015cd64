"""Fed-PLoRA: LoRA as parallel one-rank modules, of which each client trains a few per round."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora
from fedjax_lora.core import trees
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import Adapter, Array, Gain, Key, LoRA
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.averaging import Weights, combine, keep_unowned, owner_shares
from fedjax_lora.methods.base import (
    FLOAT_BYTES,
    INDEX_BYTES,
    AggregateResult,
    ClientInit,
    Cohort,
    Method,
    ServerState,
    Traffic,
    plain_server,
    whole_start,
)

Selection = Literal["random", "prefix", "round_robin", "importance"]
Indices = Literal["global", "layer"]


def select_modules(cohort: Cohort, key: Key, importance: Array, *, selection: Selection) -> Array:
    """Which `r` of the `R` modules each client trains this round: ``bool[c, R]``.

    ``random`` draws them uniformly without repetition from (key, client id); ``prefix`` takes the
    first `r`; ``round_robin`` takes `r` in a row, moving on by `r` every round, from a position
    that differs between clients; ``importance`` takes the `r` largest of ``importance: [R]``.
    """
    rank, ids, round, most = cohort.rank, cohort.id, cohort.round, importance.shape[0]
    order = jnp.broadcast_to(jnp.arange(most)[None], (rank.shape[0], most))
    if selection == "random":
        score = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (most,)))(ids)
        order = jnp.argsort(jnp.argsort(score, axis=1), axis=1)
    elif selection == "importance":
        order = jnp.broadcast_to(jnp.argsort(jnp.argsort(-importance))[None], order.shape)
    elif selection == "round_robin":
        order = (order - ((round + ids) * rank)[:, None]) % most
    return order < rank[:, None]


def module_norms(pair: LoRA) -> Array:
    """``||a_j b_j||_F`` of each one-rank module, ``[..., R]``."""
    return jnp.linalg.norm(pair.a, axis=-2) * jnp.linalg.norm(pair.b, axis=-1)


@checked_options
def fed_plora(
    spec: LoraSpec,
    *,
    selection: Selection = "random",
    indices: Indices = "global",
    weights: Weights = "uniform",
) -> Method:
    """Fed-PLoRA with Select-N-Fold: all `R` modules act, each client trains `r` of them.

    Client `k` draws a set ``K_k`` of ``r_k`` of the `R` modules, folds the others into its frozen
    weight, ``W + sum_{j not in K_k} s a_j b_j``, and trains those in ``K_k``; module `j` becomes
    the mean over the clients that trained it, and keeps its value bit for bit if none did.
    Folding is done here as *active but not trainable*, the same function without a copy of the
    base. Every client begins at the global model, so there is no initialisation noise.

    Fed-PrsLoRA is the same method with the rank-stabilised scale ``alpha/sqrt(R)`` (config
    ``lora.scale``).

    The identity needs one scale for all clients; under a per-client rule such as ``alpha/r`` the
    server's scale is used, since a client holds all `R` modules.

    Args:
      spec: the adapted layers.
      selection: how the modules are chosen, see `select_modules`. The paper draws them at random
        and compares other rules that are not known here. ``importance`` goes by the norm of the
        server's module, which at the start is zero for all (the first `r` are taken), and keeps
        choosing what has been trained before.
      indices: one set for all layers, or one per layer. The paper does not say; one set
        costs `r` indices of traffic and lets modules of different layers train together. Indices
        are sent only with ``random``: the other rules follow from what the server knows.
      weights: of the mean over a module's owners. The paper's bound is written with equal ones.

    Zhang, Hu, Xu, "Fed-PLoRA", arXiv 2602.16936.
    """

    def broadcast(server: ServerState, clients: Any, cohort: Cohort) -> ClientInit:
        size = {path: module_norms(pair) for path, pair in server.adapter.items()}  # [(L,) R]
        chosen = chosen_modules(spec, size, cohort, selection=selection, indices=indices)
        return whole_start(spec, server, cohort, lora.factor_mask(chosen))

    def aggregate(
        server: ServerState, clients: Any, cohort: Cohort, start: ClientInit, result: Adapter
    ) -> AggregateResult:
        trained = {path: mask.b[..., 0] for path, mask in start.trainable.items()}
        adapter = mean_of_trained(server, cohort, trained, result, weights)
        return AggregateResult(server._replace(adapter=adapter), clients, cohort.rank)

    sets = 0 if selection != "random" else index_sets(spec, indices)

    def traffic(server: ServerState, rank: np.ndarray, round: int) -> Traffic:
        rank = rank.astype(np.int64)
        one = spec.component_size * FLOAT_BYTES
        up, exact = rank * (one + sets * INDEX_BYTES), rank * sets * INDEX_BYTES
        return Traffic(up=up, down=np.full_like(up, spec.rank * one), exact=exact)

    return Method(
        name="fed_plora",
        paper="arXiv 2602.16936",
        spec=spec,
        init=plain_server,
        broadcast=broadcast,
        aggregate=aggregate,
        traffic=traffic,
        averages=True,
        late=("changes",),
    )


def mean_of_trained(
    server: ServerState, cohort: Cohort, trained: Gain, result: Adapter, weights: Weights
) -> Adapter:
    """Each component's mean over those who trained it; the server's where nobody did.

    Args:
      server: before the round.
      cohort: the clients.
      trained: which components each of them has trained, ``bool[c, (L,) R]`` per path.
      result: their adapters.
      weights: of the means.
    """
    owned = {path: mask & trees.expand(cohort.weight > 0, mask) for path, mask in trained.items()}
    weight = {path: owner_shares(cohort.weight, mask, weights) for path, mask in owned.items()}
    kept = {path: jnp.any(mask, axis=0) for path, mask in owned.items()}
    return keep_unowned(combine(result, weight), server.adapter, kept)


def index_sets(spec: LoraSpec, indices: Indices) -> int:
    """How many sets of indices a client sends."""
    return spec.matrices if indices == "layer" else 1


def chosen_modules(
    spec: LoraSpec, size: Gain, cohort: Cohort, *, selection: Selection, indices: Indices
) -> Gain:
    """The modules that each client trains, ``bool[c, (L,) R]`` per path.

    Args:
      spec: the adapted layers.
      size: norm of each module, ``[(L,) R]`` per path; how many there are is read from it.
      cohort: how many modules each client trains is its ``rank``.
      selection: the rule.
      indices: one set of modules for all layers, or one for each.
    """
    if indices == "global":
        total = sum(jnp.sum(x.reshape(-1, x.shape[-1]), axis=0) for x in size.values())
        chosen = select_modules(cohort, cohort.key, jnp.asarray(total), selection=selection)
        return lora.spread(spec, chosen)
    masks = {}
    for n, target in enumerate(spec.targets):
        key = jax.random.fold_in(cohort.key, n)
        own = size[target.path]
        own = own.reshape(-1, own.shape[-1])  # [L or 1, R]
        drawn = [
            select_modules(cohort, jax.random.fold_in(key, layer), own[layer], selection=selection)
            for layer in range(own.shape[0])
        ]
        masks[target.path] = jnp.stack(drawn, axis=1) if target.stack else drawn[0]
    return lora.spread(spec, masks)
