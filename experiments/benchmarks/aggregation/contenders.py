"""The compared implementations of the server's step, each built from a problem.

Each imports its library when it is built, in a process of its own.
"""

import importlib.metadata
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.aggregation.problem import Problem, clients

Factors = tuple[np.ndarray, np.ndarray]  # [i, R] and [R, o]


class Contender(NamedTuple):
    """An implementation that is ready to compute.

    Attributes:
      methods: by method, aggregates all matrices once and waits for the result.
      layers: number of layers of each target that a call computes.
      factors: returns the factors of a target's first layer from the result of ``hlora``.
      about: versions and measurements.
    """

    methods: dict[str, Callable[[], Any]]
    layers: int
    factors: Callable[[Any, str], Factors]
    about: dict[str, Any]


def ours(problem: Problem) -> Contender:
    """The methods of this library, compiled as in a round."""
    import jax

    from fedjax_lora import methods

    start, result, cohort, spec = _clients(problem)
    about = {"compile_seconds": {}, "temporary_megabytes": {}, "jax": jax.__version__}
    calls = {}
    for name in problem.methods:
        if len(set(problem.ranks)) > 1 and not methods.takes_mixed_ranks(name):
            continue
        method = methods.make(name, spec)
        server = _server(method, spec, with_kernels=name == "flora")
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

    return Contender(calls, problem.layers, factors, about)


def _clients(problem: Problem) -> tuple[Any, Any, Any, Any]:
    """What a round hands to ``aggregate``: initial and trained parameters, cohort and spec."""
    import jax
    import jax.numpy as jnp

    from fedjax_lora import lora, methods
    from fedjax_lora.core.types import LoRA

    layers = (True,) * problem.layers
    targets = tuple(lora.LoraTarget(path, *n, layers) for path, n in problem.targets.items())
    spec = lora.LoraSpec(targets=targets, rank=problem.rank, alpha=float(problem.rank))
    trained = {path: LoRA(*map(jnp.asarray, _padded(problem, path))) for path in problem.targets}
    cohort = methods.Cohort(
        id=jnp.arange(len(problem.ranks), dtype=jnp.int32),
        rank=jnp.asarray(problem.ranks, jnp.int32),
        weight=jnp.asarray(problem.shares, jnp.float32),
        scale=jnp.ones(len(problem.ranks)),
        round=jnp.int32(0),
        key=jax.random.key(0),
    )
    active = lora.spread(spec, lora.prefix_mask(cohort.rank, problem.rank))
    coefficients = jax.tree.map(lambda mask: mask.astype(jnp.float32), active)
    start = methods.ClientInit(trained, coefficients, lora.factor_mask(active))
    return start, trained, cohort, spec


def _padded(problem: Problem, path: str) -> Factors:
    """The clients' factors of a target, padded with zeros: ``[c, l, i, R]``, ``[c, l, R, o]``."""
    inputs, outputs = problem.targets[path]
    count, layers, rank = len(problem.ranks), problem.layers, problem.rank
    a = np.zeros((count, layers, inputs, rank), np.float32)
    b = np.zeros((count, layers, rank, outputs), np.float32)
    for layer in range(layers):
        for k, client in enumerate(clients(problem, path, layer)):
            own = client.a.shape[1]
            a[k, layer, :, :own], b[k, layer, :own] = client.a, client.b
    return a, b


def _server(method: Any, spec: Any, *, with_kernels: bool) -> Any:
    """A server state of zeros, with the changes of the base if the method keeps them."""
    import jax
    import jax.numpy as jnp

    kernels = {}
    if with_kernels:
        kernels = {
            target.path: jnp.zeros((len(target.layers), target.inputs, target.outputs))
            for target in spec.targets
        }
    return method.init(jax.tree.map(lambda x: jnp.zeros(x.shape), spec.shapes()), kernels)


def numpy(problem: Problem) -> Contender:
    """NumPy: stacked factors of the true ranks, one product and LAPACK's SVD; sums for a mean."""
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
    """PyTorch as usually written: loops over layers and clients, and ``torch.linalg.svd``."""
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
        for share, (client_a, client_b) in zip(shares, cohort, strict=True):
            a[:, : client_a.shape[1]] += share * client_a
            b[: client_b.shape[0]] += share * client_b
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
    """The problem's methods that are implemented, on every matrix in turn."""

    def every(one: Callable[[list], Any]) -> Callable[[], dict[str, list[Any]]]:
        return lambda: {target: [one(cohort) for cohort in each] for target, each in sent.items()}

    return {name: every(known[name]) for name in problem.methods if name in known}


def _sent(problem: Problem) -> dict[str, list[list]]:
    """The clients' factors of the layers that the dense contenders compute."""
    return {
        target: [clients(problem, target, layer) for layer in range(problem.dense_layers)]
        for target in problem.targets
    }


CONTENDERS: dict[str, Callable[[Problem], Contender]] = {
    "ours": ours,
    "numpy": numpy,
    "torch": torch,
}
