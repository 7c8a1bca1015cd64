"""Small federations to test clients and rounds with: two models, ragged clients, mixed ranks."""

import functools
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import federated, lora, methods, models
from fedjax_lora.core import trees
from fedjax_lora.core.types import Batches, BatchShape, ClientParams
from fedjax_lora.data import Tokens
from fedjax_lora.federated import Clients, FederatedState, Objective, Plan, optimizers, transforms
from fedjax_lora.federated.planning import Federation
from fedjax_lora.lora import LoraSpec, LoraTarget

R = 4
SIZES = (1, 5, 9, 12, 3, 7)  # examples of the clients
RANK = np.array([1, 2, 4, 3, 2, 1])
BATCH = 4  # hence 1, 2, 3, 3, 1 and 2 steps, and last batches of 1, 1, 1, 4, 3 and 3 examples
WIDTH = 16  # tokens
BROKEN = 63  # a token that no text holds
ADAMW = "adamw(weight_decay=0.1, eps=1e-4)"
"""AdamW divides each gradient by its own size. One that is nothing but rounding (1e-9 here, where
others are 1e-2) becomes a step of full length under the usual ``eps=1e-8``; not so under this."""

MODE_TOLERANCE = 5e-6
"""Largest difference between ways of computing the same training.

Parameters are of the order of 1, a step is 0.01, and a batched product adds up in another order
than a single one. Measured: at most 4e-7, between modes and against merged kernels.
"""


class Problem(NamedTuple):
    module: nn.Module
    base: Any  # parameters without the head
    head: Any
    spec: LoraSpec
    data: Tokens


class BagLayer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        return x + nn.tanh(nn.Dense(x.shape[-1], name="query")(x)), None


class Bag(nn.Module):
    """The mean of a text's word vectors, two stacked layers and a head: compiles quickly."""

    @nn.compact
    def __call__(
        self, ids: jax.Array, mask: jax.Array, types: jax.Array, *, deterministic: bool = True
    ) -> jax.Array:
        weight = mask.astype(jnp.float32)[..., None]
        x = jnp.sum(nn.Embed(64, 8, name="words")(ids) * weight, axis=1) / jnp.sum(weight, axis=1)
        stack = nn.scan(
            BagLayer, variable_axes={True: 0}, split_rngs={True: True}, length=2, unroll=2
        )
        x, _ = stack(name="layers")(x)
        return nn.Dense(4, name="head")(x)


def texts(seed: int = 0) -> Tokens:
    """Texts of 2 to 16 words whose sum modulo 4 is the class."""
    rng = np.random.default_rng(seed)
    count = sum(SIZES)
    label = rng.integers(0, 4, count).astype(np.int32)
    ids = 4 * rng.integers(1, 15, (count, WIDTH)) + label[:, None]
    length = rng.integers(2, WIDTH + 1, count).astype(np.int32)
    ids = np.where(np.arange(WIDTH) < length[:, None], ids, 0).astype(np.int32)
    return Tokens(*map(jnp.asarray, (ids, np.zeros_like(ids), length, label)))


def members() -> list[np.ndarray]:
    return np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])


def _problem(module: nn.Module, params: Any, targets: str) -> Problem:
    base = {name: part for name, part in params.items() if name != "head"}
    spec = lora.make_spec(base, targets=targets, rank=R, alpha=6.0)
    return Problem(module, base, params["head"], spec, texts())


@functools.cache
def encoder() -> Problem:
    """One layer of a real encoder."""
    tiny = models.tiny(layers=1, vocab_size=64)
    return _problem(tiny.module, tiny.params, "attention-qv")


@functools.cache
def bag() -> Problem:
    ids = jnp.zeros((1, WIDTH), jnp.int32)
    module = Bag()
    params = jax.jit(module.init)(jax.random.key(5), ids, ids == 0, ids)["params"]
    return _problem(module, params, "query")


def federation(data: Tokens, **options: Any) -> Federation:
    given = {
        "members": members(),
        "length": np.asarray(data.length),
        "cohort": len(SIZES),
        "padded": len(SIZES),
        "batch": BATCH,
        "epochs": 1,
        "max_steps": None,
        "by_length": False,
        "seed": 0,
    }
    return Federation(**(given | options))


def plan_for(problem: Problem, *, rate: float = 0.01, **options: Any) -> Plan:
    return federation(problem.data, **options).plan(0, RANK, rate)


def random_adapter(spec: LoraSpec, seed: int | list[int]) -> lora.Adapter:
    """Normal entries in both factors, half a unit large."""
    rng = np.random.default_rng(seed)
    draw = lambda s: (0.5 * rng.normal(size=s.shape)).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, spec.shapes())


def random_head(head: Any, seed: list[int]) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), head)


def stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *xs: jnp.asarray(np.stack(xs)), *trees)  # compiles nothing


def make_clients(
    problem: Problem,
    plan: Plan,
    *,
    trainable: np.ndarray | None = None,
    train_head: bool = True,
    seed: int = 1,
) -> Clients:
    """Every client begins with an adapter and a head of its own, drawn for its place.

    Args:
      problem: the model.
      plan: the cohort.
      trainable: ``bool[c, R]``; then all components act, and only these are trained. By default
        the first `r` act and are trained.
      train_head: whether the head is.
      seed: of the starting values.
    """
    spec, count = problem.spec, len(plan.id)
    rank = jnp.asarray(plan.rank)
    own = lora.prefix_mask(rank, R) if trainable is None else jnp.asarray(trainable)
    acting = own if trainable is None else jnp.ones_like(own)
    mask = lambda chosen: lora.factor_mask(lora.spread(spec, chosen))  # noqa: E731
    scale = jnp.where(acting, jnp.float32(spec.server_scale), 0.0)
    start = stacked([random_adapter(spec, [seed, k]) for k in range(count)])
    head = stacked([random_head(problem.head, [seed, k]) for k in range(count)])
    return Clients(
        params=ClientParams(lora.keep(start, mask(acting)), head),
        gain=lora.spread(spec, scale),
        trainable=ClientParams(
            mask(own),
            jax.tree.map(
                lambda x: jnp.asarray(np.full((count,) + (1,) * (x.ndim - 1), train_head)), head
            ),
        ),
        rank=rank,
        batches=jax.tree.map(jnp.asarray, plan.batches),
        key=jax.random.split(jax.random.key(seed), count),
    )


@functools.cache
def training(
    problem: str,
    *,
    optimizer: str = ADAMW,
    clip: float | None = 1.0,
    lengths: tuple[int, ...] = (WIDTH,),
    shapes: tuple[BatchShape, ...] | None = None,
    unpadded: bool = False,
    lora_dropout: float = 0.0,
    **hooks: Any,
) -> federated.LocalTraining:
    """Local training of ``encoder`` or ``bag``; the same function for the same options."""
    module = globals()[problem]().module
    return federated.LocalTraining(
        federated.text_classification(
            module, lengths, lora_dropout=lora_dropout, unpadded=unpadded
        ),
        optimizers.optimizer(optimizer, clip=clip),
        separate_fixed=lora_dropout > 0,
        shapes=shapes,
        hooks=federated.ClientHooks(**hooks),
    )


@functools.cache
def cohort_fn(
    problem: str,
    mode: str,
    clients_per_step: int = 1,
    devices: int = 0,
    shape: tuple[int, int] = (-1, 1),
    **options: Any,
) -> Any:
    """The compiled training of a cohort."""
    mesh = federated.client_mesh(devices, shape) if mode == "sharded" else None
    execution = federated.Execution(
        mode=mode,  # pyright: ignore[reportArgumentType]
        clients_per_step=clients_per_step,
        mesh=mesh,
    )
    run = federated.execute(training(problem, **options), execution)
    return run if mode == "loop" else jax.jit(run)


def first(count: int, tree: Any) -> Any:
    """Of arrays over clients those of the first, on the host."""
    return jax.tree.map(lambda x: np.asarray(x)[:count], tree)


# ------------------------------------------------------------------------ objectives in closed form

STUB = LoraSpec(targets=(LoraTarget("layer", 3, 5, None),), rank=2, alpha=2.0)


def _take_rows(data: jax.Array, index: jax.Array, length: int) -> jax.Array:
    return data[index]


def _no_score(output: jax.Array, batch: Any) -> federated.Score:
    raise NotImplementedError


def _mean(each: jax.Array, valid: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(valid, each, 0)) / jnp.maximum(jnp.sum(valid), 1).astype(jnp.float32)


def quadratic() -> Objective:
    """Half the squared distance of the head's ``w`` to an example: gradient ``w - mean(x)``."""

    def loss(base, trained, gain, fixed, batch, valid, key):
        return _mean(0.5 * jnp.sum(jnp.square(trained.head["w"][None] - batch), axis=1), valid)

    return Objective(loss, loss, _take_rows, _no_score)


def linear() -> Objective:
    """The inner product of all parameters with ``base``, which has their shapes."""

    def loss(base, trained, gain, fixed, batch, valid, key):
        return sum(
            (jnp.sum(x * g) for x, g in zip(*map(jax.tree.leaves, (trained, base)), strict=True)),
            start=jnp.zeros(()),
        )

    return Objective(loss, loss, _take_rows, _no_score)


def noise() -> Objective:
    """Its gradient is a normal draw from the key a client is given at a step."""

    def loss(base, trained, gain, fixed, batch, valid, key):
        w = trained.head["w"]
        return jnp.sum(w * jax.random.normal(key, w.shape))

    return Objective(loss, loss, _take_rows, _no_score)


def shape_number(shape: BatchShape) -> float:
    """A number that is another one for every shape."""
    return shape.rows + 10 * shape.length + 1000 * shape.tokens


def shape_seen() -> Objective:
    """Its loss is the number of the shape that a step was computed with."""

    def loss(base, trained, gain, fixed, batch, valid, key):
        length, tokens = batch
        seen = BatchShape(valid.shape[0], length, tokens or valid.shape[0] * length)
        return jnp.sum(trained.head["w"]) * 0 + jnp.float32(shape_number(seen))

    return Objective(
        loss,
        loss,
        lambda data, index, length: (length, None),
        _no_score,
        unpad=lambda batch, valid, tokens: (batch[0], tokens),
    )


def stub_clients(
    head: np.ndarray,
    batches: Batches,
    *,
    adapter: lora.Adapter | None = None,
    train_adapter: bool = True,
    train_head: bool = True,
) -> Clients:
    """Clients of `STUB` at its full rank, with ``head = {"w": [c, d]}``."""
    count = len(head)
    if adapter is None:
        adapter = jax.tree.map(lambda s: jnp.zeros((count, *s.shape)), STUB.shapes())
    return Clients(
        params=ClientParams(adapter, {"w": jnp.asarray(head, jnp.float32)}),
        gain={"layer": jnp.ones((count, 2))},
        trainable=ClientParams(
            jax.tree.map(lambda x: jnp.full((count, 1, 1), train_adapter), adapter),
            {"w": jnp.full((count, 1), train_head)},
        ),
        rank=jnp.full(count, 2, jnp.int32),
        batches=jax.tree.map(jnp.asarray, batches),
        key=jax.random.split(jax.random.key(0), count),
    )


def batches_of(
    *rows: Sequence[Sequence[int]], size: int = 2, steps: int = 3, longest: Any = 0, tokens: Any = 0
) -> Batches:
    """Batches written out: for each client a list of steps, each a list of rows."""
    index = np.zeros((len(rows), steps, size), np.int32)
    valid = np.zeros(index.shape, bool)
    for k, client in enumerate(rows):
        for s, chosen in enumerate(client):
            index[k, s, : len(chosen)] = chosen
            valid[k, s, : len(chosen)] = True
    count = np.array([len(client) for client in rows], np.int32)
    wide = lambda x: np.broadcast_to(np.asarray(x, np.int32), index.shape[:2])  # noqa: E731
    return Batches(index, valid, count, longest=wide(longest), tokens=wide(tokens))


# ------------------------------------------------------------------------------------------- rounds

COHORT, PADDED, DEVICES = 3, 4, 4  # one absent client in every round
MESHES = {"sharded": (4, 1), "base in parts": (2, 2)}


class Bound(NamedTuple):
    """A `federated.Training` that is the same whatever the method."""

    train: federated.TrainFn

    def bind(self, method: methods.Method) -> federated.TrainFn:
        return self.train


class Rounds(NamedTuple):
    """A compiled round, what goes into it, and the state it begins with."""

    fn: Any
    base: Any
    data: Any
    begin: Any  # FederatedState on the host

    def place(self, tree: Any) -> Any:
        """Where the round wants it: from elsewhere it would be compiled once more."""
        return jax.device_put(tree, jax.tree.leaves(self.data)[0].sharding)

    def state(self) -> FederatedState:
        """A copy that may be donated, always the same."""
        # The copy is made before it is placed: placing shares memory where it can.
        return self.place(jax.tree.map(np.array, self.begin))

    def run(self, state: FederatedState, plan: Plan, seed: int = 0, **other: Any) -> tuple:
        base = other.get("base", self.base)
        data = self.place(other["data"]) if "data" in other else self.data
        return self.fn(base, data, state, plan, jax.random.key(seed))


def _rounds(
    method: methods.Method,
    train: federated.Training,
    mode: str,
    heads: federated.Head,
    base: Any,
    data: Any,
    adapter: lora.Adapter,
    kernels: Any,
    head: Any,
    *,
    updates: Sequence[transforms.UpdateTransform] = (),
    server_optimizer: transforms.ServerOptimizer | None = None,
) -> Rounds:
    mesh, exchange = None, None
    if mode == "remote":
        exchange = one_by_one(method, train)
    if mode in MESHES:
        mesh, mode = federated.client_mesh(DEVICES, MESHES[mode]), "sharded"
    clients_per_step = 2 if mode == "vmap" else 1
    mode = "vmap" if mode == "vmap of one" else mode
    execution = federated.Execution(
        mode=mode,  # pyright: ignore[reportArgumentType]
        clients_per_step=clients_per_step,
        mesh=mesh,
        exchange=exchange,
    )
    both = {"heads": heads, "server_optimizer": server_optimizer}
    fn = federated.compile_round(method, train, execution=execution, updates=updates, **both)
    state = federated.init_state(method, adapter, kernels, head, clients=len(SIZES), **both)
    place = lambda tree: jax.device_put(tree, federated.everywhere(mesh))  # noqa: E731
    where = federated.base_sharding(base, mesh)
    return Rounds(fn, jax.device_put(base, where), place(data), copy(state))


def one_by_one(
    method: methods.Method, train: federated.Training, silent: Collection[int] = ()
) -> Any:
    """An exchange in this process that has one client trained after another.

    Args:
      method: of the rounds.
      train: their local training.
      silent: ids of clients that never answer.
    """
    work = jax.jit(federated.make_client_work(method, train))

    def exchange(given: federated.Assignment) -> federated.Answers:
        round, ids = jnp.asarray(given.plan.round), np.asarray(given.plan.id)
        results = [
            work(
                given.base,
                given.data,
                jax.tree.map(lambda x, k=k: x[k : k + 1], given.clients),
                jnp.asarray(given.plan.rate),
                round,
            )
            for k in range(len(ids))
        ]
        params, metrics, trainable, _ = jax.tree.map(lambda *xs: jnp.concatenate(xs), *results)
        return federated.Answers(params, metrics, trainable, ~np.isin(ids, list(silent)))

    return exchange


@functools.cache
def bag_rounds(method: str, mode: str) -> Rounds:
    """Rounds of `bag`; both factors of the adapter begin non-zero. Compiled once a session."""
    problem = bag()
    kernels = trees.flat(problem.base)
    return _rounds(
        methods.make(method, problem.spec),
        training("bag"),
        mode,
        "average",
        problem.base,
        problem.data,
        random_adapter(problem.spec, 7),
        {s.path: kernels[f"{s.path}/kernel"] for s in problem.spec.targets},
        problem.head,
    )


POINTS = np.random.default_rng(0).normal(size=(sum(SIZES), 3)).astype(np.float32)


@functools.cache
def stub_rounds(
    objective: str,
    *,
    heads: federated.Head = "average",
    mode: str = "vmap",
    method: methods.Method | None = None,
    updates: tuple[transforms.UpdateTransform, ...] = (),
    server_optimizer: transforms.ServerOptimizer | None = None,
) -> Rounds:
    """Rounds of ``quadratic`` or ``noise`` on `POINTS` by gradient descent; ``w`` begins at 0."""
    adapter = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), STUB.shapes())
    return _rounds(
        methods.make("zero_padding", STUB) if method is None else method,
        federated.LocalTraining(globals()[objective](), optimizers.optimizer("sgd")),
        mode,
        heads,
        {},
        POINTS,
        adapter,
        {"layer": jnp.zeros((3, 5))},
        {"w": jnp.zeros(3)},
        updates=updates,
        server_optimizer=server_optimizer,
    )


def round_federation(**options: Any) -> Federation:
    return federation(bag().data, **({"cohort": COHORT, "padded": PADDED} | options))


KINDS = {"fed_plora", "hlora", "flora", "fedsa_lora", "fedrora", "lora_a2"}
"""A method of each kind: folded components, products, stacks that change kernels, parts that
clients keep, coefficients, a probe."""


ON_THE_BASE = {"flora", "fed_plora"}
"""A method that changes kernels of the base, and one whose clients add to them."""


def one_of_each_kind(kinds: Collection[str] = KINDS) -> list[Any]:
    """All methods as parameters of a test; those of which ``kinds`` has a like are slow."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in kinds))
        for name in methods.METHODS
    ]


def ranks_for(method: str) -> np.ndarray:
    """Mixed ranks, or one rank for the methods that are defined for nothing else."""
    return RANK if methods.takes_mixed_ranks(method) else np.full(len(SIZES), 3)


# ---------------------------------------------------------------------------------------- comparing


def differences(one: Any, other: Any) -> dict[str, float]:
    """The largest absolute difference in each leaf."""
    flat = jax.tree_util.tree_flatten_with_path
    (leaves, structure), (others, other_structure) = flat(one), flat(other)
    assert structure == other_structure
    found = {}
    for (path, x), (_, y) in zip(leaves, others, strict=True):
        ours, theirs = np.asarray(x, np.float64), np.asarray(y, np.float64)
        name = jax.tree_util.keystr(path)
        assert ours.shape == theirs.shape, f"{name}: {ours.shape} != {theirs.shape}"
        assert np.all(np.isfinite(ours)) and np.all(np.isfinite(theirs)), f"{name} is not finite"
        found[name] = float(np.max(np.abs(ours - theirs), initial=0.0))
    return found


def assert_close(one: Any, other: Any, tolerance: float = MODE_TOLERANCE) -> None:
    off = {name: d for name, d in differences(one, other).items() if d > tolerance}
    assert not off, f"differ by more than {tolerance:g}: {off}"


def assert_same_bits(one: Any, other: Any) -> None:
    flat = jax.tree_util.tree_flatten_with_path
    (leaves, structure), (others, other_structure) = flat(one), flat(other)
    assert structure == other_structure
    for (path, x), (_, y) in zip(leaves, others, strict=True):
        ours, theirs = np.asarray(x), np.asarray(y)
        same = ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()
        assert same, f"{jax.tree_util.keystr(path)} differs"


def changed(one: Any, other: Any) -> bool:
    return any(d > 0 for d in differences(one, other).values())


def copy(tree: Any) -> Any:
    """On the host, safe from donation."""
    return jax.tree.map(np.array, jax.device_get(tree))
