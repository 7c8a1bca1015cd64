"""What a run will need, before anything is compiled: devices, memory, traffic and time of a round.

Sizes come from shapes alone: of the parameters, of what the method sends and keeps, and of what the
gradient of a batch holds on to between its two passes, as JAX traces it. The compiler may do with
less, and adds scratch space of its own; how close the sum is to what XLA reports is tested.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_lora import around, models, optimizers, rounds, trees
from fedjax_lora.clients import AXIS, MODEL, base_sharding, row_buckets
from fedjax_lora.clients.completion import CHUNK_NUMBERS
from fedjax_lora.config import RunConfig
from fedjax_lora.data import Tokens
from fedjax_lora.experiment import Assets, Layout, arrange, lay_out
from fedjax_lora.federation import Federation
from fedjax_lora.methods.base import FLOAT_BYTES, Server
from fedjax_lora.models.stack import layers_per_step
from fedjax_lora.programs import Reading, RoundRecipe
from fedjax_lora.rounds import FederatedState
from fedjax_lora.rounds.local import cohort_of
from fedjax_lora.types import Params, Trained
from fedjax_lora.workload import cohort_flops, product_flops

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
      devices: it runs on.
      lengths: to which texts are padded, in tokens; each is compiled.
      rows: to which batches are padded, likewise.
      flops: operations of the matrix products of a round's local training, on the device that has
        the most; mean over the first rounds.
      dtype: of these products.
    """

    memory: Memory
    up: float
    down: float
    rounds: int
    devices: Devices
    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    flops: float
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
    data = _abstract(assets.train)
    memory = Memory(
        base=_base_bytes(base, execution["mesh"]),
        server=trees.size_bytes(state),
        data=trees.size_bytes(tuple(assets.train)),
        client=trees.size_bytes(start) // len(plan.id)
        + trees.size_bytes(head)
        + trees.size_bytes(trained),
        working=3 * trees.size_bytes(trained) + trees.size_bytes(moments),
        activations=_activations(recipe, base, trained, data),
        layers=_layers_taken_out(assets.model.config) * _layer_bytes(base),
        cohort=federation.padded // devices.clients,
        wave=min(recipe.wave, federation.padded // devices.clients),
    )
    up, down = _traffic(config, federation, layout, trained.head, kernels)
    reading = recipe.reading
    flops = _flops(recipe, federation, layout.allocated.ranks, base, trained, data, devices)
    return Needs(
        memory, up, down, fed.rounds, devices, reading.lengths, row_buckets(recipe.batch),
        flops * (1 if method.select is None else 2), reading.module.config.dtype,  # type: ignore
    )  # fmt: skip


def _devices(mesh: Mesh | None) -> Devices:
    kind, count = jax.devices()[0].device_kind, jax.process_count()
    if mesh is None:
        return Devices(kind, 1, 1, count)
    return Devices(kind, mesh.shape[AXIS], mesh.shape[MODEL], count)


def _base_bytes(base: Params, mesh: Mesh | None) -> int:
    """Bytes of the base that one device keeps."""
    if mesh is None:
        return trees.size_bytes(base)
    part = lambda x, where: jax.ShapeDtypeStruct(where.shard_shape(x.shape), x.dtype)  # noqa: E731
    return trees.size_bytes(jax.tree.map(part, base, base_sharding(base, mesh)))


def _flops(
    recipe: RoundRecipe,
    federation: Federation,
    ranks: np.ndarray,
    base: Params,
    trained: Trained,
    data: Tokens,
    devices: Devices,
) -> float:
    """See `Needs.flops`."""
    reading, rows = recipe.reading, row_buckets(recipe.batch)

    def of_step(size: int, length: int) -> int:
        inputs = _step_inputs(reading, recipe, data, size, length)
        loss = _loss(reading)
        return product_flops(jax.grad(loss, argnums=1), base, trained, *inputs)

    flops = {
        (size, n): of_step(size, length) // devices.model
        for size in rows
        for n, length in enumerate(reading.lengths)
    }
    wave = 1 if recipe.mode == "loop" else recipe.wave
    plans = (federation.plan(t, ranks, 1.0) for t in range(FEW_ROUNDS))
    each = [cohort_flops(plan, flops, rows, parts=devices.clients, wave=wave) for plan in plans]
    return float(np.mean(each))


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


def _loss(reading: Reading) -> Callable[..., Any]:
    """The loss of a client's step, ``(base, trained, gain, batch, valid, key)``."""
    objective = reading.objective()
    return lambda base, trained, gain, *own: objective.loss(base, trained, gain, None, *own)


def _step_inputs(
    reading: Reading, recipe: RoundRecipe, data: Tokens, rows: int, length: int
) -> tuple[Any, ...]:
    """Shapes of what a client's step takes besides the base and what is trained."""
    objective, template = reading.objective(), recipe.template
    gain = {
        site.path: jax.ShapeDtypeStruct((*site.stack, template.rank), jnp.float32)
        for site in template.sites
    }
    index = jax.ShapeDtypeStruct((rows,), jnp.int32)
    batch = jax.eval_shape(lambda data, index: objective.take(data, index, length), data, index)
    valid = jax.ShapeDtypeStruct((rows,), bool)
    return gain, batch, valid, jax.eval_shape(lambda: jax.random.key(0))


def _kept(
    reading: Reading, recipe: RoundRecipe, base: Params, trained: Trained, data: Tokens
) -> int:
    """Bytes that the gradient of a second client adds to those of a first one."""
    inputs = _step_inputs(reading, recipe, data, recipe.batch, reading.lengths[-1])
    one = _loss(reading)

    def backward(base: Params, trained: Trained, *inputs: Any) -> Any:
        def loss(trained: Trained) -> Any:
            each = jax.vmap(one, in_axes=(None, *[0] * (1 + len(inputs))))
            return jnp.sum(each(base, trained, *inputs))

        return jax.vjp(loss, trained)[1]  # a pytree of what it keeps

    def size(count: int) -> int:
        of_all = lambda tree: jax.tree.map(  # noqa: E731
            lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), tree
        )
        own = map(of_all, (trained, *inputs))
        kept = jax.tree.leaves(jax.eval_shape(backward, base, *own))
        return trees.size_bytes(
            [x for x in kept if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
        )

    return size(2) - size(1)


def told(found: Needs, rate: float) -> list[str]:
    """The needs as lines for a terminal, in MB (a million bytes).

    Args:
      found: the needs.
      rate: operations a second in matrix products, see `fedjax_lora.workload.product_rate`.
    """
    memory, amount = found.memory, lambda size: f"{size / 1e6:12.1f} MB"
    devices = found.devices
    clients, wave = f"{memory.cohort} clients", f"{memory.wave} at a time"
    rows = [
        ("base model", memory.base),
        ("server and what clients keep between rounds", memory.server),
        ("training tokens", memory.data),
        (f"{clients}: adapter and head, before and after", memory.cohort * memory.client),
        (f"{wave}: gradient, update and optimizer", memory.wave * memory.working),
        (f"{wave}: activations, at the longest texts", memory.wave * memory.activations),
        ("layers, taken out of their stack", memory.layers),
        ("memory of a device, about", memory.total),
        ("sent in a round", found.up),
        ("received in a round", found.down),
        (f"both in {found.rounds} rounds", found.rounds * (found.up + found.down)),
    ]
    width = max(len(name) for name, _ in rows)
    several = f", {devices.processes} processes" if devices.processes > 1 else ""
    return [
        f"devices: {devices.clients * devices.model} x {devices.kind}{several}; mesh: clients "
        f"{devices.clients} x model {devices.model}",
        f"one program, with a step for each of {len(found.rows)} batch sizes "
        f"({', '.join(map(str, found.rows))}) and {len(found.lengths)} lengths "
        f"({', '.join(map(str, found.lengths))} tokens)",
        *(f"{name:<{width}}{amount(size)}" for name, size in rows),
        f"local training of a round: {found.flops / 1e12:.3g} TFLOP of matrix products on a device",
        f"time of that, about: {found.flops / rate:.3g} s at {rate / 1e12:.3g} TFLOP/s, the rate "
        f"of a large {found.dtype} product measured here just now; a step does not reach it, and "
        "server, evaluation and compilation come on top",
    ]
