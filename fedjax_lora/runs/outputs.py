"""What a run hands over: the global model, and the model each client would go on from."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from fedjax_lora import data, interop, lora, methods
from fedjax_lora.core import atomic_io
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import Adapter
from fedjax_lora.evaluation.evaluator import global_model
from fedjax_lora.federated import FederatedState, Plan, cohort_of
from fedjax_lora.interop import ModelMetadata, TrainedModel
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.base import per_client
from fedjax_lora.runs import plots
from fedjax_lora.runs.build import Experiment
from fedjax_lora.runs.checkpoints import Progress
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.folder import SUMMARY, RunFolder, environment
from fedjax_lora.runs.loading import Assets
from fedjax_lora.runs.plots import draw

if TYPE_CHECKING:
    import pandas

ADAPTER, MERGED = "adapter", "merged"


def describe(config: RunConfig, assets: Assets, record: Mapping[str, Any]) -> ModelMetadata:
    """What is said of a run's models.

    Args:
      config: the run's.
      assets: the run's.
      record: of a round, whose evaluation is told.
    """
    task, fed, local = assets.task.task, config.federation, config.local
    paper = methods.paper(fed.method)
    return ModelMetadata(
        base=config.model.model,
        base_sha256=assets.model.fingerprint,
        layers=config.model.layers,
        storage=config.model.storage,
        pooling=config.model.pooling,
        max_length=config.data.max_length,
        classes=() if task.type == "language" else assets.task.classes,
        language=task.type == "language",
        prompt_format=task.prompting.format,
        answer_tokens=task.prompting.answer_tokens,
        pair=assets.task.test.pairs is not None,
        task=task.name,
        metric=task.metric,
        hub=task.hub.id if task.hub else "",
        training={
            "method": f"{fed.method} ({paper})",
            "clients": f"{fed.clients}, {fed.cohort} in a round, {fed.rounds} rounds",
            "ranks": fed.ranks,
            "training examples": f"{len(assets.train.label)}, divided by {fed.partition}",
            "local training": f"{local.optimizer}, learning rate {local.learning_rate:g} "
            f"({local.schedule}), batch {local.batch}, epochs a round: {local.epochs}",
            "updates": " ".join(fed.updates) or "as they are",
            "heads": fed.heads,
            "seed": str(config.seed),
        },
        results={n: record[n] for n in (task.metric, "perplexity", "loss") if n in record},
    )


def of_server(
    experiment: Experiment, state: FederatedState, record: Mapping[str, Any]
) -> TrainedModel:
    """The global model.

    Args:
      experiment: the run.
      state: of its federation.
      record: of a round, whose evaluation the model's metadata state.
    """
    trained, gain = global_model(state, experiment.spec)
    return _trained_model(
        experiment,
        describe(experiment.config, experiment.assets, record),
        (trained.adapter, gain, trained.head, state.server.kernels),
    )


def _trained_model(
    experiment: Experiment, metadata: ModelMetadata, params: tuple[Any, ...]
) -> TrainedModel:
    adapter, gain, head, kernels = _here(params)
    return TrainedModel(
        pretrained=experiment.assets.model,
        metadata=metadata,
        targets=experiment.spec.targets,
        adapter=adapter,
        gain=gain,
        head=head,
        kernels=kernels,
    )


def of_client(experiment: Experiment, progress: Progress, client: int) -> TrainedModel:
    """The model that a client would begin the next round with, at its own rank.

    What a method keeps on its clients and local heads are the client's own.

    Args:
      experiment: the run.
      progress: what it has led to.
      client: from 0.

    Raises:
      InputError: no such client.
    """
    count = len(progress.rank)
    if not 0 <= client < count:
        raise InputError(f"Client {client} does not exist; the clients are 0..{count - 1}.")
    state, fed = progress.state, experiment.config.federation
    nothing: Any = None  # is trained on
    plan = Plan(
        id=jnp.array([client], jnp.int32),
        rank=jnp.asarray(progress.rank[[client]], jnp.int32),
        weight=jnp.array([len(experiment.federation.members[client])], jnp.float32),
        batches=nothing,
        rate=0.0,
        round=jnp.asarray(progress.round, jnp.int32),
    )
    key = jax.random.key(experiment.config.seed)
    mine = jax.tree.map(lambda x: x[client][None], state.clients)
    cohort = cohort_of(experiment.spec, plan, plan.weight, key)
    start = experiment.method.broadcast(state.server, mine.method, cohort)
    adapter = lora.fold(start.adapter, start.coefficients)
    own = (adapter, start.gain, mine.head if fed.heads == "local" else per_client(state.head))
    parts = jax.tree.map(lambda x: x[0], own)
    metadata = describe(experiment.config, experiment.assets, {})
    training = metadata.training | {"client": f"{client}, of rank {progress.rank[client]}"}
    return _trained_model(
        experiment,
        dataclasses.replace(metadata, training=training),
        (*parts, state.server.kernels),
    )


def _here(tree: Any) -> Any:
    """Arrays that may be spread over devices, on the one where the base was loaded."""
    return jax.tree.map(jnp.asarray, jax.device_get(tree))


def write_model(folder: pathlib.Path, fitted: TrainedModel) -> None:
    """Write a run's global model into its folder, as ``adapter`` or else as ``merged``.

    Methods that add to the base can add so much in many rounds that the one adapter that does the
    same would be larger than the matrices it is for. Then the merged model is written.
    """
    one = fitted.fold_kernels()
    small = one.relative_size() < 1
    wanted, other = (ADAPTER, MERGED) if small else (MERGED, ADAPTER)
    atomic_io.remove_folder(folder / other)
    save = interop.save_adapter if small else interop.save_merged
    atomic_io.write_folder(folder / wanted, lambda path: save(path, one if small else fitted))


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run."""

    config: RunConfig
    metric: str  # of the task
    spec: LoraSpec
    state: FederatedState
    rank: np.ndarray  # int32[N], at the end
    records: list[dict[str, Any]]  # one per round, as in metrics.jsonl
    summary: dict[str, Any]
    out: pathlib.Path | None

    @property
    def history(self) -> "pandas.DataFrame":
        """The rounds as a table, indexed by round; NaN where a round was not evaluated."""
        import pandas

        return pandas.DataFrame(self.records).set_index("round")

    @property
    def adapter(self) -> Adapter:
        """The global adapter (zero for a method that adds to the base instead)."""
        return self.state.server.adapter

    def plot(self) -> Figure:
        """The test metric and the losses over the rounds, as a figure that a notebook shows."""
        return plots.history(
            self.records,
            metric=self.metric,
            title=f"{self.config.data.task}: {self.config.federation.method}",
            beat=plots.to_beat(self.summary, self.metric),
        )


def result(
    experiment: Experiment,
    progress: Progress,
    summary: dict[str, Any],
    folder: RunFolder | None,
) -> Result:
    """A finished run, from what it has led to."""
    return Result(
        experiment.config,
        experiment.assets.task.task.metric,
        experiment.spec,
        progress.state,
        progress.rank,
        progress.history,
        summary,
        folder.path if folder else None,
    )


def write_outputs(
    folder: RunFolder, experiment: Experiment, made: Result, fitted: TrainedModel
) -> None:
    """Write the figures, the global model and, last of all, the summary of a finished run."""
    assets = experiment.assets
    made.plot().savefig(folder.path / "figures" / "accuracy.png")
    if assets.task.classes:
        parts = data.Partition(tuple(experiment.federation.members), None)
        counts = data.class_counts(parts, assets.task.train.labels, len(assets.task.classes))
        draw(counts, assets.task.classes, folder.path / "figures" / "partition.png")
    write_model(folder.path, fitted)
    folder.write(SUMMARY, made.summary)


def summarise(
    experiment: Experiment,
    history: list[dict[str, Any]],
    reference: dict[str, Any],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """The numbers of a whole run; ``reference`` is what they are to be compared with."""
    task, assets = experiment.assets.task.task, experiment.assets
    summary: dict[str, Any] = {"method": experiment.config.federation.method, "task": task.name}
    names = (task.metric, "accuracy", "loss", "perplexity")
    summary |= {k: v for k, v in history[-1].items() if any(name in k for name in names)}
    return (
        summary
        | reference
        | {
            "rounds": len(history),
            "train_examples": len(assets.train.label),
            "test_examples": len(assets.test.label),
            "train_test_overlap": assets.task.overlap,
            "skipped_examples": assets.task.skipped,
            "up_bytes": sum(r["up_bytes"] for r in history),
            "down_bytes": sum(r["down_bytes"] for r in history),
            **seconds,
            "base_sha256": assets.model.fingerprint,
        }
        | environment()
    )
