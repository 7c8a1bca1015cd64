"""Runs whose server does not wait for all: what they do not go with, and their rounds."""

from collections.abc import Callable

import numpy as np

from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.federated import Execution, FederatedState, Plan, staleness, transforms
from fedjax_lora.federated.attacks import Attack
from fedjax_lora.federated.clock import Clock, Deadline, Events, Server, Timing
from fedjax_lora.federated.planning import Federation
from fedjax_lora.federated.ranks import Allocation
from fedjax_lora.methods import Method
from fedjax_lora.runs.choices import Choices
from fedjax_lora.runs.client_work import Fleet
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.round_record import RecordContext


def check_server(
    config: RunConfig,
    choices: Choices,
    method: Method,
    allocation: Allocation,
    execution: Execution,
    fleet: Fleet | None,
) -> None:
    """Refuse what a server that does not wait does not go with.

    Raises:
      InputError: in one sentence.
    """
    if choices.server is None:
        return
    fed = config.federation
    choices.server.answers(fed.cohort)
    staleness.check_method(method, choices.server.staleness)
    if fleet is None:
        raise InputError(
            f"Server {fed.server_mode!r} needs device profiles, which say how long clients take; "
            "give device_profiles, or leave out --server-mode."
        )
    problems = (
        (choices.deadline != Deadline(), "a deadline, which closes rounds that wait; leave it out"),
        (
            bool(np.any(fleet.devices.availability < 1)),
            "clients that are not always available; give profiles an availability of 1",
        ),
        (
            fed.sampling not in ("uniform", "weighted"),
            f"sampling={fed.sampling!r}, which draws whole cohorts; take uniform or weighted",
        ),
        (
            not all(isinstance(fault, Attack) for fault in choices.faults),
            "dropout or stragglers; leave them out, the devices say who is slow",
        ),
        (
            allocation.schedule is not None,
            f"ranks {fed.ranks!r}, which change while clients are at work; take other ranks",
        ),
        (config.execution.measure, "--measure; leave it out"),
        (execution.mode == "remote", "clients that are real machines; leave it out"),
    )
    if found := [words for wrong, words in problems if wrong]:
        raise InputError(f"Server {fed.server_mode!r} does not go with {found[0]}.")


def make_events(config: RunConfig, server: Server | None, federation: Federation) -> Events | None:
    """Return the events of a run, if its server does not wait."""
    if server is None:
        return None
    fed = config.federation
    return Events(server, fed.clients, fed.cohort, federation.begin)


def late_round(
    events: Events,
    clock: Clock,
    context: RecordContext,
    round: int,
    rank: np.ndarray,
    rate: float,
    state: FederatedState,
) -> tuple[Plan, Timing]:
    """Return the plan of a round from the answers that make it, and its times.

    Args:
      events: of the run.
      clock: of the run.
      context: what records are computed from.
      round: counted from 0.
      rank: of all clients, ``int[N]``.
      rate: learning rate of the round, with which those train that answer in it.
      state: before the round.
    """
    federation = context.federation
    times = _times(clock, context, rank, state)

    def take(begun: int, ids: np.ndarray) -> np.ndarray:
        return np.sum(times(begun, ids, federation.tokens(begun, ids)), axis=0)

    answered = events.answered(round, take)
    ids = np.array([job.id for job in answered.jobs])
    begun = np.array([job.round for job in answered.jobs])
    plan = federation.plan(round, rank, rate, ids=ids, begun=begun)
    tokens = np.asarray(plan.batches.tokens)[: len(ids)].sum(axis=1)
    download, compute, upload = times(round, np.asarray(plan.id)[: len(ids)], tokens)
    late = list(answered.stopped)
    timing = Timing(plan, download, compute, upload, answered.seconds, late=late, surplus=[])
    return plan, timing


def _times(
    clock: Clock, context: RecordContext, rank: np.ndarray, state: FederatedState
) -> Callable[[int, np.ndarray, np.ndarray], tuple[np.ndarray, ...]]:
    """Make ``(round, ids, tokens) -> seconds`` of receiving, computing and sending."""
    head = context.sent_head

    def times(round: int, ids: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, ...]:
        traffic = context.method.traffic(state.server, rank[ids], round)
        up = transforms.uplink_bytes(context.updates, traffic, context.method.spec, head)
        down = traffic.down + trees.size_bytes(head)
        return clock.times(ids, rank[ids], tokens, down=down, up=up)

    return times
