"""Load the data and the model of a run, and decide the devices that it runs on."""

import functools
import logging
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from fedjax_lora import data, federated, interop, models
from fedjax_lora.core.backend import check_backend, multiplies_bfloat16
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.target import Target, current_target
from fedjax_lora.core.types import Key
from fedjax_lora.evaluation.task_types import TASK_TYPES
from fedjax_lora.federated import Execution
from fedjax_lora.models.huggingface.checkpoint import Sharding
from fedjax_lora.runs.config import ExecutionConfig, RunConfig

log = logging.getLogger(__name__)


class Assets(NamedTuple):
    """Data and model of a run; they do not depend on the method, so runs can share them.

    Attributes:
      task: the task and its texts.
      model: the base model with a head for the task.
      train: tokens of the training examples.
      validation: tokens of the validation examples, if there are any.
      test: tokens of the test examples.
    """

    task: data.TaskData
    model: models.Pretrained
    train: data.Tokens
    validation: data.Tokens | None
    test: data.Tokens

    @property
    def longest(self) -> int:
        """Tokens of the longest text of all splits."""
        splits = (self.train, self.validation, self.test)
        return max(tokens.ids.shape[1] for tokens in splits if tokens is not None)


def load_assets(
    config: RunConfig,
    *,
    cache_dir: str | None = None,
    model: models.Pretrained | None = None,
    weights: bool = True,
    classes: Sequence[str] = (),
) -> Assets:
    """Load and tokenise the task, and load the model with a head for it.

    Args:
      config: the run.
      cache_dir: folder of cached tokens, see `fedjax_lora.data.encode`.
      model: a model loaded before for the same model options and task with any seed. The new model
        shares its base, and only what the checkpoint lacks is drawn from the config's seed.
      weights: False leaves the model's weights on disk: its parameters are shapes alone.
      classes: names of the classes in label order; by default those of the data.

    Raises:
      InputError: anything wrong with task, files or model, in one sentence.
    """
    check_backend()
    warn_of_slow_dtype(config.model.dtype)
    options = config.data
    task = data.load(
        options.task,
        data_dir=options.data_dir,
        train_examples=options.train_examples,
        validation_examples=options.validation_examples,
        test_examples=options.test_examples,
        seed=config.seed,
        date=options.chat_date,
        classes=classes,
    )
    model = _load_model(config, task, model, weights=weights)
    check_tokenizer(model)
    return _encode(task, model, options.max_length, cache_dir)


def warn_of_slow_dtype(dtype: str) -> None:
    """Warn of products in bfloat16 on a processor that has none."""
    if dtype == "bfloat16" and current_target().is_cpu and multiplies_bfloat16() is False:
        log.warning(
            "this processor does not multiply bfloat16 (its features name no avx512_bf16, amx_bf16 "
            "or bf16), so --dtype bfloat16 is slower than float32 here"
        )


def _load_model(
    config: RunConfig,
    task: data.TaskData,
    loaded: models.Pretrained | None,
    *,
    weights: bool,
) -> models.Pretrained:
    """Load the model with a head for a task, or draw the head of a loaded one anew."""
    if config.lora.adapter is not None:
        interop.check_task(config.lora.adapter, language=task.task.type == "language")
    if loaded is not None:
        model = models.reinitialize(loaded, model_key(config))
    else:
        model = load_base(
            config,
            num_labels=num_labels(task),
            weights=weights,
            # Divided while loading: no single device may have room for all weights.
            sharding=federated.in_parts(execution_of(config).mesh),
        )
    return with_adapter_head(model, config) if weights else model


def num_labels(task: data.TaskData) -> int | None:
    """Outputs of the head of a model for a task; None for a language model."""
    return TASK_TYPES[task.task.type].num_outputs(task)


def encode_split(
    task: data.TaskData, split: data.Split, model: models.Pretrained, max_length: int
) -> data.Tokens:
    """Tokenise a split as its task does; examples that cannot be used are left out."""
    encode = TASK_TYPES[task.task.type].encode
    return encode(task.task, split, model.tokenizer, max_length, None).tokens


def load_base(
    config: RunConfig,
    *,
    num_labels: int | None,
    weights: bool = True,
    sharding: Sharding | None = None,
) -> models.Pretrained:
    """Load the base model of a config, with a head that is drawn from its seed.

    Args:
      config: of the run.
      num_labels: outputs of the head; None for a language model.
      weights: whether parameters are loaded, or only their shapes.
      sharding: of each parameter, by path and shape; the default device if None.
    """
    options = config.model
    return models.load(
        options.model,
        num_labels=num_labels,
        layers=options.layers,
        dtype=options.dtype,
        storage=options.storage,
        pooling=options.pooling,
        dropout=options.dropout,
        remat=options.remat,
        weights=weights,
        sharding=sharding,
        key=model_key(config),
    )


def _encode(
    task: data.TaskData, model: models.Pretrained, max_length: int, cache_dir: str | None
) -> Assets:
    """Tokenise all splits of a task; examples that cannot be used are counted and left out."""
    task_type = TASK_TYPES[task.task.type]
    splits = {"train": task.train, "validation": task.validation, "test": task.test}
    encoded = {
        name: task_type.encode(task.task, split, model.tokenizer, max_length, cache_dir)
        for name, split in splits.items()
        if split is not None
    }
    lost = sum(len(splits[name].texts) - len(set(e.index.tolist())) for name, e in encoded.items())
    longest = max(e.tokens.ids.shape[1] for e in encoded.values())
    _check_length(longest, model.config.max_tokens)
    task = task._replace(
        skipped=task.skipped + lost, **{name: e.split for name, e in encoded.items()}
    )
    validation = encoded["validation"].tokens if "validation" in encoded else None
    return Assets(task, model, encoded["train"].tokens, validation, encoded["test"].tokens)


@functools.cache
def log_notes(task: str, notes: tuple[str, ...]) -> None:
    """Warn of labels that are probably not as they were meant, once for the runs of a process."""
    for note in notes:
        log.warning("task %s: %s", task, note)


def execution_of(config: RunConfig) -> Execution:
    """Return how the cohorts of a run are executed, with the mesh of its devices.

    Raises:
      InputError: the devices do not form the mesh, or a mesh is given for a mode without one.
    """
    return _make_execution(config.execution, config.federation.cohort, current_target())


@functools.cache
def _make_execution(options: ExecutionConfig, cohort: int, target: Target) -> Execution:
    del target  # which devices there are, and what is chosen by their kind
    clients_per_step = options.clients_per_step or federated.default_clients_per_step(cohort)
    return Execution(mode=options.mode, clients_per_step=clients_per_step, mesh=_mesh(options))


def _mesh(options: ExecutionConfig) -> Mesh | None:
    if options.mode == "sharded":
        return federated.client_mesh(options.devices, options.mesh)
    for name in ("devices", "mesh"):
        if getattr(options, name) != getattr(ExecutionConfig(), name):
            raise InputError(
                f"{name} is given, but mode {options.mode} runs on one device; add --mode sharded, "
                f"or leave {name} out."
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
    """Return the key of the parameters that the checkpoint lacks, above all the head."""
    return jax.random.fold_in(jax.random.key(config.seed), 2)


def with_adapter_head(model: models.Pretrained, config: RunConfig) -> models.Pretrained:
    """Return the model with the head of the adapter that the run begins with, if there is one.

    Raises:
      InputError: an adapter that cannot be read, or of another model.
    """
    folder = config.lora.adapter
    return model if folder is None else interop.with_saved_modules(model, folder)
