"""The results of a run: models, figures, summary, and what they say about themselves."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import data, interop, lora
from fedjax_lora.core import atomic_io, distributed
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.json_values import History, Record
from fedjax_lora.core.types import Adapter
from fedjax_lora.evaluation.evaluator import global_model
from fedjax_lora.federated import FederatedState, Plan, cohort_of
from fedjax_lora.interop import ModelMetadata, TrainedModel
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.base import client_kernels, per_client
from fedjax_lora.runs.checkpoints import Progress
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.environment import environment
from fedjax_lora.runs.folder import SUMMARY, RunFolder
from fedjax_lora.runs.folder_names import ADAPTER, MERGED
from fedjax_lora.runs.prepared import Run

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


def describe(run: Run, record: Record) -> ModelMetadata:
    """Build the metadata of the models of a run.

    Args:
      run: the run.
      record: record of a round, whose scores the metadata state.
    """
    config, assets = run.config, run.inputs.assets
    task, fed, local = assets.task.task, config.federation, config.local
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
        chat_date=task.prompting.date,
        answer_tokens=task.prompting.answer_tokens,
        pair=assets.task.test.pairs is not None,
        task=task.name,
        metric=task.metric,
        hub=task.hub.id if task.hub else "",
        training={
            "method": f"{fed.method} ({run.method.paper})",
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


def server_model(run: Run, state: FederatedState, record: Record) -> TrainedModel:
    """Return the global model of a state.

    Args:
      run: the run.
      state: state of its federation.
      record: record of a round, whose scores the model's metadata state.
    """
    trained, gain = global_model(state, run.method.spec)
    return _trained_model(
        run,
        describe(run, record),
        (trained.adapter, gain, trained.head, state.server.kernels),
    )


def client_model(run: Run, progress: Progress, client: int) -> TrainedModel:
    """Return the model that a client would begin the next round with, at its own rank.

    Arrays that the method keeps on clients, and local heads, are those of the client.

    Args:
      run: the run.
      progress: its progress.
      client: number of the client, from 0.

    Raises:
      InputError: no such client.
    """
    count = len(progress.rank)
    if not 0 <= client < count:
        raise InputError(f"Client {client} does not exist; the clients are 0..{count - 1}.")
    state, heads = progress.state, run.config.federation.heads
    no_batches: Any = None
    plan = Plan(
        id=jnp.array([client], jnp.int32),
        rank=jnp.asarray(progress.rank[[client]], jnp.int32),
        weight=jnp.array([len(run.federation.members[client])], jnp.float32),
        batches=no_batches,
        rate=0.0,
        round=jnp.asarray(progress.round, jnp.int32),
    )
    stored = jax.tree.map(lambda x: x[client][None], state.clients)
    cohort = cohort_of(run.method.spec, plan, plan.weight, run.key)
    start = run.method.broadcast(state.server, stored.method, cohort)
    adapter = lora.fold(start.adapter, start.coefficients)
    head = stored.head if heads == "local" else per_client(state.head)
    params = jax.tree.map(lambda x: x[0], (adapter, start.gain, head))
    metadata = describe(run, {})
    training = metadata.training | {"client": f"{client}, of rank {progress.rank[client]}"}
    metadata = dataclasses.replace(metadata, training=training)
    kernels = client_kernels(run.method, state.server)
    return _trained_model(run, metadata, (*params, kernels))


def _trained_model(run: Run, metadata: ModelMetadata, params: tuple[Any, ...]) -> TrainedModel:
    # Arrays that may be spread over devices, on the one where the base was loaded.
    params = jax.tree.map(jnp.asarray, jax.device_get(params))
    adapter, gain, head, kernels = params
    return TrainedModel(
        pretrained=run.inputs.assets.model,
        metadata=metadata,
        targets=run.method.spec.targets,
        adapter=adapter,
        gain=gain,
        head=head,
        kernels=kernels,
    )


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
      config: the run.
      metric: metric of the task.
      spec: LoRA spec of the federation.
      state: state after the last round.
      rank: rank of each client after the last round, ``int32[N]``.
      records: one record per round, as in ``metrics.jsonl``.
      summary: numbers of the whole run, as in ``summary.json``.
      out: the run folder, if there is one.
    """

    config: RunConfig
    metric: str
    spec: LoraSpec
    state: FederatedState
    rank: np.ndarray
    records: History
    summary: Record
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

    def plot(self) -> "Figure":
        """Draw the test metric and the losses over the rounds."""
        from fedjax_lora.runs import plots  # imports matplotlib, as below: not before the rounds

        return plots.history(self.config, self.metric, self.records, self.summary)


def make_result(
    run: Run,
    progress: Progress,
    history: History,
    summary: Record,
    folder: RunFolder | None,
) -> Result:
    """Collect the results of a finished run.

    Args:
      run: the run.
      progress: the progress after the last round.
      history: one record per round.
      summary: from `summarise`.
      folder: the run folder of the first process.
    """
    return Result(
        config=run.config,
        metric=run.task.metric,
        spec=run.method.spec,
        state=progress.state,
        rank=progress.rank,
        records=list(history),
        summary=summary,
        out=folder.path if folder else None,
    )


def finish(
    run: Run,
    progress: Progress,
    history: History,
    reference: Mapping[str, object],
    times: dict[str, float],
    folder: RunFolder | None,
) -> Record:
    """Summarise a run after its last round and write its outputs.

    Args:
      run: the run.
      progress: the progress after the last round.
      history: one record per round.
      reference: the scores that those of the run are compared with.
      times: seconds of the run.
      folder: the run folder of the first process.

    Returns:
      The numbers of the whole run, as in ``summary.json``.

    Raises:
      InputError: the folder cannot be written.
    """
    summary = summarise(run, history, reference, times)
    model = server_model(run, progress.state, history[-1])
    with distributed.raise_on_all():
        if folder is not None:
            with atomic_io.reporting_write_errors(folder.path):
                _write_outputs(folder, run, history, summary, model)
    return summary


def summarise(
    run: Run,
    history: History,
    reference: Mapping[str, object],
    times: dict[str, float],
) -> Record:
    """Return the numbers of a whole run.

    Args:
      run: the run.
      history: one record per round.
      reference: the scores that those of the run are compared with.
      times: seconds of the run.
    """
    assets, task = run.inputs.assets, run.task
    names = (task.metric, "accuracy", "loss", "perplexity")
    scores = {k: v for k, v in history[-1].items() if any(name in k for name in names)}
    return (
        {"method": run.config.federation.method, "task": task.name}
        | scores
        | dict(reference)
        | {
            "rounds": len(history),
            "clients_per_step": run.setup.execution.clients_per_step,
            "train_examples": len(assets.train.label),
            "test_examples": len(assets.test.label),
            "train_test_overlap": assets.task.overlap,
            "skipped_examples": assets.task.skipped,
            **positive_class(assets.task),
            "up_bytes": sum(r["up_bytes"] for r in history),
            "down_bytes": sum(r["down_bytes"] for r in history),
            **times,
            "base_sha256": assets.model.fingerprint,
        }
        | environment()
    )


def positive_class(task: data.TaskData) -> dict[str, str]:
    """Return the class that an F1 score is of, if the task is measured by that of one class."""
    is_of_one = task.task.metric == "f1" and len(task.classes) == 2
    return {"positive_class": task.classes[1]} if is_of_one else {}


def _write_outputs(
    folder: RunFolder,
    run: Run,
    history: History,
    summary: Record,
    model: TrainedModel,
) -> None:
    """Write the global model, the figures and, last of all, the summary of a finished run."""
    from fedjax_lora.runs import plots

    write_model(folder.path, model)
    figures, task = folder.path / "figures", run.inputs.assets.task
    plots.history(run.config, run.task.metric, history, summary).savefig(figures / "accuracy.png")
    if task.classes:
        partition = data.Partition(tuple(run.federation.members), None)
        counts = data.class_counts(partition, task.train.labels, len(task.classes))
        plots.draw(counts, task.classes, figures / "partition.png")
    folder.write(SUMMARY, summary)


def write_model(folder: pathlib.Path, model: TrainedModel) -> None:
    """Write the global model of a run into its folder, as ``adapter`` or else as ``merged``.

    Methods that add to the base can add so much in many rounds that the one adapter that does the
    same would be larger than the matrices it is for. Then the merged model is written.
    """
    one_adapter = model.fold_kernels()
    is_small = one_adapter.relative_size() < 1
    name, other = (ADAPTER, MERGED) if is_small else (MERGED, ADAPTER)
    save = interop.save_adapter if is_small else interop.save_merged
    atomic_io.remove_folder(folder / other)
    atomic_io.write_folder(
        folder / name, lambda path: save(path, one_adapter if is_small else model)
    )
