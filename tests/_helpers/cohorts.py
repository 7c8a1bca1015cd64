"""Random federations in the shapes of the library, and their conversion for the oracles."""

import dataclasses
import functools
import inspect
import itertools
from typing import Any, Literal, NamedTuple, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora, methods
from fedjax_lora.core import registry
from fedjax_lora.core.types import Adapter, LoRA
from fedjax_lora.lora import LoraSpec, LoraTarget
from fedjax_lora.methods import AggregateResult, ClientInit, Cohort, Method, ServerState
from tests._helpers import oracles

R = 4
CLIENTS = 6

# A square site, so that a transposed answer has the right shape; wide enough for the low-rank SVD
# (6 * 4 < 26) and with a layer left out. A small one without a stack, where R = min(i, o).
SITES = (
    LoraTarget("block/layers/query", 26, 26, (True, False, True)),
    LoraTarget("head/dense", 4, 7, None),
)
GLOBAL = LoraSpec(targets=SITES, rank=R, alpha=6.0, scale_rule="alpha/R")
PER_CLIENT = LoraSpec(targets=SITES, rank=R, alpha=6.0, scale_rule="alpha/r")


def literal_options(name: str) -> dict[str, tuple[Any, ...]]:
    """The alternatives to the default of every option of a registered method."""
    parameters = inspect.signature(methods.METHODS[name]).parameters.values()
    return {
        p.name: tuple(v for v in get_args(p.annotation) if v != p.default)
        for p in parameters
        if get_origin(p.annotation) is Literal
    }


NUMBERS: dict[str, list[dict[str, Any]]] = {
    "hetlora": [{"gamma": 1.0}, {"gamma": 0.5, "norm": "layer", "min_rank": 2}],
    "florist": [{"threshold": 1.0}, {"threshold": 0.5, "sigma": "both"}],
    "fedex_lora": [{"residual_rank": 3}],
    "lora_fair": [{"penalty": 0.25}, {"penalty": 2.0, "relative": False}],
    "fedrora": [{"first": 0.0, "coefficient_rate": 3.0}],
    "fedhl": [{"eps": 0.3}],
    "fedmomentum": [{"energy": 1.0}, {"energy": 0.8, "sigma": "b"}],
    "ravan": [{"heads": 2}],
    "fedrot_lora": [{"strength": 0.5}, {"strength": 0.3, "align": "a"}],
}
"""Values of options that are numbers."""

EXACT = {
    "florist": "florist(threshold=1.0)",
    "hetlora": "hetlora(gamma=1.0)",
    "fedmomentum": "fedmomentum(energy=1.0)",
}
"""How to tell a method that loses something on purpose to lose nothing."""


def specs_of(name: str) -> list[str]:
    """The default, every alternative on its own, and of more than two options all together."""
    options = literal_options(name)
    single = [{key: v} for key, values in options.items() for v in values]
    together = [{key: values[-1] for key, values in options.items()}] if len(options) > 2 else []
    write = lambda chosen: ", ".join(f"{k}={v!r}" for k, v in chosen.items())  # noqa: E731
    return [
        name,
        *(f"{name}({write(chosen)})" for chosen in [*single, *together, *NUMBERS.get(name, [])]),
    ]


SPECS = list(itertools.chain.from_iterable(specs_of(name) for name in methods.METHODS))


def method_name(spec: str) -> str:
    return spec.split("(")[0]


def option(spec: str, name: str) -> Any:
    """An option of a method, with its default if the spec does not give it."""
    method, options = registry.parse(spec)
    return options.get(name, inspect.signature(methods.METHODS[method]).parameters[name].default)


def ranks_for(spec: str, mixed: Any, otherwise: int) -> np.ndarray:
    """The mixed ranks, or one for all where a method takes nothing else."""
    mixed = np.asarray(mixed)
    return mixed if methods.takes_mixed_ranks(spec) else np.full_like(mixed, otherwise)


# ------------------------------------------------------------------------------------ federations


def make_cohort(
    lora_spec: LoraSpec,
    rank: Any,
    weight: Any = None,
    *,
    ids: Any = None,
    round: int = 0,
    seed: int = 0,
) -> Cohort:
    rank = np.asarray(rank, np.int32)
    weight = np.ones(len(rank)) if weight is None else np.asarray(weight)
    return Cohort(
        id=jnp.asarray(np.arange(len(rank)) if ids is None else ids, jnp.int32),
        rank=jnp.asarray(rank),
        weight=jnp.asarray(weight, jnp.float32),
        scale=jnp.asarray(np.broadcast_to(lora_spec.scale(rank), rank.shape), jnp.float32),
        round=jnp.asarray(round, jnp.int32),
        key=jax.random.key(seed),
    )


def random_adapter(lora_spec: LoraSpec, seed: int, *batch: int) -> Adapter:
    """Normal entries in every factor; layers left out are zero, as everywhere."""
    rng = np.random.default_rng(seed)
    pairs = {}
    for target in lora_spec.targets:
        a = rng.normal(size=(*batch, *target.stack, target.inputs, lora_spec.rank))
        b = rng.normal(size=(*batch, *target.stack, lora_spec.rank, target.outputs))
        if target.layers is not None:
            a[..., ~np.array(target.layers), :, :] = 0
            b[..., ~np.array(target.layers), :, :] = 0
        pairs[target.path] = LoRA(a.astype(np.float32), b.astype(np.float32))
    return pairs


def random_kernels(lora_spec: LoraSpec, seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {
        s.path: jnp.asarray(rng.normal(size=(*s.stack, s.inputs, s.outputs)), jnp.float32)
        for s in lora_spec.targets
    }


def make_server(method: Method, lora_spec: LoraSpec, seed: int = 1) -> ServerState:
    return method.init(random_adapter(lora_spec, seed), random_kernels(lora_spec, seed + 1))


def poison(tree: Any, absent: Any, value: float = np.nan) -> Any:
    """The value everywhere in the given clients' leaves."""
    absent = np.asarray(absent)

    def leaf(x: Any) -> np.ndarray:
        x = np.array(x)
        x[absent] = value
        return x

    return jax.tree.map(leaf, tree)


def train(start: ClientInit, change: Adapter) -> Adapter:
    """A stand-in for local training: an arbitrary change of what may be trained."""
    return jax.tree.map(
        lambda x, mask, d: x + np.where(mask, d, np.float32(0)),
        *jax.device_get((start.adapter, start.trainable)),
        change,
    )


def on_device(tree: Any) -> Any:
    """NumPy leaves as JAX arrays, as functions that are not compiled want them."""
    return jax.tree.map(jnp.asarray, tree)


class Played(NamedTuple):
    """The inputs and results of a round."""

    start: ClientInit
    result: Adapter
    outcome: AggregateResult


def in_two_factors(method: Method) -> Method:
    """The method with what clients begin with as two factors, as results are too."""

    def broadcast(*given: Any) -> ClientInit:
        start = method.broadcast(*given)
        folded = lora.fold(start.adapter, start.coefficients)
        if start.trained_coefficients:  # a core moves the columns of `a` that belong to it
            rows = lora.masked_components(start.trainable, start.trained_coefficients)
            start = start._replace(trainable=lora.factor_mask(rows, b=False))
        return start._replace(adapter=folded, coefficients=())

    return dataclasses.replace(method, broadcast=broadcast)


@functools.cache
def compiled(spec: str, lora_spec: LoraSpec) -> tuple[Method, Any]:
    """The method `in_two_factors` and its aggregate, jitted once per process for all tests.

    Broadcasts run operation by operation, which is quicker than compiling so many of them; another
    test compares the two.
    """
    method = in_two_factors(methods.make(spec, lora_spec))
    return method, jax.jit(method.aggregate)


def begin(
    method: Method,
    server: ServerState,
    state: Any,
    cohort: Cohort,
    lora_spec: LoraSpec,
    seed: int = 3,
) -> ClientInit:
    """The initial parameters of the clients, after a probe if the method has one."""
    start = method.broadcast(server, state, cohort)
    if method.select is not None:
        probed = train(start, random_adapter(lora_spec, seed + 1, len(cohort.rank)))
        start = method.select(cohort.round, cohort.rank, start, on_device(probed))
    return start


def play(
    spec: str,
    lora_spec: LoraSpec,
    cohort: Cohort,
    *,
    server: ServerState | None = None,
    seed: int = 3,
) -> Played:
    """One round of random training; absent clients come back with NaN everywhere."""
    method, aggregate = compiled(spec, lora_spec)
    server = make_server(method, lora_spec) if server is None else server
    count = len(cohort.rank)
    state = method.init_clients(count)
    start = begin(method, server, state, cohort, lora_spec, seed)
    result = train(start, random_adapter(lora_spec, seed, count))
    result = poison(result, cohort.weight == 0)
    return Played(start, result, aggregate(server, state, cohort, start, result))


# -------------------------------------------------------------------------------- to the oracles


def matrices(lora_spec: LoraSpec, adapter: Adapter) -> dict[str, oracles.Pair]:
    """One pair per adapted matrix, in the papers' notation: B is our b transposed, A our a."""
    pairs = {}
    for target in lora_spec.targets:
        a, b = (np.asarray(x, np.float64) for x in adapter[target.path])
        for layer in range(len(target.layers or ())):
            if target.layers[layer]:
                pairs[f"{target.path}[{layer}]"] = oracles.Pair(b[layer].T, a[layer].T)
        if target.layers is None:
            pairs[target.path] = oracles.Pair(b.T, a.T)
    return pairs


def dense(lora_spec: LoraSpec, kernels: dict[str, Any]) -> dict[str, np.ndarray]:
    """One ``[d, k]`` per adapted matrix of stacked ``[L, i, o]`` kernels."""
    out = {}
    for target in lora_spec.targets:
        kernel = np.asarray(kernels[target.path], np.float64)
        if target.layers is None:
            out[target.path] = kernel.T
        else:
            out |= {f"{target.path}[{n}]": kernel[n].T for n, on in enumerate(target.layers) if on}
    return out


def trained_rows(lora_spec: LoraSpec, trainable: Adapter, client: int) -> dict[str, list[int]]:
    """The components a client trains, per matrix."""
    rows = {}
    for target in lora_spec.targets:
        pair = trainable[target.path]
        mask = (np.asarray(pair.a)[..., 0, :] | np.asarray(pair.b)[..., 0])[client]
        if target.layers is None:
            rows[target.path] = np.flatnonzero(mask).tolist()
        else:
            for n, on in enumerate(target.layers):
                if on:
                    rows[f"{target.path}[{n}]"] = np.flatnonzero(mask[n]).tolist()
    return rows


def trained_by(spec: str, lora_spec: LoraSpec, rank: int) -> int:
    """How many components of a matrix a client of this rank trains."""
    if method_name(spec) not in oracles.CORES:
        return rank
    most = lora_spec.rank
    heads = 1 if method_name(spec) == "fed_sb" else option(spec, "heads")
    heads = heads or max(n for n in range(1, min(4, most) + 1) if most % n == 0)
    return -(-heads * rank // most) * (most // heads)


def oracle_round(
    spec: str, lora_spec: LoraSpec, server: ServerState, cohort: Cohort, played: Played
) -> Any:
    """The same round as ragged lists of what the participants would really send."""
    server_reads = lora_spec.alpha / lora_spec.rank  # both rules agree at the full rank
    clients = []
    for n in np.flatnonzero(np.asarray(cohort.weight) > 0):
        own = matrices(lora_spec, client(played.result, n))
        before = matrices(lora_spec, client(played.start.adapter, n))
        r = int(cohort.rank[n])
        rows = {m: list(range(r)) for m in own}
        if method_name(spec) in oracles.CHOSEN_ROWS | {"frlora"} | oracles.CORES:
            rows = trained_rows(lora_spec, played.start.trainable, n)
            count = trained_by(spec, lora_spec, r)
            assert all(len(chosen) == count for chosen in rows.values())
        elif method_name(spec) in oracles.HOLD_ALL:
            rows = {m: list(range(lora_spec.rank)) for m in own}
        scale = lora_spec.alpha / (r if lora_spec.scale_rule == "alpha/r" else lora_spec.rank)
        pick = lambda pairs, rows=rows: {  # noqa: E731
            m: oracles.Pair(p.B[:, rows[m]], p.A[rows[m]]) for m, p in pairs.items()
        }
        weight = float(cohort.weight[n])
        clients.append(oracles.Client(weight, scale, pick(own), rows, pick(before)))
    kernels = server.kernels or random_kernels(lora_spec, 0)
    return oracles.Round(
        clients,
        matrices(lora_spec, server.adapter),
        server_reads,
        dense(lora_spec, kernels),
        int(cohort.round),
        dense(lora_spec, server.state) if method_name(spec) in oracles.KEEPS_BEYOND else {},
    )


# -------------------------------------------------------------------------------------- comparing


def assert_close(ours: Any, want: Any, tolerance: float = 1e-5, message: str = "") -> None:
    """Largest difference relative to the largest wanted entry."""
    ours, want = np.asarray(ours, np.float64), np.asarray(want, np.float64)
    assert ours.shape == want.shape, f"{message}: {ours.shape} != {want.shape}"
    assert np.all(np.isfinite(ours)), f"{message}: not finite"
    error, size = np.max(np.abs(ours - want), initial=0), np.max(np.abs(want), initial=0)
    assert error <= tolerance * size, f"{message}: off by {error:.2e} of {size:.2e}"


def assert_trees_close(ours: Any, want: Any, tolerance: float = 1e-5) -> None:
    ours, want = (
        jax.tree_util.tree_flatten_with_path(ours),
        jax.tree_util.tree_flatten_with_path(want),
    )
    assert ours[1] == want[1]
    for (path, x), (_, y) in zip(ours[0], want[0], strict=True):
        assert_close(x, y, tolerance, jax.tree_util.keystr(path))


def assert_trees_equal(ours: Any, want: Any) -> None:
    """Bit for bit."""
    assert jax.tree.structure(ours) == jax.tree.structure(want)
    for (path, x), y in zip(
        jax.tree_util.tree_flatten_with_path(ours)[0], jax.tree.leaves(want), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert x.dtype == y.dtype, name
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=name, strict=True)


def server_delta(lora_spec: LoraSpec, server: ServerState) -> dict[str, jax.Array]:
    """What the server's model adds to its kernels."""
    return lora.deltas(server.adapter, lora.uniform_gain(lora_spec))


def client_deltas(start: ClientInit, adapter: Adapter) -> dict[str, jax.Array]:
    """What each client's model adds to its kernels, ``[c, (L,) i, o]``."""
    return lora.deltas(adapter, start.gain)


def client(tree: Any, n: int) -> Any:
    return jax.tree.map(lambda x: x[n], tree)


def pair(a: Any, b: Any) -> LoRA:
    return LoRA(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
