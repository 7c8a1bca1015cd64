"""The server's half of a round: a message to each client, and what it makes of their answers."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora
from fedjax_lora.core.errors import InputError
from fedjax_lora.deploy import wire
from fedjax_lora.deploy.kernels import KernelHistory
from fedjax_lora.deploy.message import Refused, from_bytes, to_bytes
from fedjax_lora.deploy.wire import Rules, Start, Update
from fedjax_lora.federated import Answers, Assignment, ClientMetrics, Clients, Plan, RoundMetrics

log = logging.getLogger(__name__)

VERSION = 1
"""Of the messages."""

Send = Callable[[int, Mapping[int, bytes]], Mapping[int, bytes]]
"""``(round, messages) -> answers`` by client id, without those that do not come in time."""


class Sizes(NamedTuple):
    """Bytes of the messages with one client in a round; 0 up if it has not answered."""

    down: int  # of the arrays
    up: int
    down_message: int  # of the whole message
    up_message: int


def header(digest: str, round: int, client: int) -> dict[str, object]:
    """The values by which both sides know what a message belongs to."""
    return {"version": VERSION, "digest": digest, "round": round, "client": client}


class Exchange:
    """The exchange of mode ``remote``, see `fedjax_lora.federated.remote`.

    Attributes:
      rules: what is sent.
      digest: of the federation; a message of another one is refused.
      send: carries messages and waits for answers.
      least: a round with fewer answers is not taken.
      names: of the clients, for messages to people.
      sizes: of the messages of the last round, by client id.
      refused: why answers of the last round were not taken, by client id.
      held: names of the kernels that clients hold, by client id, as far as it is known.
    """

    def __init__(
        self,
        rules: Rules,
        digest: str,
        send: Send,
        *,
        least: int = 1,
        names: tuple[str, ...] = (),
        held: Mapping[int, str] | None = None,
    ) -> None:
        self.rules, self.digest, self.send = rules, digest, send
        self.least, self.names = least, names
        self.sizes: dict[int, Sizes] = {}
        self.refused: dict[int, str] = {}
        self.held = dict(held or {})
        self._history = KernelHistory(rules.spec) if rules.adds else None

    def __call__(self, given: Assignment) -> Answers:
        """Have a cohort trained.

        Raises:
          InputError: fewer clients have answered than must.
        """
        round, ids = int(np.asarray(given.plan.round)), np.asarray(given.plan.id).tolist()
        asked = np.asarray(given.plan.weight) > 0
        starts = self._with_kernels(given, ids)
        steps = np.asarray(given.clients.batches.steps)
        messages = {}
        self.sizes, self.refused = {}, {}
        for k, start in enumerate(starts):
            if asked[k]:
                known = header(self.digest, round, ids[k])
                message = wire.pack_down(
                    self.rules,
                    start,
                    known,
                    rate=float(np.asarray(given.plan.rate)),
                    steps=int(steps[k]),
                    padded_steps=given.clients.batches.valid.shape[1],
                )
                messages[ids[k]] = to_bytes(message)
                self.sizes[ids[k]] = Sizes(message.array_bytes, 0, len(messages[ids[k]]), 0)
        got = self.send(round, messages)
        before = dict(self.held)
        updates = [
            self._read(round, id, start, got.get(id), _most_examples(given.clients, k))
            for k, (id, start) in enumerate(zip(ids, starts, strict=True))
        ]
        self.held = before | {
            id: start.kernels.version
            for id, start, update in zip(ids, starts, updates, strict=True)
            if update is not None and start.kernels is not None
        }
        for id in messages.keys() - {i for i, u in zip(ids, updates, strict=True) if u is not None}:
            self.held.pop(id, None)  # whether it has read the message is not known
        self._check_enough(round, updates, int(asked.sum()))
        return _answers(starts, updates)

    def report(self, plan: Plan, metrics: RoundMetrics) -> None:
        """Take note of a round's outcome; see `fedjax_lora.federated.Execution`."""
        if self._history is not None and not isinstance(metrics.added, tuple):
            self._history.add(metrics.added)

    def _with_kernels(self, given: Assignment, ids: list[int]) -> list[Start]:
        """The clients of a cohort, with what each needs to have the server's kernels."""
        starts = list(rows(given.clients))
        if self._history is None:
            return starts
        kernels = jax.device_get(lora.kernels_of(given.base, self.rules.spec))
        self._history.begin(kernels)
        return [
            start._replace(kernels=self._history.change(self.held.get(id), kernels))
            for id, start in zip(ids, starts, strict=True)
        ]

    def _read(
        self, round: int, id: int, start: Start, data: bytes | None, most: float
    ) -> Update | None:
        """A client's update, or None if there is none that can be taken."""
        if data is None or id not in self.sizes:
            return None
        try:
            message = from_bytes(data, most=wire.most_bytes(self.rules))
            known = header(self.digest, round, id)
            update = wire.unpack_up(self.rules, start, message, known, most_examples=most)
        except Refused as reason:
            self.refused[id] = str(reason)
            log.warning(
                "round %d: the answer of %s is refused: %s", round + 1, self.name(id), reason
            )
            return None
        sent = self.sizes[id]
        self.sizes[id] = sent._replace(up=message.array_bytes, up_message=len(data))
        return update

    def name(self, id: int) -> str:
        """The name of a client for a person."""
        return f"site {self.names[id]!r}" if id < len(self.names) else f"client {id}"

    def _check_enough(self, round: int, updates: list[Update | None], asked: int) -> None:
        count = sum(update is not None for update in updates)
        if count < min(self.least, asked):
            raise InputError(
                f"Round {round + 1}: {count} of {asked} clients have answered, at least "
                f"{self.least} must; nothing of the round is kept, so start the server again with "
                "--resume when they are there."
            )


def rows(clients: Clients) -> Iterator[Start]:
    """The clients of a cohort one after the other, in NumPy."""
    keys = np.asarray(jax.random.key_data(clients.key))
    parts = (clients.params, clients.gain, clients.trainable)
    params, gain, trainable = jax.tree.map(np.asarray, jax.device_get(parts))
    for k, rank in enumerate(np.asarray(clients.rank)):
        own = jax.tree.map(lambda x, k=k: x[k], (params, gain, trainable))
        yield Start(*own, rank=int(rank), key=keys[k])


def _most_examples(clients: Clients, k: int) -> float:
    valid = np.asarray(clients.batches.valid)
    return float(np.asarray(clients.batches.steps)[k] * valid.shape[-1])


def _answers(starts: list[Start], updates: list[Update | None]) -> Answers:
    """The updates as stacks; the start of clients that have sent none."""

    def stacked(values: list[Any]) -> Any:
        return jax.tree.map(lambda *xs: jnp.asarray(np.stack(xs)), *values)

    pairs = list(zip(starts, updates, strict=True))
    loss = [0.0 if update is None else update.loss for update in updates]
    examples = [0.0 if update is None else update.examples for update in updates]
    return Answers(
        stacked([s.params if u is None else u.params for s, u in pairs]),
        ClientMetrics(jnp.asarray(loss, jnp.float32), jnp.asarray(examples, jnp.float32)),
        stacked([s.trainable if u is None else u.trainable for s, u in pairs]),
        np.array([update is not None for update in updates]),
    )
