"""What a run needs before its first round, built from its config."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import (
    adapters,
    allocation,
    around,
    clients,
    data,
    methods,
    metrics,
    models,
    promotion,
    rounds,
    trees,
)
from fedjax_lora.adapters import Template
from fedjax_lora.config import RunConfig
from fedjax_lora.data.batches import length_buckets
from fedjax_lora.federation import Federation
from fedjax_lora.methods import Method
from fedjax_lora.programs import Programs, Reading, RoundRecipe, programs
from fedjax_lora.reallocation import Reallocate, unchanged
from fedjax_lora.rounds import FederatedState
from fedjax_lora.types import Key, Params, Trained


class Assets(NamedTuple):
    """What does not depend on the method: runs that compare methods share it."""

    task: data.TaskData
    model: models.Pretrained
    train: data.Tokens
    validation: data.Tokens | None
    test: data.Tokens


class Layout(NamedTuple):
    """What is decided before anything is compiled."""

    parts: data.Partition
    allocated: allocation.Allocation
    template: Template
    method: Method
    updates: tuple[around.Update, ...]
    server_optimizer: around.ServerOptimizer | None


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
    recipe: RoundRecipe  # what ``round_fn`` is compiled from
    round_fn: rounds.RoundFn
    evaluate: Callable[[FederatedState], dict[str, float]]
    reallocate: Reallocate
    review: allocation.Review | None
    updates: tuple[around.Update, ...]
    privacy: Callable[[int], dict[str, float]]  # what to report after so many rounds


def load_assets(
    config: RunConfig, *, cache_dir: str | None = None, model: models.Pretrained | None = None
) -> Assets:
    """Load and tokenise the task, and load the model with a head for it.

    Args:
      config: what to load.
      cache_dir: folder of tokens, see `fedjax_lora.data.encode`.
      model: what was loaded before for the same model options and task with any seed; the new
        model shares its base, and only what the checkpoint lacks is drawn from the config's seed.

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
    if model is None:
        model = models.load(
            config.model.model,
            num_labels=max(1, len(task.classes)),
            layers=config.model.layers,
            dtype=config.model.dtype,
            pooling=config.model.pooling,
            dropout=config.model.dropout,
            remat=config.model.remat,
            key=model_key(config),
        )
    else:
        model = models.redraw(model, model_key(config))
    encode = lambda split: data.encode(  # noqa: E731
        split, model.tokenizer, max_length=chosen.max_length, cache_dir=cache_dir
    )
    validation = None if task.validation is None else encode(task.validation)
    return Assets(task, model, encode(task.train), validation, encode(task.test))


def model_key(config: RunConfig) -> Key:
    """The key of the parameters that the checkpoint does not have, the head first of all."""
    return jax.random.fold_in(jax.random.key(config.seed), 2)


def lay_out(config: RunConfig, assets: Assets) -> Layout:
    """Divide the data, allocate the ranks and place the adapters; nothing is compiled.

    Raises:
      InputError: choices that are unknown, or do not go with the data, the model or each other.
    """
    fed, lora = config.federation, config.lora
    parts = data.partition(
        fed.partition,
        assets.task.train.labels,
        clients=fed.clients,
        seed=config.seed,
        min_examples=fed.min_examples,
        groups=assets.task.train.groups,
    )
    template_of = functools.partial(
        adapters.make_template,
        {name: part for name, part in assets.model.params.items() if name != "head"},
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
    updates = around.make_updates(fed.updates, method, fed.method)
    server_optimizer = around.make_server_optimizer(fed.server_optimizer, method, fed.method)
    return Layout(parts, allocated, template, method, updates, server_optimizer)


def prepare(
    config: RunConfig, assets: Assets | None = None, shared: Programs | None = None
) -> Experiment:
    """Divide the data, place the adapters and build the compiled functions of a run.

    Args:
      config: the run.
      assets: data and model loaded before, to share between runs.
      shared: programs of other runs, used where they fit; see `fedjax_lora.programs`.
    """
    assets = load_assets(config) if assets is None else assets
    shared = programs() if shared is None else shared
    fed, local, lora, how = config.federation, config.local, config.lora, config.execution
    parts, allocated, template, method, updates, server_optimizer = lay_out(config, assets)
    privacy = around.account(updates, cohort=fed.cohort, clients=fed.clients)

    mesh = clients.client_mesh(how.devices) if how.mode == "sharded" else None
    wave = how.wave or clients.default_wave(fed.cohort)
    longest = max(x.ids.shape[1] for x in assets[2:] if x is not None)
    reading = Reading(
        module=assets.model.module,
        lengths=length_buckets(assets.train.length, longest=longest),
        regression=assets.task.task.regression,
        dropout=config.model.dropout != 0,
        lora_dropout=lora.lora_dropout,
    )
    federation = Federation(
        members=parts.indices,
        length=assets.train.length,
        buckets=reading.lengths,
        cohort=fed.cohort,
        padded=clients.padded_size(fed.cohort, mode=how.mode, wave=wave, mesh=mesh),
        batch=local.batch,
        epochs=local.epochs,
        max_steps=local.max_steps,
        by_length=local.group_by_length,
        seed=config.seed,
        least_steps=shared.least_steps,
    )
    recipe = RoundRecipe(
        reading=reading,
        template=template,
        method=fed.method,
        optimizer=local.optimizer,
        clip=local.clip,
        batch=local.batch,
        heads=fed.heads,
        mode=how.mode,
        wave=wave,
        devices=how.devices,
        prox=local.prox,
        updates=fed.updates,
        server_optimizer=fed.server_optimizer,
        measure=how.measure,
    )
    place = lambda tree: jax.device_put(tree, clients.everywhere(mesh))  # noqa: E731
    base = place(models.frozen(assets.model))
    train_data = place(assets.train)
    root = jax.random.key(config.seed)
    adapter = adapters.init(template, jax.random.fold_in(root, 1), method=lora.lora_init)
    kernels = trees.flat(assets.model.params)
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
    predict = shared.predict(reading, how.eval_batch)
    evaluate = _make_evaluate(assets, template, predict, base, place)
    reallocate = unchanged
    if allocated.review is not None:
        reallocate = promotion.make_reallocate(
            allocated.review,
            recipe,
            federation,
            base=base,
            train=train_data,
            validation=None if assets.validation is None else place(assets.validation),
            batch=how.eval_batch,
            init=lora.lora_init,
            key=root,
        )
    return Experiment(
        config, assets, template, method, federation, allocated.ranks, base, train_data, state,
        recipe, shared.round(recipe), evaluate, reallocate, allocated.review, updates, privacy,
    )  # fmt: skip


def global_model(state: FederatedState, template: Template) -> tuple[Trained, adapters.Gain]:
    """The adapter, head and gains the server would hand out; local heads are averaged."""
    head = state.head
    if state.clients.head != ():
        head = jax.tree.map(lambda x: jnp.mean(x, axis=0), state.clients.head)
    return Trained(state.server.adapter, head), adapters.uniform_gain(template)


def _make_evaluate(assets, template, predict, base, place):
    task = assets.task.task
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
            # Papers often give the accuracy of tasks that have another metric.
            for name in dict.fromkeys((task.metric, *(() if task.regression else ("accuracy",)))):
                scores[f"{prefix}{name}"] = metrics.METRICS[name](tokens.label, output)
            scores[f"{prefix}loss"] = metrics.mean_loss(
                tokens.label, output, regression=task.regression
            )
        return scores

    return evaluate
