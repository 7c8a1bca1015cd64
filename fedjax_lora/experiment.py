"""What a run needs before its first round, built from its config."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import (
    adapters,
    allocation,
    around,
    clients,
    data,
    evaluation,
    measure,
    methods,
    metrics,
    models,
    optimizers,
    reallocation,
    rounds,
    scoring,
    trees,
)
from fedjax_lora.adapters import Adapter, Template
from fedjax_lora.allocation import Review
from fedjax_lora.config import RunConfig
from fedjax_lora.data.batches import length_buckets
from fedjax_lora.errors import InputError
from fedjax_lora.federation import Federation
from fedjax_lora.methods import Method
from fedjax_lora.rounds import FederatedState
from fedjax_lora.types import Params, Trained

NEW_COMPONENTS = 2**31
"""Folded into the root key to draw the components of promoted clients; no round has this number."""


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
    reallocate: reallocation.Reallocate
    updates: tuple[around.Update, ...]
    privacy: Callable[[int], dict[str, float]]  # what to report after so many rounds


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
    base = {name: part for name, part in assets.model.params.items() if name != "head"}
    template_of = functools.partial(
        adapters.make_template,
        base,
        targets=lora.targets,
        alpha=lora.alpha,
        scale=lora.scale,
        layers=lora.lora_layers,
    )
    allocated = allocation.allocate(
        fed.ranks,
        clients=fed.clients,
        seed=config.seed,
        quality=parts.quality,
        component_size=template_of(rank=1).component_size,
    )
    template = template_of(rank=int(allocated.possible.max()))
    method = methods.make(fed.method, template)
    method.check(allocated.possible)
    _check_review(allocated.review, assets)
    updates = around.make_updates(fed.updates, method, fed.method)
    server_optimizer = around.make_server_optimizer(fed.server_optimizer, method, fed.method)
    privacy = around.account(updates, cohort=fed.cohort, clients=fed.clients)

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
    optimizer = optimizers.optimizer(local.optimizer, clip=local.clip)
    train = clients.make_training(
        objective,
        optimizer,
        penalty=method.penalty,
        rates=method.rates,
        split_gains=lora.lora_dropout > 0,
        rows=clients.row_buckets(local.batch),
        prox=local.prox,
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
    execution: Any = {"mode": how.mode, "wave": wave, "mesh": mesh}
    look = measure.make_measure(
        template,
        head=assets.model.params["head"],
        train_head=fed.heads != "frozen",
        optimizer=optimizer,
    )
    round_fn = rounds.make_round(
        method,
        template,
        train,
        heads=fed.heads,
        **execution,
        updates=updates,
        server_optimizer=server_optimizer,
        measure=look if how.measure else None,
    )
    place = lambda tree: jax.device_put(tree, clients.everywhere(mesh))  # noqa: E731
    base, train_data = place(base), place(assets.train)
    root = jax.random.key(config.seed)
    adapter = adapters.init(template, jax.random.fold_in(root, 1), method=lora.lora_init)
    kernels = trees.flat(base)
    state = rounds.init_state(
        method,
        adapter,
        {site.path: kernels[f"{site.path}/kernel"] for site in template.sites},
        assets.model.params["head"],
        clients=fed.clients,
        heads=fed.heads,
        server_optimizer=server_optimizer,
    )
    # A copy, because a round gives its input state's memory back.
    state = place(jax.tree.map(jnp.array, state))
    evaluate = _make_evaluate(config, assets, template, objective, base, place)
    reallocate = reallocation.unchanged
    if (review := allocated.review) is not None:
        score = None
        if review.needs_validation:
            locally = rounds.make_local(method, template, train, heads=fed.heads, **execution)
            score_fn = _make_score(config, assets, objective, locally, execution, place)
            score = functools.partial(score_fn, base, train_data, key=root)
        reallocate = reallocation.make_reallocate(
            review, federation, score, _make_renew(config, template, review.low)
        )
    return Experiment(
        config, assets, template, method, federation, allocated.ranks, base, train_data, state,
        round_fn, evaluate, reallocate, updates, privacy,
    )  # fmt: skip


def global_model(state: FederatedState, template: Template) -> tuple[Trained, adapters.Gain]:
    """The adapter, head and gains the server would hand out; local heads are averaged."""
    head = state.head
    if state.clients.head != ():
        head = jax.tree.map(lambda x: jnp.mean(x, axis=0), state.clients.head)
    return Trained(state.server.adapter, head), adapters.uniform_gain(template)


def _check_review(review: Review | None, assets: Assets) -> None:
    if review is None or not review.needs_validation:
        return
    if assets.validation is None:
        raise InputError(
            "Rank allocation 'loss_based' scores clients on validation examples, of which there "
            "are none; set validation_examples."
        )
    if assets.task.task.regression and review.score == "accuracy":
        raise InputError(
            f"Task {assets.task.task.name!r} has no classes to be accurate about; choose "
            "score='loss' in the rank allocation 'loss_based'."
        )


def _make_score(config, assets, objective, locally, execution, place):
    rows = scoring.rows_by_length(
        assets.validation.length, objective.lengths, batch=config.execution.eval_batch
    )
    validate = scoring.make_validation(objective, rows, regression=assets.task.task.regression)
    score_fn = scoring.make_score(locally, validate, **execution)
    validation = place(assets.validation)

    return lambda base, train, state, plan, key: score_fn(base, train, validation, state, plan, key)


def _make_renew(config, template, rank):
    key = jax.random.fold_in(jax.random.key(config.seed), NEW_COMPONENTS)

    def renew(adapter: Adapter) -> Adapter:
        fresh = adapters.init(template, key, method=config.lora.lora_init)
        return reallocation.renew_above(template, rank, adapter, fresh)

    return renew


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
