"""Planning on the host: the clients' examples and ranks, and each round's plan.

Every choice is drawn from (seed, round, client id), never from a running generator, so any round
can be planned without the ones before it and a resumed run plans what the first one would have.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import Batches
from fedjax_lora.data import batching
from fedjax_lora.federated import Plan
from fedjax_lora.federated.attacks import Attack
from fedjax_lora.federated.faults import Fault, steps_taken
from fedjax_lora.federated.sampling import Sampler, uniform


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalSteps:
    """How clients train on their own examples: their steps, and which examples are in each.

    A real client has this and its own rows, and takes the steps that it would take in a simulation.
    """

    batch: int
    epochs: int
    max_steps: int | None
    by_length: bool
    seed: int

    def due(self, examples: int) -> int:
        """The local steps of a client with so many examples, if nothing goes wrong with it."""
        return batching.local_steps(
            examples, batch=self.batch, epochs=self.epochs, most=self.max_steps
        )

    def batches(
        self,
        round: int | np.ndarray,
        ids: Sequence[int] | np.ndarray,
        members: Sequence[np.ndarray],
        length: np.ndarray,
        steps: np.ndarray,
        *,
        padded_steps: int,
    ) -> Batches:
        """The examples of some clients' steps, drawn from (seed, round, client id).

        Args:
          round: counted from 0; one for all, or of each client, ``int[c]``.
          ids: of the clients, ``int[c]``.
          members: per client, its rows of the data.
          length: ``int[E]``, tokens of each example.
          steps: ``int[c]``, how many steps each client takes.
          padded_steps: `s` of the result.
        """
        rounds = np.broadcast_to(round, len(ids)).tolist()
        work = batching.client_batches(
            members,
            length,
            batch=self.batch,
            epochs=self.epochs,
            max_steps=self.max_steps,
            padded_steps=padded_steps,
            rngs=[
                np.random.default_rng([self.seed, 1, t, k])
                for t, k in zip(rounds, ids, strict=True)
            ],
            by_length=self.by_length,
        )
        return batching.limit_steps(work, steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Federation:
    """All clients and how they train; plans their rounds."""

    members: Sequence[np.ndarray]  # per client, its rows of the training data
    length: np.ndarray  # int[E], tokens of each example
    cohort: int  # clients drawn per round
    padded: int  # cohort size with absent clients added
    batch: int
    epochs: int
    max_steps: int | None
    by_length: bool
    seed: int
    least_steps: int = 0  # pad to so many steps at least, to be of one shape with other federations
    faults: tuple[Fault, ...] = ()  # what goes wrong with drawn clients
    attacks: tuple[Attack, ...] = ()
    attackers: tuple[np.ndarray, ...] = ()  # bool[N] for each attack, who commits it
    amount: np.ndarray | None = None  # float[E], an example's part of its client's weight, or all 1
    sampler: Sampler = uniform()  # noqa: RUF009  # who takes part in a round
    availability: np.ndarray | None = None  # float[N], probability to be there in a round, or all 1

    def __post_init__(self) -> None:
        if empty := [k for k, own in enumerate(self.members) if len(own) == 0]:
            raise InputError(
                f"Clients {empty[:10]} have no training examples; ask for fewer clients."
            )

    @functools.cached_property
    def steps(self) -> int:
        """Steps to which all plans are padded: those of the client with the most, or more."""
        return max(self.due(max(len(own) for own in self.members)), self.least_steps)

    def due(self, examples: int) -> int:
        """The local steps of a client with so many examples, if nothing goes wrong with it."""
        return self.local.due(examples)

    @property
    def local(self) -> LocalSteps:
        """What the clients do with their examples."""
        return LocalSteps(
            batch=self.batch,
            epochs=self.epochs,
            max_steps=self.max_steps,
            by_length=self.by_length,
            seed=self.seed,
        )

    def _weight(self, own: np.ndarray) -> float:
        return float(len(own) if self.amount is None else self.amount[own].sum())

    def sample(self, round: int) -> np.ndarray:
        """The ids of a round's cohort, without repetition, ``int64[c]``.

        Where fewer clients are available than a cohort has, all of them take part; where none is,
        the one that is closest to it.
        """
        if self.availability is None:
            return self.sampler(self.seed, round, self._weights, self.cohort)
        excess = np.random.default_rng([self.seed, 7, round]).random(len(self.members))
        excess -= self.availability
        there = np.flatnonzero(excess < 0)
        there = there if len(there) else np.array([excess.argmin()])
        count = min(self.cohort, len(there))
        return there[self.sampler(self.seed, round, self._weights[there], count)]

    @functools.cached_property
    def _weights(self) -> np.ndarray:
        """The weights of all clients, ``float[N]``."""
        return np.array([self._weight(own) for own in self.members])

    def parts(self, ids: np.ndarray) -> list[np.ndarray]:
        """Some clients in parts no larger than a cohort, those of about the same size together."""
        size = np.array([len(self.members[k]) for k in ids])
        ids = ids[np.argsort(-size, kind="stable")]
        return [ids[at : at + self.cohort] for at in range(0, len(ids), self.cohort)]

    def begin(self, round: int, number: int, idle: np.ndarray, count: int) -> np.ndarray:
        """The ids of clients that begin at once, of those that are idle.

        Args:
          round: in which they begin.
          number: of the draw in this round, from 0; the first of all clients is `sample`.
          idle: ids, ascending.
          count: how many begin.
        """
        if number == 0:
            return idle[self.sampler(self.seed, round, self._weights[idle], count)]
        rng = np.random.default_rng([self.seed, 8, round, number])
        return rng.choice(idle, count, replace=False)

    def tokens(self, round: int, ids: np.ndarray) -> np.ndarray:
        """The tokens that clients train on if they begin in a round, ``int[c]``."""
        members = [self.members[k] for k in ids]
        due = np.array([self.due(len(own)) for own in members])
        batches = self.local.batches(
            round, ids, members, self.length, due, padded_steps=int(due.max())
        )
        return np.asarray(batches.tokens).sum(axis=1)

    def plan(
        self,
        round: int,
        rank: np.ndarray,
        rate: float,
        *,
        ids: np.ndarray | None = None,
        begun: np.ndarray | None = None,
    ) -> Plan:
        """What happens in a round.

        Clients are ordered by their number of steps, so that those trained together have
        about as many. Those who do not answer have no steps and no weight. Absent clients (to fill
        groups and devices) come last, with id `N`.

        Args:
          round: counted from 0.
          rank: ``int[N]``, ranks of all clients.
          rate: learning rate of the round.
          ids: who takes part, at most a cohort, and nothing goes wrong with them; by default those
            drawn for the round.
          begun: the round in which each of ``ids`` began, where clients may be late.
        """
        faults = self.faults if ids is None else ()
        ids = self.sample(round) if ids is None else ids
        size = np.array([len(self.members[k]) for k in ids])
        own_draw = [(self.seed, 4, round, k) for k in ids]
        steps = np.array(
            [steps_taken(faults, self.due(n), draw=d) for n, d in zip(size, own_draw, strict=True)]
        )
        order = np.lexsort((-size, -steps))
        ids, size, steps = ids[order], size[order], steps[order]
        first = np.full(len(ids), round) if begun is None else begun[order]
        absent = self.padded - len(ids)
        members = [self.members[k] for k in ids] + [np.zeros(0, np.int32)] * absent
        fill = np.full(absent, len(self.members))
        taken = np.concatenate([steps, np.zeros(absent, steps.dtype)])
        since = np.concatenate([first, np.full(absent, round)]).astype(np.int32)
        batches = self.local.batches(
            since,
            np.concatenate([ids, fill]),
            members,
            self.length,
            taken,
            padded_steps=self.steps,
        )
        attackers = tuple(np.append(x[ids], np.zeros(absent, bool)) for x in self.attackers)
        weight = np.where(taken > 0, self._amounts(members, attackers), 0)
        return Plan(
            id=np.concatenate([ids, fill]).astype(np.int32),
            rank=np.concatenate([rank[ids], np.ones(absent)]).astype(np.int32),
            weight=weight.astype(np.float32),
            batches=batches,
            rate=np.float32(rate),
            round=np.int32(round),
            attackers=attackers,
            staleness=() if begun is None else np.int32(round) - since,
        )

    def _amounts(
        self, members: Sequence[np.ndarray], attackers: Sequence[np.ndarray]
    ) -> np.ndarray:
        """The weights of a cohort as clients state them, ``float[c]``."""
        amount = np.array([self._weight(own) for own in members])
        for attack, mine in zip(self.attacks, attackers, strict=True):
            amount = np.where(mine, attack.count * amount, amount)
        return amount

    def drawn(self, plan: Plan) -> np.ndarray:
        """Who of a plan's clients receives the model, ``bool[c]``: all but the absent."""
        return np.asarray(plan.id) < len(self.members)

    def events(self, plan: Plan) -> dict[str, list[int]]:
        """What goes wrong before anything is sent: ids by what happens, ascending."""
        drawn, steps = self.drawn(plan), plan.batches.steps
        due = np.array([self.due(len(self.members[k])) for k in np.asarray(plan.id)[drawn]])
        late = (steps[drawn] > 0) & (steps[drawn] < due)
        dropped = plan.id[drawn & (plan.weight == 0)]
        events = {
            "dropped": np.sort(dropped).tolist(),
            "stragglers": np.sort(plan.id[drawn][late]).tolist(),
        }
        if self.attackers:
            attacks = np.any(np.stack(self.attackers), axis=0)
            present = plan.id[drawn & (plan.weight > 0)]
            events["attackers"] = np.sort(present[attacks[present]]).tolist()
        return events
