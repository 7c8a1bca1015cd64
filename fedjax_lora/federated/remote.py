"""Cohorts that are trained elsewhere: what a server hands out, what it gets back, a client's work.

In mode ``remote`` of `fedjax_lora.federated.Execution` a host function, the exchange, stands where
the other modes train: it is given an `Assignment` and returns `Answers`. What comes before and
after it in a round (broadcast, rejection, transforms at the server, aggregation, the server
optimizer) is that of a simulation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from fedjax_lora import lora
from fedjax_lora.core.types import AnyArray, Array, ClientParams, Params, PyTree
from fedjax_lora.federated.state import Plan
from fedjax_lora.federated.training import ClientMetrics, Clients, Training
from fedjax_lora.methods.base import ClientInit, Method


class Assignment(NamedTuple):
    """What a cohort is to do in a round."""

    base: Params  # with the kernels that the method has changed
    data: PyTree  # of the round's caller; real clients have their own
    clients: Clients  # [c, ...]
    plan: Plan  # ids, rate and round; a client of weight 0 is not to answer


class Answers(NamedTuple):
    """What comes back. Values of clients that have not answered are arbitrary."""

    params: ClientParams  # after local training, [c, ...]
    metrics: ClientMetrics  # [c]
    trainable: ClientParams  # what of it was trained: as assigned, unless the method selects
    answered: AnyArray  # bool[c]


class ClientResult(NamedTuple):
    """What clients have after their part of a round, leaves ``[w, ...]``."""

    params: ClientParams
    metrics: ClientMetrics
    trainable: ClientParams  # after a selection, if the method makes one
    rank: Array  # int32[w], of what they send: smaller where a method trims


ClientWorkFn = Callable[[Params, PyTree, Clients, Array, Array], ClientResult]
"""``(base, data, clients, rate, round) -> ClientResult``."""


def make_client_work(method: Method, train: Training) -> ClientWorkFn:
    """A client's part of a round: the probe and the selection, local training, trimming.

    Args:
      method: the federated method.
      train: local training; the method's hooks are added here.

    Returns:
      A function to be traced, for any number of clients at once.
    """
    fit = train.bind(method)

    def work(base: Params, data: Any, clients: Clients, rate: Array, round: Array) -> ClientResult:
        if method.select is not None:
            probed, _ = fit(base, data, clients, rate)
            init = method.select(round, clients.rank, started_with(clients), probed.adapter)
            params, trainable = trained_from(init, clients.params.head, clients.trainable.head)
            clients = clients._replace(params=params, gain=init.gain, trainable=trainable)
        trained, metrics = fit(base, data, clients, rate)
        rank = clients.rank
        if method.trim is not None:
            folded = lora.fold(trained.adapter, trained.coefficients)
            rank = method.trim(rank, clients.params.adapter, folded)
        return ClientResult(trained, metrics, clients.trainable, rank)

    return work


def started_with(clients: Clients) -> ClientInit:
    """What the method has given the clients to begin with."""
    params, trains = clients.params, clients.trainable
    return ClientInit(
        params.adapter, clients.gain, trains.adapter, params.coefficients, trains.coefficients
    )


def trained_from(
    init: ClientInit, head: Params, learns: Params
) -> tuple[ClientParams, ClientParams]:
    """What clients begin with, and what of it they train."""
    trains = init.trained_coefficients
    if init.coefficients and not trains:
        trains = lora.masked_components(init.trainable)
    return (
        ClientParams(init.adapter, head, init.coefficients),
        ClientParams(init.trainable, learns, trains),
    )
