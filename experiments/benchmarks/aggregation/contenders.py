"""Who takes part. A contender is made from a problem and computes when it is called.

Each imports its library when it is made, in the process that is its own.
"""

import importlib.metadata
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.aggregation.problem import Problem, clients

Factors = tuple[np.ndarray, np.ndarray]  # [i, R] and [R, o]


class Contender(NamedTuple):
    """A library that is ready to compute."""

    methods: dict[str, Callable[[], Any]]  # by name: aggregate everything once, and wait for it
    layers: int  # of each site that a call computes
    factors: Callable[[Any, str], Factors]  # of a site's first layer, from what "hlora" returned
    about: dict[str, Any]


def ours(problem: Problem) -> Contender:
    """The registered methods, as a round calls them."""
    import jax
    import jax.numpy as jnp

    from fedjax_lora import lora, methods
    from fedjax_lora.core.types import LoRA

    count, most, layers = len(problem.ranks), problem.rank, problem.layers
    spec = lora.LoraSpec(
        targets=tuple(
            lora.LoraTarget(path, *size, (True,) * layers) for path, size in problem.targets.items()
        ),
        rank=most,
        alpha=float(most),
    )

    def padded(target: lora.LoraTarget) -> LoRA:
        a = np.zeros((count, layers, target.inputs, most), np.float32)
        b = np.zeros((count, layers, most, target.outputs), np.float32)
        for layer in range(layers):
            for k, x in enumerate(clients(problem, target.path, layer)):
                a[k, layer, :, : x.a.shape[1]], b[k, layer, : x.b.shape[0]] = x
        return LoRA(jnp.asarray(a), jnp.asarray(b))

    result = {target.path: padded(target) for target in spec.targets}
    cohort = methods.Cohort(
        id=jnp.arange(count, dtype=jnp.int32),
        rank=jnp.asarray(problem.ranks, jnp.int32),
        weight=jnp.asarray(problem.shares, jnp.float32),
        scale=jnp.ones(count),
        round=jnp.int32(0),
        key=jax.random.key(0),
    )
    active = lora.spread(spec, lora.prefix_mask(cohort.rank, most))
    gain = jax.tree.map(lambda mask: mask.astype(jnp.float32), active)
    start = methods.ClientInit(result, gain, lora.factor_mask(active))
    about = {"compile_seconds": {}, "temporary_megabytes": {}, "jax": jax.__version__}
    calls = {}
    for name in problem.methods:
        if len(set(problem.ranks)) > 1 and not methods.takes_mixed_ranks(name):
            continue
        method = methods.make(name, spec)
        fresh = jax.tree.map(lambda x: jnp.zeros(x.shape), spec.shapes())
        kernels = {}
        if name == "flora":
            kernels = {
                target.path: jnp.zeros((layers, target.inputs, target.outputs))
                for target in spec.targets
            }
        server = method.init(fresh, kernels)
        began = time.perf_counter()
        fn = jax.jit(method.aggregate).lower(server, (), cohort, start, result).compile()
        about["compile_seconds"][name] = time.perf_counter() - began
        memory = fn.memory_analysis()
        if memory is not None:
            about["temporary_megabytes"][name] = memory.temp_size_in_bytes / 1e6

        def call(fn: Any = fn, server: Any = server) -> Any:
            return jax.block_until_ready(fn(server, (), cohort, start, result).server)

        calls[name] = call

    def factors(server: Any, target: str) -> Factors:
        pair = server.adapter[target]
        return np.asarray(pair.a[0]), np.asarray(pair.b[0])

    return Contender(calls, layers, factors, about)


def numpy(problem: Problem) -> Contender:
    """Stacks of the true ranks, one product, LAPACK's SVD; for a mean, sums of the factors."""
    sent, shares = _sent(problem), problem.shares.astype(np.float32)

    def mean(cohort: list) -> np.ndarray:
        a = np.hstack([share * x.a for share, x in zip(shares, cohort, strict=True)])
        return a @ np.vstack([x.b for x in cohort])

    def one(cohort: list) -> Factors:
        u, s, vt = np.linalg.svd(mean(cohort), full_matrices=False)
        return u[:, : problem.rank], s[: problem.rank, None] * vt[: problem.rank]

    def padded(cohort: list) -> Factors:
        a = np.zeros((cohort[0].a.shape[0], problem.rank), np.float32)
        b = np.zeros((problem.rank, cohort[0].b.shape[1]), np.float32)
        for share, x in zip(shares, cohort, strict=True):
            a[:, : x.a.shape[1]] += share * x.a
            b[: x.b.shape[0]] += share * x.b
        return a, b

    return Contender(
        _calls(problem, {"hlora": one, "zero_padding": padded}, sent),
        problem.dense_layers,
        lambda out, target: out[target][0],
        {"numpy": np.__version__},
    )


def torch(problem: Problem) -> Contender:
    """As it is usually written: a loop over layers and clients, and ``torch.linalg.svd``."""
    import torch

    tensors = {
        target: [
            [(torch.from_numpy(x.a), torch.from_numpy(x.b)) for x in layer] for layer in layers
        ]
        for target, layers in _sent(problem).items()
    }
    shares = problem.shares.tolist()

    def one(cohort: list) -> tuple[Any, Any]:
        mean = torch.zeros(cohort[0][0].shape[0], cohort[0][1].shape[1])
        for share, (a, b) in zip(shares, cohort, strict=True):
            mean += share * (a @ b)
        u, s, vt = torch.linalg.svd(mean, full_matrices=False)
        return u[:, : problem.rank], s[: problem.rank, None] * vt[: problem.rank]

    def padded(cohort: list) -> tuple[Any, Any]:
        a = torch.zeros(cohort[0][0].shape[0], problem.rank)
        b = torch.zeros(problem.rank, cohort[0][1].shape[1])
        for share, (own_a, own_b) in zip(shares, cohort, strict=True):
            a[:, : own_a.shape[1]] += share * own_a
            b[: own_b.shape[0]] += share * own_b
        return a, b

    def factors(out: Any, target: str) -> Factors:
        a, b = out[target][0]
        return a.numpy(), b.numpy()

    about = {"torch": importlib.metadata.version("torch"), "threads": torch.get_num_threads()}
    calls = _calls(problem, {"hlora": one, "zero_padding": padded}, tensors)
    return Contender(calls, problem.dense_layers, factors, about)


def _calls(
    problem: Problem, known: dict[str, Callable[[list], Any]], sent: dict[str, list[list]]
) -> dict[str, Callable[[], Any]]:
    """The problem's methods, as far as they are known, on every matrix in turn."""

    def every(one: Callable[[list], Any]) -> Callable[[], dict[str, list[Any]]]:
        return lambda: {target: [one(cohort) for cohort in each] for target, each in sent.items()}

    return {name: every(known[name]) for name in problem.methods if name in known}


def _sent(problem: Problem) -> dict[str, list[list]]:
    """What the clients sent, for the layers that the dense contenders compute."""
    return {
        target: [clients(problem, target, layer) for layer in range(problem.dense_layers)]
        for target in problem.targets
    }


CONTENDERS: dict[str, Callable[[Problem], Contender]] = {
    "ours": ours,
    "numpy": numpy,
    "torch": torch,
}
