"""A site's half of a round: it reads the server's message, trains on its own rows, and answers."""

import dataclasses
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora
from fedjax_lora.core.types import ClientParams, LoRA, Params
from fedjax_lora.data import Tokens
from fedjax_lora.deploy import wire
from fedjax_lora.deploy.exchange import header
from fedjax_lora.deploy.kernels import SiteKernels
from fedjax_lora.deploy.message import Form, Refused, from_bytes, number, to_bytes
from fedjax_lora.deploy.wire import Rules, Start, Update
from fedjax_lora.federated import ClientResult, Clients, ClientWorkFn
from fedjax_lora.federated.planning import LocalSteps
from fedjax_lora.federated.transforms import UpdateTransform, apply_transforms

KEY = Form((2,), np.dtype(np.uint32))
"""The form of a random key."""

VALUES = {"rate", "steps", "padded_steps"}
"""Numbers in a round's message besides those of the adapter."""

MOST_STEPS = 1 << 20
"""Local steps of a round that a server may ask for. A simulation's cohort is padded to those of the
busiest client, and the last bit of a result may depend on this number: XLA compiles it in."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Site:
    """A client with its own rows.

    Attributes:
      client: its number in the federation.
      digest: of the federation.
      rules: what is sent.
      work: its part of a round, compiled; see `fedjax_lora.federated.make_client_work`.
      base: the frozen base.
      data: its tokens.
      rows: which rows of ``data`` are its own, ``int[E]``.
      local: how it trains on them.
      head: the head of the base.
      kernels: the kernels that the method changes, which it holds from round to round.
      updates: its own transforms of what it sends, such as clipping and noise. Their random
        numbers come from this machine's entropy, so that nobody who knows the run's seed can take
        noise away again.
    """

    client: int
    digest: str
    rules: Rules
    work: Callable[..., ClientResult] | ClientWorkFn
    base: Params
    data: Tokens
    rows: np.ndarray
    local: LocalSteps
    head: Mapping[str, Any]
    kernels: SiteKernels
    updates: Sequence[UpdateTransform] = ()

    def fit(self, data: bytes) -> bytes:
        """Answer a message of the server.

        Raises:
          Refused: it is not one of this federation to this client.
        """
        message = from_bytes(data, most=wire.most_bytes(self.rules))
        round = int(number(message, "round", 0, 2**31 - 1, whole=True))
        known = header(self.digest, round, self.client)
        start = wire.unpack_down(self.rules, message, known, VALUES, head=self.head, key=KEY)
        if (start.kernels is not None) != self.rules.adds:
            raise Refused("A message changes kernels that the method does not, or none of its own.")
        rate = number(message, "rate", 0, 1e6)
        due = self.local.due(len(self.rows))
        steps = int(number(message, "steps", 0, due, whole=True))
        padded = int(number(message, "padded_steps", max(steps, 1), MOST_STEPS, whole=True))
        update = self._trained(start, round, rate, steps, padded)
        rng = np.random.default_rng(secrets.randbits(128))
        return to_bytes(wire.pack_up(self.rules, start, update, known, rng))

    def _trained(
        self, start: Start, round: int, rate: float, steps: int, padded_steps: int
    ) -> Update:
        """What the client has after its local training and its own transforms."""
        batches = self.local.batches(
            round,
            [self.client],
            [self.rows],
            np.asarray(self.data.length),
            np.array([steps]),
            padded_steps=padded_steps,
        )
        alone = jax.tree.map(lambda x: jnp.asarray(x)[None], (start.params, start.gain))
        trains = jax.tree.map(lambda x: jnp.asarray(x)[None], start.trainable)
        clients = Clients(
            *alone,
            trainable=trains,
            rank=jnp.array([start.rank], jnp.int32),
            batches=batches,
            key=jax.random.wrap_key_data(jnp.asarray(start.key))[None],
        )
        base = self.base
        if start.kernels is not None:
            base = lora.with_kernels(base, self.kernels.apply(start.kernels))
        result = self.work(
            base, self.data, clients, jnp.float32(rate), jnp.asarray(round, jnp.int32)
        )
        params = self._sent(clients.params, result)
        params, metrics, trainable = jax.tree.map(
            lambda x: np.asarray(x)[0], (params, result.metrics, result.trainable)
        )
        return Update(
            params,
            trainable,
            int(result.rank[0]),
            float(metrics.loss),
            float(metrics.examples),
        )

    def _sent(self, start: ClientParams, result: ClientResult) -> ClientParams:
        """What the client's own transforms make of its update."""
        if not self.updates:
            return result.params
        a, b = self.rules.sends
        learns = {p: LoRA(m.a & a, m.b & b) for p, m in result.trainable.adapter.items()}
        own = jax.random.key(secrets.randbits(63))
        sent, _ = apply_transforms(
            self.updates,
            start,
            result.params,
            result.trainable._replace(adapter=learns),
            jnp.ones(1),
            jnp.zeros(1, jnp.int32),
            own,
        )
        return sent
