"""What a run will need, before anything is compiled: devices, memory, traffic, products and time.

Sizes come from shapes alone: of the parameters, of what the method sends and keeps, and of what the
gradient of a batch holds on to between its two passes, as JAX traces it. The compiler may do with
less, and adds scratch space of its own; how close the sum is to what XLA reports is tested.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_lora import around, flops, models, optimizers, rounds, trees
from fedjax_lora.assets import Assets
from fedjax_lora.clients import AXIS, MODEL, base_sharding
from fedjax_lora.clients.completion import CHUNK_NUMBERS
from fedjax_lora.clients.local import make_batch
from fedjax_lora.config import RunConfig
from fedjax_lora.data import Tokens
from fedjax_lora.experiment import Layout, arrange, lay_out
from fedjax_lora.federation import Federation
from fedjax_lora.methods.base import FLOAT_BYTES, Server
from fedjax_lora.models.stack import layers_per_step
from fedjax_lora.programs import Reading, RoundRecipe
from fedjax_lora.rounds import FederatedState
from fedjax_lora.rounds.local import cohort_of
from fedjax_lora.types import Params, Shape, Trained
from fedjax_lora.workload import cohort_flops

FEW_ROUNDS = 5
"""Whose plans are looked at."""


class Memory(NamedTuple):
    """Bytes on one device while a cohort is trained.

    Attributes:
      base: the frozen model, once, or the device's part of it.
      server: the global adapter and head, what a method and a server optimizer keep (kernels that
        FLoRA changes, for example), and what belongs to single clients between rounds.
      data: the training tokens.
      client: what each client of the cohort begins with and returns.
      working: what each client of a wave needs to take a step: a copy of what it trains, its
        gradient and update, and the state of its optimizer.
      activations: what each client of a wave holds between the forward and the backward pass; a
        bound where the base is in parts, since the compiler then divides some of them too.
      layers: parameters of the layers that one step of the layer loop takes out of their stack:
        of one layer, of all of them where a loop is unrolled, of none without one.
      cohort: clients on the device.
      wave: clients trained at once.
    """

    base: int
    server: int
    data: int
    client: int
    working: int
    activations: int
    layers: int
    cohort: int
    wave: int

    @property
    def total(self) -> int:
        """The sum, each part as often as it is there."""
        once = self.base + self.server + self.data + self.layers
        return once + self.cohort * self.client + self.wave * (self.working + self.activations)


class Devices(NamedTuple):
    """What a run is spread over.

    Attributes:
      kind: of a device.
      clients: parts the cohort is divided into.
      model: parts the base is divided into.
      processes: that run the program together.
    """

    kind: str
    clients: int
    model: int
    processes: int


class Needs(NamedTuple):
    """What a run needs.

    Attributes:
      memory: of a device.
      up: bytes that all clients of a cohort send, mean over the rounds.
      down: bytes that they receive.
      rounds: of the run.
      flops: of the matrix products in one client's step, with a full batch of the longest texts.
      devices: it runs on.
      shapes: of the steps that are compiled.
      round_flops: of the matrix products in a round's local training, on the device that has the
        most of them; mean over the first rounds.
      dtype: of these products.
    """

    memory: Memory
    up: float
    down: float
    rounds: int
    flops: int
    devices: Devices
    shapes: tuple[Shape, ...]
    round_flops: float
    dtype: str


def needs(config: RunConfig, assets: Assets) -> Needs:
    """What a run of this config will need.

    Args:
      config: the run.
      assets: its data and model; the model's parameters may be shapes alone.

    Raises:
      InputError: as for a run.
    """
    layout = lay_out(config, assets)
    federation, recipe = arrange(config, assets, layout)
    method, _, execution = recipe.parts()
    fed, template = config.federation, layout.template
    params = _abstract(assets.model.params)
    head, base = params["head"], {name: part for name, part in params.items() if name != "head"}
    kernels = {site.path: trees.flat(base)[f"{site.path}/kernel"] for site in template.sites}
    state: FederatedState = jax.eval_shape(
        lambda adapter, kernels, head: rounds.init_state(
            method, adapter, kernels, head, clients=fed.clients, heads=fed.heads,
            server_optimizer=layout.server_optimizer,
        ),
        template.shapes(), kernels, head,
    )  # fmt: skip
    plan = federation.plan(0, layout.allocated.ranks, 1.0)
    cohort = cohort_of(template, plan, plan.weight, jax.random.key(0))
    own = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((len(plan.id), *x.shape[1:]), x.dtype), state.clients
    )
    start = jax.eval_shape(method.broadcast, state.server, own.method, cohort)
    trained = Trained(template.shapes(), head)
    with jax.numpy_dtype_promotion("standard"):  # as optax is written
        made = optimizers.optimizer(recipe.optimizer, clip=recipe.clip)
        moments = jax.eval_shape(made.init, trained)
    devices = _devices(execution["mesh"])
    memory = Memory(
        base=_base_bytes(base, execution["mesh"]),
        server=trees.size_bytes(state),
        data=trees.size_bytes(tuple(assets.train)),
        client=trees.size_bytes(start) // len(plan.id)
        + trees.size_bytes(head)
        + trees.size_bytes(trained),
        working=3 * trees.size_bytes(trained) + trees.size_bytes(moments),
        activations=_activations(recipe, base, trained, _abstract(assets.train)),
        layers=_layers_taken_out(assets.model.config) * _layer_bytes(base),
        cohort=federation.padded // devices.clients,
        wave=min(recipe.wave, federation.padded // devices.clients),
    )
    up, down = _traffic(config, federation, layout, trained.head, kernels)
    each = _step_flops(recipe, base, trained, _abstract(assets.train))
    plans = (federation.plan(t, layout.allocated.ranks, 1.0) for t in range(FEW_ROUNDS))
    how = {"parts": devices.clients, "wave": 1 if recipe.mode == "loop" else recipe.wave}
    of_round = np.mean([cohort_flops(plan, each, **how) for plan in plans])
    trainings = 1 if method.select is None else 2  # clients train twice where they are probed
    return Needs(
        memory, up, down, fed.rounds, each[recipe.shapes[-1]], devices, recipe.shapes,
        trainings * float(of_round) / devices.model, config.model.dtype,
    )  # fmt: skip


def _devices(mesh: Mesh | None) -> Devices:
    clients, model = (1, 1) if mesh is None else (mesh.shape[AXIS], mesh.shape[MODEL])
    return Devices(jax.devices()[0].device_kind, clients, model, jax.process_count())


def _base_bytes(base: Params, mesh: Mesh | None) -> int:
    """Bytes of the base that one device keeps."""
    if mesh is None:
        return trees.size_bytes(base)
    part = lambda x, where: jax.ShapeDtypeStruct(where.shard_shape(x.shape), x.dtype)  # noqa: E731
    return trees.size_bytes(jax.tree.map(part, base, base_sharding(base, mesh)))


def _step_flops(
    recipe: RoundRecipe, base: Params, trained: Trained, data: Tokens
) -> dict[Shape, int]:
    """Of a client's step, by its shape."""

    def of_shape(shape: Shape) -> int:
        step, of_clients = _step(recipe.reading, recipe, base, trained, data, shape)
        backward = lambda *given: step(*given)[1](jnp.ones(()))  # noqa: E731
        return flops.of(backward, base, *of_clients(1))

    return {shape: of_shape(shape) for shape in recipe.shapes}


def _abstract(tree: Any) -> Any:
    """The tree with `jax.ShapeDtypeStruct` leaves."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _traffic(
    config: RunConfig,
    federation: Federation,
    layout: Layout,
    head: Params,
    kernels: Mapping[str, Any],
) -> tuple[float, float]:
    """Bytes up and down, means over the rounds, with the ranks that clients begin with."""
    template, method = layout.template, layout.method
    zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape), tree)  # noqa: E731
    full = {
        path: jax.ShapeDtypeStruct(kernel.shape, jnp.float32) for path, kernel in kernels.items()
    }
    # Compiled, so that the zeros, which the method's own state does not need, are never made.
    own = jax.jit(lambda: method.init(zeros(template.shapes()), zeros(full)).state)()
    server = Server(template.shapes(), {}, own)
    sent = head if config.federation.heads == "average" else {}
    up, down = [], []
    for t in range(config.federation.rounds):
        rank = layout.allocated.ranks[federation.sample(t)]
        traffic = method.traffic(server, rank, t)
        up.append(around.up_bytes(layout.updates, traffic, template, sent).sum())
        down.append(traffic.down.sum() + len(rank) * trees.size_bytes(sent))
    return float(np.mean(up)), float(np.mean(down))


def _layers_taken_out(config: Any) -> int:
    """Layers that one step of the layer loop takes out of their stack."""
    if models.has_arrays_by_layer(config):
        return 0
    return layers_per_step(config.layers, config.scan_unroll)


def _layer_bytes(base: Params) -> int:
    """One layer's matrices; in float32 if they are kept as codes."""
    in_full = lambda x: isinstance(x, jax.ShapeDtypeStruct)  # noqa: E731
    return sum(
        math.prod(leaf.shape[1:]) * (leaf.dtype.itemsize if in_full(leaf) else FLOAT_BYTES)
        for path, leaf in trees.flat(base).items()
        if "/layers/" in path and path.endswith("/kernel")
    )


def _activations(recipe: RoundRecipe, base: Params, trained: Trained, data: Tokens) -> int:
    """What one more client of a wave holds on to in a full batch of the longest texts.

    That is what a gradient keeps between its passes, of one layer all of it where layers are
    recomputed, and the gradient of the logits that are made at a time. Where they are made in
    parts, these have no place in what is kept, and come on top with their exponentials.
    """
    reading = recipe.reading
    kept = _kept(reading, recipe, base, trained, data)
    config = reading.module.config  # type: ignore[attr-defined]
    if config.remat:
        once = reading.module.clone(config=dataclasses.replace(config, remat=False))
        whole = _kept(dataclasses.replace(reading, module=once), recipe, base, trained, data)
        kept += (whole - kept) // config.layers
    if reading.kind != "language":
        return kept
    numbers = recipe.batch * (min(reading.lengths[-1], data.ids.shape[1]) - 1) * config.vocab_size
    return kept + FLOAT_BYTES * (numbers if numbers <= CHUNK_NUMBERS else 3 * CHUNK_NUMBERS)


def _kept(
    reading: Reading, recipe: RoundRecipe, base: Params, trained: Trained, data: Tokens
) -> int:
    """Bytes that the gradient of a second client adds to those of a first one."""
    step, of_clients = _step(reading, recipe, base, trained, data, recipe.shapes[-1])

    def size(count: int) -> int:
        kept = jax.tree.leaves(jax.eval_shape(lambda *x: step(*x)[1], base, *of_clients(count)))
        return trees.size_bytes(
            [x for x in kept if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
        )

    return size(2) - size(1)


def _step(
    reading: Reading,
    recipe: RoundRecipe,
    base: Params,
    trained: Trained,
    data: Tokens,
    shape: Shape,
) -> tuple[Callable[..., Any], Callable[[int], Iterator[Any]]]:
    """``(base, *clients) -> (loss, backward pass)`` of a batch, and shapes of so many clients.

    The backward pass is a pytree of what it keeps.
    """
    objective, template = reading.objective(), recipe.template
    gain = {
        site.path: jax.ShapeDtypeStruct((*site.stack, template.rank), jnp.float32)
        for site in template.sites
    }
    rows = jax.ShapeDtypeStruct((shape.rows,), jnp.int32)
    valid = jax.ShapeDtypeStruct((shape.rows,), bool)
    batch = jax.eval_shape(functools.partial(make_batch, objective, shape), data, rows, valid)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def step(base: Params, trained: Trained, gain: Any, batch: Any, valid: Any, key: Any) -> Any:
        def loss(trained: Trained) -> Any:
            one = lambda *own: objective.loss(base, own[0], own[1], None, *own[2:])  # noqa: E731
            return jnp.sum(jax.vmap(one)(trained, gain, batch, valid, key))

        return jax.vjp(loss, trained)

    def of_clients(count: int) -> Iterator[Any]:
        stacked = lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype)  # noqa: E731
        return (jax.tree.map(stacked, one) for one in (trained, gain, batch, valid, key))

    return step, of_clients


def told(found: Needs, rate: float | None = None) -> list[str]:
    """The needs as lines for a terminal, in MB (a million bytes).

    Args:
      found: the needs.
      rate: operations a second in matrix products (`fedjax_lora.workload.product_rate`), for the
        time of a round.
    """
    devices, size = found.devices, found.round_flops
    memory, amount = found.memory, lambda size: f"{size / 1e6:12.1f} MB"
    clients, wave = f"{memory.cohort} clients", f"{memory.wave} at a time"
    rows = [
        ("base model", memory.base),
        ("server and what clients keep between rounds", memory.server),
        ("training tokens", memory.data),
        (f"{clients}: adapter and head, before and after", memory.cohort * memory.client),
        (f"{wave}: gradient, update and optimizer", memory.wave * memory.working),
        (f"{wave}: activations, at the longest texts", memory.wave * memory.activations),
        ("layers, taken out of their stack", memory.layers),
        ("device memory, about", memory.total),
        ("sent in a round", found.up),
        ("received in a round", found.down),
        (f"both in {found.rounds} rounds", found.rounds * (found.up + found.down)),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}{amount(size)}" for name, size in rows]
    several = f", {devices.processes} processes" if devices.processes > 1 else ""
    told = [
        f"{devices.clients * devices.model} x {devices.kind}{several}; mesh: clients "
        f"{devices.clients} x model {devices.model}",
        f"one program with {len(found.shapes)} shapes of a step, texts x longest (tokens in all): "
        + ", ".join(f"{s.rows} x {s.length} ({s.tokens})" for s in found.shapes),
        *lines,
        f"{'matrix products in a step of a client':<{width}}{found.flops / 1e9:12.1f} GFLOP",
        f"{'matrix products in a round, on a device':<{width}}{size / 1e9:12.1f} GFLOP",
    ]
    if rate is not None:
        told += [
            f"{'local training of a round, about':<{width}}{size / rate:12.1f} s at "
            f"{rate / 1e9:.0f} GFLOP/s, which a large {found.dtype} product reaches here just now "
            "and a step does not; server, evaluation and compilation come on top",
        ]
    return told
