"""The data and the model of a run, loaded."""

from typing import NamedTuple

import jax
from jax.sharding import Mesh

from fedjax_lora import data, federated, interop, models
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import Key
from fedjax_lora.evaluation.task_types import TASK_TYPES
from fedjax_lora.runs.config import ExecutionConfig, RunConfig


class Assets(NamedTuple):
    """What does not depend on the method: runs that compare methods share it."""

    task: data.TaskData
    model: models.Pretrained
    train: data.Tokens
    validation: data.Tokens | None
    test: data.Tokens


def load_assets(
    config: RunConfig,
    *,
    cache_dir: str | None = None,
    model: models.Pretrained | None = None,
    weights: bool = True,
) -> Assets:
    """Load and tokenise the task, and load the model with a head for it.

    Args:
      config: what to load.
      cache_dir: folder of tokens, see `fedjax_lora.data.encode`.
      model: what was loaded before for the same model options and task with any seed; the new
        model shares its base, and only what the checkpoint lacks is drawn from the config's seed.
      weights: False leaves the model's weights on disk: its parameters are shapes alone.

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
    kind = TASK_TYPES[task.task.type]
    if model is None:
        model = models.load(
            config.model.model,
            num_labels=kind.num_outputs(task),
            layers=config.model.layers,
            dtype=config.model.dtype,
            storage=config.model.storage,
            pooling=config.model.pooling,
            dropout=config.model.dropout,
            remat=config.model.remat,
            weights=weights,
            # At once, if they are cut: no device may have room for all of them.
            sharding=federated.in_parts(mesh_of(config)),
            key=model_key(config),
        )
    else:
        model = models.reinitialize(model, model_key(config))
    if weights:
        model = with_first(model, config)
    check_tokenizer(model)
    splits = [task.train, task.validation, task.test]
    encoded = [
        None
        if split is None
        else kind.encode(task.task, split, model.tokenizer, chosen.max_length, cache_dir)
        for split in splits
    ]
    train, validation, test = encoded
    assert train is not None and test is not None
    lost = sum(len(s.texts) - len(e.index) for s, e in zip(splits, encoded, strict=True) if s and e)
    task = task._replace(
        train=train.split,
        validation=None if validation is None else validation.split,
        test=test.split,
        skipped=task.skipped + lost,
    )
    tokens = [e and e.tokens for e in (train, validation, test)]
    _check_length(max(x.ids.shape[1] for x in tokens if x is not None), model.config.max_tokens)
    return Assets(task, model, train.tokens, tokens[1], test.tokens)


def mesh_of(config: RunConfig) -> Mesh | None:
    """The mesh a run is spread over, if it is.

    Raises:
      InputError: the devices do not make one, or one is described that the mode has no use for.
    """
    how, usual = config.execution, ExecutionConfig()
    if how.mode == "sharded":
        return federated.client_mesh(how.devices, how.mesh)
    for name in ("devices", "mesh"):
        if getattr(how, name) != getattr(usual, name):
            raise InputError(
                f"{name} is given, but mode {how.mode} runs on one device; add --mode sharded, or "
                "leave it out."
            )
    return None


def check_tokenizer(model: models.Pretrained) -> None:
    """Refuse a checkpoint that comes without its tokenizer.

    Raises:
      InputError: it has none.
    """
    if model.tokenizer is None:
        raise InputError(
            f"The checkpoint {model.folder} has no tokenizer; put its tokenizer.json there."
        )


def _check_length(longest: int, window: int) -> None:
    if longest > window:
        raise InputError(
            f"The longest text has {longest} tokens, but the model takes at most {window}; set "
            f"max_length to {window} or less."
        )


def model_key(config: RunConfig) -> Key:
    """The key of the parameters that the checkpoint does not have, the head first of all."""
    return jax.random.fold_in(jax.random.key(config.seed), 2)


def with_first(model: models.Pretrained, config: RunConfig) -> models.Pretrained:
    """The model with what the adapter that a config begins with brings along, its head above all.

    Raises:
      InputError: an adapter that cannot be read, or of another model.
    """
    folder = config.lora.adapter
    return model if folder is None else interop.with_saved_modules(model, folder)
