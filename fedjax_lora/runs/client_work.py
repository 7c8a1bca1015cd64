"""The work of the clients' devices: operations and memory by rank, and the clock of a run."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from fedjax_lora import data
from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import BatchShape, ClientParams
from fedjax_lora.federated import FederatedState, Head, Plan, ranks, transforms
from fedjax_lora.federated.clock import Clock, Deadline, Devices, Timing, Work
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods import Method
from fedjax_lora.methods.base import FLOAT_BYTES
from fedjax_lora.runs.choices import Choices
from fedjax_lora.runs.compilation import InputSpec
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.loading import Assets
from fedjax_lora.runs.round_record import RecordContext
from fedjax_lora.runs.step_cost import shape_flops

COPIES = 4
"""Numbers in memory for each one that is trained: value, gradient, Adam's two moments."""


class Fleet(NamedTuple):
    """The devices of a run's clients, and their work.

    Attributes:
      devices: of all clients.
      work: of a client.
      deadline: when the server closes a round.
    """

    devices: Devices
    work: Work
    deadline: Deadline

    def capacity(
        self, config: RunConfig, assets: Assets, partition: data.Partition, component_size: int
    ) -> ranks.Capacity:
        """Return what the devices can do, for allocations of ranks.

        Args:
          config: the run.
          assets: data and model.
          partition: the examples of each client.
          component_size: numbers in one component.
        """
        local, devices = config.local, self.devices
        most = np.inf if local.max_steps is None else local.max_steps * local.batch
        length = assets.train.length
        tokens = np.array(
            [min(local.epochs * len(own), most) * length[own].mean() for own in partition.indices]
        )
        head = trees.size_bytes(assets.model.params["head"])
        sent = head if config.federation.heads == "average" else 0

        def seconds(rank: np.ndarray) -> np.ndarray:
            size = FLOAT_BYTES * component_size * rank + sent
            computed = tokens * self.work.token_flops(rank) / devices.flops
            return computed + size / devices.down + size / devices.up

        return ranks.Capacity(seconds, self.work.bytes, devices.memory, self.deadline.seconds)

    def clock(self, cohort: int, method: Method, allocation: ranks.Allocation) -> Clock:
        """Return the clock of a run.

        Raises:
          InputError: clients are scored by training, which the clock does not count.
        """
        if allocation.schedule is not None and allocation.schedule.needs_validation:
            raise InputError(
                "The simulated clock does not count the training by which rank allocation "
                "'loss_based' scores clients; leave out device_profiles, or take another "
                "allocation."
            )
        work = self.work._replace(trainings=1 if method.select is None else 2)
        return Clock(self.devices, work, self.deadline, cohort)


def make_fleet(
    config: RunConfig,
    choices: Choices,
    inputs: InputSpec,
    spec: LoraSpec,
    assets: Assets,
    shape: BatchShape,
) -> Fleet | None:
    """Give the clients their devices, and count their work from shapes alone.

    Args:
      config: the run.
      choices: its choices.
      inputs: how the model reads the data.
      spec: the adapted layers, of any rank.
      assets: data and model; the model's parameters may be shapes alone.
      shape: the largest shape of a step.

    Returns:
      The fleet; None for a run without device profiles.

    Raises:
      InputError: a deadline without profiles, or a sampling that does not go with them.
    """
    fed = config.federation
    if choices.device_profiles is None:
        if choices.deadline != Deadline():
            raise InputError(
                f"Deadline {fed.deadline!r} needs device profiles, which say how long clients take;"
                " give device_profiles, or leave out the deadline."
            )
        return None
    devices = choices.device_profiles(fed.clients, config.seed)
    if np.any(devices.availability < 1) and fed.sampling not in ("uniform", "weighted"):
        raise InputError(
            f"Clients that are not always available are drawn uniformly or by weight, and this run "
            f"has sampling={fed.sampling!r}; leave it out, or give profiles an availability of 1."
        )
    return Fleet(devices, _work(inputs, spec, assets, shape, heads=fed.heads), choices.deadline)


def _work(
    inputs: InputSpec, spec: LoraSpec, assets: Assets, shape: BatchShape, *, heads: Head
) -> Work:
    """Count the work of a client in the traces of a step at two ranks."""
    params, train = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (assets.model.params, assets.train)
    )
    head, base = params["head"], {name: part for name, part in params.items() if name != "head"}

    def token_flops(rank: int) -> float:
        own = dataclasses.replace(spec, rank=rank)
        trained = ClientParams(own.shapes(), head)
        return shape_flops(inputs, own, base, trained, train, shape) / shape.tokens

    one, two = token_flops(1), token_flops(2)
    copies = 1 if heads == "frozen" else COPIES
    return Work(
        flops=2 * one - two,
        flops_of_component=two - one,
        memory=trees.size_bytes(base) + copies * trees.size_bytes(head),
        memory_of_component=COPIES * FLOAT_BYTES * spec.component_size,
    )


def close_round(
    clock: Clock, context: RecordContext, plan: Plan, state: FederatedState
) -> tuple[Plan, Timing]:
    """Let a round pass on the clock, with the bytes that the method would send.

    Args:
      clock: of the run.
      context: what records are computed from.
      plan: of the round.
      state: before the round.
    """
    drawn = context.federation.drawn(plan)
    rank, head = np.asarray(plan.rank)[drawn], context.sent_head
    traffic = context.method.traffic(state.server, rank, int(np.asarray(plan.round)))
    up = transforms.uplink_bytes(context.updates, traffic, context.method.spec, head)
    return clock.close(plan, traffic.down + trees.size_bytes(head), up)
