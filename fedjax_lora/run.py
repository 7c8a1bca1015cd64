"""One run from its config: load, divide, train round by round, evaluate, write down.

`run` is the page that knows all parts; `prepare` builds them.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import (
    adapters,
    allocation,
    clients,
    data,
    evaluation,
    export,
    methods,
    metrics,
    models,
    optimizers,
    plots,
    rounds,
    trees,
)
from fedjax_lora.adapters import Template
from fedjax_lora.config import RunConfig
from fedjax_lora.data.batches import length_buckets
from fedjax_lora.federation import Federation
from fedjax_lora.methods import Method
from fedjax_lora.results import RunFolder, environment
from fedjax_lora.rounds import FederatedState
from fedjax_lora.types import Params, Trained


class Assets(NamedTuple):
    """What does not depend on the method: runs that compare methods share it."""

    task: data.TaskData
    model: models.Pretrained
    train: data.Tokens
    validation: data.Tokens | None
    test: data.Tokens


class Experiment(NamedTuple):
    """Everything a run needs before its first round."""

    config: RunConfig
    assets: Assets
    template: Template
    method: Method
    federation: Federation
    rank: np.ndarray  # int32[N], at the start
    base: Params  # on the device(s), without the head
    data: data.Tokens  # training tokens on the device(s)
    state: FederatedState
    round_fn: rounds.RoundFn
    evaluate: Callable[[FederatedState], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run."""

    config: RunConfig
    template: Template
    state: FederatedState
    rank: np.ndarray  # int32[N], at the end
    history: list[dict[str, Any]]  # one record per round, as in metrics.jsonl
    summary: dict[str, Any]
    out: pathlib.Path | None


def load_assets(config: RunConfig, *, cache_dir: str | None = None) -> Assets:
    """Load and tokenise the task, and load the model with a head for it.

    Raises:
      InputError: anything wrong with task, files or model, in one sentence.
    """
    chosen = config.data
    task = data.load(
        chosen.task,
        data_dir=chosen.data_dir,
        train_examples=chosen.train_examples,
        validation_examples=chosen.validation_examples,
        test_examples=chosen.test_examples,
        seed=config.seed,
    )
    model = models.load(
        config.model.model,
        num_labels=max(1, len(task.classes)),
        layers=config.model.layers,
        dtype=config.model.dtype,
        pooling=config.model.pooling,
        dropout=config.model.dropout,
        remat=config.model.remat,
        key=jax.random.fold_in(jax.random.key(config.seed), 2),
    )
    encode = lambda split: data.encode(  # noqa: E731
        split, model.tokenizer, max_length=chosen.max_length, cache_dir=cache_dir
    )
    validation = None if task.validation is None else encode(task.validation)
    return Assets(task, model, encode(task.train), validation, encode(task.test))


def prepare(config: RunConfig, assets: Assets | None = None) -> Experiment:
    """Divide the data, place the adapters and build the compiled functions of a run."""
    assets = load_assets(config) if assets is None else assets
    fed, local, lora, how = config.federation, config.local, config.lora, config.execution
    parts = data.partition(
        fed.partition,
        assets.task.train.labels,
        clients=fed.clients,
        seed=config.seed,
        min_examples=fed.min_examples,
        groups=assets.task.train.groups,
    )
    rank = allocation.allocate(
        fed.ranks, clients=fed.clients, seed=config.seed, quality=parts.quality
    )
    base = {name: part for name, part in assets.model.params.items() if name != "head"}
    template = adapters.make_template(
        base,
        targets=lora.targets,
        rank=int(rank.max()),
        alpha=lora.alpha,
        scale=lora.scale,
        layers=lora.lora_layers,
    )
    method = methods.make(fed.method, template)
    method.check(rank)

    mesh = clients.client_mesh(how.devices) if how.mode == "sharded" else None
    wave = how.wave or clients.default_wave(fed.cohort)
    longest = max(x.ids.shape[1] for x in assets[2:] if x is not None)
    lengths = length_buckets(assets.train.length, longest=longest)
    objective = clients.text_classification(
        assets.model.module,
        lengths,
        regression=assets.task.task.regression,
        dropout=config.model.dropout != 0,
        lora_dropout=lora.lora_dropout,
    )
    train = clients.make_training(
        objective,
        optimizers.optimizer(local.optimizer, clip=local.clip),
        penalty=method.penalty,
        split_gains=lora.lora_dropout > 0,
        rows=clients.row_buckets(local.batch),
    )
    federation = Federation(
        members=parts.indices,
        length=assets.train.length,
        buckets=lengths,
        cohort=fed.cohort,
        padded=clients.padded_size(fed.cohort, mode=how.mode, wave=wave, mesh=mesh),
        batch=local.batch,
        epochs=local.epochs,
        max_steps=local.max_steps,
        by_length=local.group_by_length,
        seed=config.seed,
    )
    round_fn = rounds.make_round(
        method, template, train, heads=fed.heads, mode=how.mode, wave=wave, mesh=mesh
    )
    place = lambda tree: jax.device_put(tree, clients.everywhere(mesh))  # noqa: E731
    base = place(base)
    adapter = adapters.init(
        template, jax.random.fold_in(jax.random.key(config.seed), 1), method=lora.lora_init
    )
    kernels = trees.flat(base)
    state = rounds.init_state(
        method,
        adapter,
        {site.path: kernels[f"{site.path}/kernel"] for site in template.sites},
        assets.model.params["head"],
        clients=fed.clients,
        heads=fed.heads,
    )
    # A copy, because a round gives its input state's memory back.
    state = place(jax.tree.map(jnp.array, state))
    evaluate = _make_evaluate(config, assets, template, objective, base, place)
    return Experiment(
        config, assets, template, method, federation, rank, base, place(assets.train), state,
        round_fn, evaluate,
    )  # fmt: skip


def global_model(state: FederatedState, template: Template) -> tuple[Trained, adapters.Gain]:
    """The adapter, head and gains the server would hand out; local heads are averaged."""
    head = state.head
    if state.clients.head != ():
        head = jax.tree.map(lambda x: jnp.mean(x, axis=0), state.clients.head)
    return Trained(state.server.adapter, head), adapters.uniform_gain(template)


def _make_evaluate(config, assets, template, objective, base, place):
    task = assets.task.task
    predict = evaluation.make_predict(objective, batch=config.execution.eval_batch)
    splits = {"": assets.test} | (
        {} if assets.validation is None else {"validation_": assets.validation}
    )
    placed = {prefix: place(tokens) for prefix, tokens in splits.items()}

    def evaluate(state: FederatedState) -> dict[str, float]:
        trained, gain = global_model(state, template)
        full = rounds.with_kernels(base, state.server.kernels)
        scores = {}
        for prefix, tokens in splits.items():
            output = predict(full, placed[prefix], trained, gain)
            score = metrics.METRICS[task.metric](tokens.label, output)
            scores[f"{prefix}{task.metric}"] = score
            scores[f"{prefix}loss"] = metrics.mean_loss(
                tokens.label, output, regression=task.regression
            )
        return scores

    return evaluate


def run(
    config: RunConfig,
    *,
    out: str | pathlib.Path | None = None,
    overwrite: bool = False,
    assets: Assets | None = None,
    on_round: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Result:
    """Run a config to its end.

    Args:
      config: what to run.
      out: folder for the results; None writes nothing.
      overwrite: replace the run that ``out`` holds.
      assets: data and model loaded before, to share between runs.
      on_round: called with each round's numbers and times.

    Raises:
      InputError: anything wrong with the input, in one sentence.
    """
    folder = None if out is None else RunFolder.create(out, config, overwrite=overwrite)
    began = time.perf_counter()
    experiment = prepare(config, assets)
    federation, state, rank = experiment.federation, experiment.state, experiment.rank.copy()
    fed, how = config.federation, config.execution
    schedule = optimizers.schedule(config.local.schedule, rounds=fed.rounds)
    key = jax.random.key(config.seed)
    head_bytes = trees.size_bytes(state.head) if fed.heads == "average" else 0
    history = []
    for t in range(fed.rounds):
        clock = time.perf_counter()
        plan = federation.plan(
            t, rank, config.local.learning_rate * float(jnp.asarray(schedule(t)))
        )
        traffic = experiment.method.traffic(plan.rank[plan.weight > 0])
        state, seen = experiment.round_fn(experiment.base, experiment.data, state, plan, key)
        present = plan.weight > 0
        rank[plan.id[present]] = np.asarray(seen.rank)[present]
        record = {
            "round": t + 1,
            "train_loss": float(np.average(seen.loss, weights=np.maximum(seen.examples, 1e-9))),
            "examples": int(np.sum(seen.examples)),
            "up_bytes": int(traffic.up.sum() + present.sum() * head_bytes),
            "down_bytes": int(traffic.down.sum() + present.sum() * head_bytes),
            "rejected": plan.id[np.asarray(seen.rejected)].tolist(),
        }
        times = {"round": t + 1, "train_seconds": time.perf_counter() - clock}
        if (t + 1) % how.eval_every == 0 or t + 1 == fed.rounds:
            clock = time.perf_counter()
            record |= experiment.evaluate(state)
            times["eval_seconds"] = time.perf_counter() - clock
        history.append(record)
        if folder:
            folder.append("metrics.jsonl", record)
            folder.append("timing.jsonl", times)
        on_round(record | times)
    summary = summarise(experiment, history, time.perf_counter() - began)
    if folder:
        folder.write("summary.json", summary)
        leave(folder, experiment, state, history, summary)
    return Result(
        config, experiment.template, state, rank, history, summary, folder.path if folder else None
    )


def leave(
    folder: RunFolder,
    experiment: Experiment,
    state: FederatedState,
    history: list[dict[str, Any]],
    summary: dict[str, Any],
) -> None:
    """Write the figure and the global adapter of a finished run."""
    config, assets = experiment.config, experiment.assets
    plots.history(
        history,
        folder.path / "figures" / "accuracy.png",
        metric=assets.task.task.metric,
        title=f"{config.data.task}: {config.federation.method}",
        majority=summary.get("majority_accuracy"),
    )
    trained, _ = global_model(state, experiment.template)
    export.save_adapter(
        folder.path / "adapter",
        assets.model,
        config.model.model,
        experiment.template,
        state,
        trained,
    )


def summarise(
    experiment: Experiment, history: list[dict[str, Any]], seconds: float
) -> dict[str, Any]:
    """The numbers of a whole run."""
    task, assets = experiment.assets.task.task, experiment.assets
    labels = assets.test.label
    summary: dict[str, Any] = {"method": experiment.config.federation.method, "task": task.name}
    summary |= {k: v for k, v in history[-1].items() if k.endswith((task.metric, "loss"))}
    if not task.regression:
        summary["majority_accuracy"] = float(np.bincount(labels).max() / len(labels))
    return (
        summary
        | {
            "rounds": len(history),
            "train_examples": len(assets.train.label),
            "test_examples": len(labels),
            "train_test_overlap": assets.task.overlap,
            "up_bytes": sum(r["up_bytes"] for r in history),
            "down_bytes": sum(r["down_bytes"] for r in history),
            "seconds": seconds,
            "base_sha256": assets.model.fingerprint,
        }
        | environment()
    )
