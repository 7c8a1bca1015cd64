"""A run that is prepared: what it needs before its first round, and its first state."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import data, federated, interop, lora
from fedjax_lora.core import trees
from fedjax_lora.core.json_values import History, Record
from fedjax_lora.core.types import Adapter, Key, Params
from fedjax_lora.evaluation.task_types import TASK_TYPES, Scores
from fedjax_lora.federated import FederatedState, Plan, RoundMetrics
from fedjax_lora.federated.clock import Events, Timing
from fedjax_lora.federated.planning import Federation
from fedjax_lora.federated.ranks import ClientScores
from fedjax_lora.methods import Method
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.checkpoints import Progress
from fedjax_lora.runs.client_work import close_round
from fedjax_lora.runs.compilation import RoundSpec
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.environment import environment
from fedjax_lora.runs.evaluations import Evaluations
from fedjax_lora.runs.late_clients import late_round
from fedjax_lora.runs.loading import Assets
from fedjax_lora.runs.rank_updates import RankUpdates
from fedjax_lora.runs.recorder import score
from fedjax_lora.runs.round_record import RecordContext
from fedjax_lora.runs.setup import Setup


class Inputs(NamedTuple):
    """What a run reads.

    Attributes:
      assets: data and model as they were loaded.
      base: parameters of the frozen base, on the device(s).
      train: training tokens, on the device(s).
    """

    assets: Assets
    base: Params
    train: data.Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that a run needs before its first round.

    Attributes:
      config: the run's config.
      inputs: data and model.
      federation: plans the rounds.
      setup: method, transforms of updates, and what else is decided before compiling.
      round_spec: everything that the compiled round depends on.
      step: the compiled round.
      evaluations: scores of the global model of a state, between rounds and at the end.
      ranks: the clients' initial ranks, and how ranks change between rounds.
      events: who answers when, if the server does not wait for all.
    """

    config: RunConfig
    inputs: Inputs
    federation: Federation
    setup: Setup
    round_spec: RoundSpec
    step: federated.CompiledRound
    evaluations: Evaluations
    ranks: RankUpdates
    events: Events | None = None

    @property
    def rounds(self) -> int:
        """Rounds of the run; the budget of epsilon may end it before those of the config."""
        return self.setup.rounds

    @property
    def task(self) -> data.Task:
        """The task of the run."""
        return self.inputs.assets.task.task

    @property
    def key(self) -> Key:
        """The root key of the run."""
        return jax.random.key(self.config.seed)

    @property
    def method(self) -> Method:
        """The method, on the LoRA spec of the run."""
        return self.setup.method

    @property
    def record_context(self) -> RecordContext:
        """What the records of the rounds are computed from."""
        setup = self.setup
        return RecordContext(
            federation=self.federation,
            method=setup.method,
            updates=setup.updates,
            privacy=setup.privacy,
            heads=self.config.federation.heads,
            head=self.inputs.assets.model.params["head"],
        )

    def learning_rate(self, round: int) -> float:
        """Return the learning rate of a round, counted from 0."""
        factor = float(jnp.asarray(self.setup.schedule(round)))
        return self.config.local.learning_rate * factor

    def begin(self) -> Progress:
        """Build the progress before the first round.

        Raises:
          InputError: the method does not go with the shapes of the run.
        """
        fed = self.config.federation
        rank = self.ranks.initial.astype(np.int32)
        return Progress(_initial_state(self), rank, rank, ClientScores.initial(fed.clients))

    def ends(self, history: History) -> bool:
        """Return whether the run ends with the last of these rounds."""
        if len(history) >= self.rounds:
            return True
        if not history or self.task.metric not in history[-1]:
            return False
        evaluated = [record for record in history if self.task.metric in record]
        return self.setup.stop([score(record, self.task) for record in evaluated])

    def plan(
        self, round: int, rank: np.ndarray, state: FederatedState
    ) -> tuple[Plan, Timing | None]:
        """Plan a round: what of it is in time on the simulated clock, and the times, if it has one.

        Args:
          round: counted from 0.
          rank: of all clients, ``int[N]``.
          state: before the round.
        """
        clock, rate = self.setup.clock, self.learning_rate(round)
        if clock is not None and self.events is not None:
            return late_round(self.events, clock, self.record_context, round, rank, rate, state)
        plan = self.federation.plan(round, rank, rate)
        if clock is None:
            return plan, None
        return close_round(clock, self.record_context, plan, state)

    def train(self, state: FederatedState, plan: Plan) -> tuple[FederatedState, RoundMetrics]:
        """Train and aggregate a round; the memory of ``state`` is given to the result."""
        return self.step(self.inputs.base, self.inputs.train, state, plan, self.key)

    def evaluate(self, state: FederatedState) -> Scores:
        """Return the scores of the global model of a state on all splits."""
        return self.evaluations.whole(state)

    def reference(self, state: FederatedState) -> Scores:
        """Return the scores that those of the run are compared with.

        Args:
          state: the state before the first round.
        """
        reference_scores = TASK_TYPES[self.task.type].reference_scores
        return reference_scores(self.inputs.assets.test.label, lambda: self.evaluate(state))

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """Hex sha256 digests of base and data, by what is in a checkpoint."""
        assets = self.inputs.assets
        splits = (assets.train, assets.validation, assets.test)
        arrays = jax.tree.leaves((splits, list(self.federation.members)))
        return {"base": assets.model.fingerprint, "data": _digest(arrays)}

    @property
    def identity(self) -> Record:
        """All fields of the config by dotted name, and digests of base and data."""
        return trees.flat(configs.to_dict(self.config)) | self.digests

    @property
    def about(self) -> Record:
        """What the checkpoints of the run say about it, as JSON values."""
        config = configs.to_record(self.config)
        return {"config": config, "environment": environment()} | self.digests


def _initial_state(run: Run) -> FederatedState:
    """Build the state before the first round, on the device(s)."""
    fed, model, spec = run.config.federation, run.inputs.assets.model, run.method.spec
    state = federated.init_state(
        run.method,
        _initial_adapter(run),
        lora.kernels_of(model.params, spec),
        model.params["head"],
        clients=fed.clients,
        heads=fed.heads,
        server_optimizer=run.setup.server_optimizer,
        staleness=run.setup.server and run.setup.server.staleness,
    )
    federated.check_method(run.method, state, run.federation.padded)
    # A copy, because the round donates its input.
    state = jax.tree.map(jnp.array, state)
    return federated.place(state, federated.everywhere(run.setup.execution.mesh))


def _initial_adapter(run: Run) -> Adapter:
    """Draw the initial adapter, or continue from the one that the config names."""
    spec, warm_start = run.method.spec, run.setup.warm_start
    init = run.config.lora.lora_init
    adapter = lora.init(spec, jax.random.fold_in(run.key, 1), method=init)
    return adapter if warm_start is None else interop.warm_start(spec, adapter, warm_start)


def _digest(arrays: Sequence[np.ndarray]) -> str:
    """Digest arrays with their types and shapes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
