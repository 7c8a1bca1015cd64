"""``fedjax-lora evaluate``: evaluate a model on test examples, also per client and rank."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import tyro
from rich.console import Console

from fedjax_lora.cli.folders import check_base, check_output, is_run, need_model, need_run
from fedjax_lora.cli.terminal import make_console, plain, write_output
from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.core.json_values import Record
from fedjax_lora.core.safe_text import json_text, printable
from fedjax_lora.runs.choices import check_model, check_task

if TYPE_CHECKING:
    from fedjax_lora import data
    from fedjax_lora.interop import TrainedModel
    from fedjax_lora.runs.config import RunConfig
    from fedjax_lora.runs.evaluate import Evaluator
    from fedjax_lora.runs.resume import Reopened


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Evaluate the model of a run, of an adapter folder or of a checkpoint on a task's test set.

    For a run, task and test examples are the run's own by default.
    """

    where: tyro.conf.Positional[pathlib.Path]
    """Folder of a run, an adapter or a checkpoint."""
    clients: bool = False
    """Also evaluate each client's own model (its rank, local head and method state), and the global
    model cut to the clients' ranks; needs a checkpoint of the run."""
    best: bool = False
    """Evaluate the checkpoint with the best score, not the last one, as `export --best` writes it;
    the score is that on validation data if the run has some, else on test data."""
    ranks: tuple[int, ...] = ()
    """Also evaluate the global model cut to its first components: to each of these numbers. The
    scale of the components stays that of the whole model."""
    task: str | None = None
    """Another task: with the same classes, or for a language model any language task. Needed if the
    folder names none. Prompts are as in the training unless the task has a format."""
    data_dir: str | None = None
    """Folder with the task's files; by default that of the run."""
    test_examples: int | None = None
    """Use this many test examples; by default as many as the run, or all."""
    model: str | None = None
    """Base model of an adapter, if it is not the one that the folder names."""
    pooling: Literal["family", "mean"] | None = None
    """Pooling of the classifier, for an adapter that fedjax-lora has not written."""
    batch: int = 64
    """Texts computed, or prompts answered, at the same time."""
    precision: Literal["default", "highest"] | None = None
    """Precision of float32 products: a TPU rounds their factors to bfloat16 and a GPU to TF32,
    unless this is highest. By default that of the run; for other folders, default."""
    out: pathlib.Path | None = None
    """JSON file for all scores."""


def main(args: Sequence[str]) -> None:
    """Evaluate a model and print or write its scores.

    Raises:
      InputError: no model, no data, or data that do not go with the model.
    """
    options = tyro.cli(EvaluateOptions, args=args, prog="fedjax-lora evaluate")
    low = [("batch", options.batch), *(("ranks", rank) for rank in options.ranks)]
    raise_all("Options", [f"{n} must be at least 1, got {x}" for n, x in low if x < 1])
    _check_words(options)
    console = make_console()
    with console.status("loading ...") as status:
        scores = evaluate(options, lambda text: status.update(plain(text)))
    _print(console, scores)
    if options.out is not None:
        write_output(options.out, json_text(scores, indent=2) + "\n")


def _check_words(options: EvaluateOptions) -> None:
    """Check folders and names before JAX is imported.

    Raises:
      InputError: the first that is wrong.
    """
    (need_run if options.clients or options.best else need_model)(options.where)
    check_output(options.out)
    if options.model is not None:
        check_model(options.model)
    if options.task is not None:
        check_task(options.task)


def evaluate(
    options: EvaluateOptions, report: Callable[[str], object] = lambda text: None
) -> Record:
    """Compute the scores that the options ask for, as JSON values.

    Args:
      options: of the command.
      report: called with what is being done.
    """
    # Imported here: --help and wrong options should not wait for JAX.
    from fedjax_lora.cli.run_or_model import with_precision

    with with_precision(options.where, options.precision):
        return _evaluate(options, report)


def _evaluate(options: EvaluateOptions, report: Callable[[str], object]) -> Record:
    """Compute the scores with the precision of the process."""
    from fedjax_lora.cli.run_or_model import check_options
    from fedjax_lora.core.cache import cache_dir, enable_compilation_cache
    from fedjax_lora.runs.evaluate import evaluate_ranks
    from fedjax_lora.runs.loading import log_notes
    from fedjax_lora.runs.outputs import positive_class

    enable_compilation_cache()
    cache = str(cache_dir() / "tokens")
    model, config, reopened = _open(options, cache)
    check_options(
        options.where, model, model=options.model, pooling=options.pooling, ranks=options.ranks
    )
    task_data = _load_task(options, model, config)
    log_notes(task_data.task.name, task_data.notes)
    evaluator, examples = _make_evaluator(model, task_data, batch=options.batch, cache_dir=cache)
    report("computing ...")
    scores: dict[str, Any] = {
        "task": task_data.task.name,
        "examples": examples,
        "metric": task_data.task.metric,
        **positive_class(task_data),
        "global": evaluator.evaluate(model),
    }
    ranks = [*options.ranks, *(reopened.progress.rank.tolist() if reopened else ())]
    if ranks:
        # In one adapter, as the run's folder holds it: the same cut with and without --clients.
        scores["ranks"] = evaluate_ranks(model.fold_kernels(), evaluator, ranks)
    if reopened is not None:
        scores |= _evaluate_clients(options, reopened, evaluator, report)
    return scores


def _open(
    options: EvaluateOptions, cache_dir: str
) -> tuple["TrainedModel", "RunConfig | None", "Reopened | None"]:
    """Open the model, the config if it is a run's, and with --clients the run itself."""
    from fedjax_lora.cli.run_or_model import open_folder, open_run
    from fedjax_lora.runs.outputs import server_model
    from fedjax_lora.runs.resume import read_config, reopen

    where = options.where
    if options.clients or options.best:
        need_run(where)
    if not is_run(where):
        return open_folder(where, model=options.model, pooling=options.pooling), None, None
    data_dir = None if options.task else options.data_dir
    config = read_config(where, data_dir=data_dir, model=options.model)
    if not options.clients and not options.best:
        return open_run(where, config, trusted=options.model is not None), config, None
    if options.model is None:
        check_base(where, config.model.model)
    reopened = reopen(where, config, best=options.best, cache_dir=cache_dir)
    model = server_model(reopened.run, reopened.progress.state, {})
    return model, config, reopened if options.clients else None


def _evaluate_clients(
    options: EvaluateOptions,
    reopened: "Reopened",
    evaluator: "Evaluator",
    report: Callable[[str], object],
) -> dict[str, Any]:
    """Evaluate each client's own model; returns all rows and their spread over the clients."""
    from fedjax_lora.runs.evaluate import evaluate_clients, spread

    rows = evaluate_clients(
        reopened.run,
        reopened.progress,
        evaluator,
        local_scores=options.task is None,
        on_client=lambda client: report(f"client {client} done"),
    )
    names = [n for n in evaluator.metrics if any(row.get(n) is not None for row in rows)]
    return {"spread": {name: spread(rows, name) for name in names}, "clients": rows}


def _load_task(
    options: EvaluateOptions, model: "TrainedModel", config: "RunConfig | None"
) -> "data.TaskData":
    """Load the task whose test examples are used.

    Raises:
      InputError: no task, or one that does not go with the model.
    """
    from fedjax_lora import data

    spec = options.task or (config.data.task if config else model.metadata.task)
    if not spec or spec == "file":
        raise InputError(f"{options.where} does not say where its task's data is; give --task.")
    seed, data_dir, test_examples = 0, options.data_dir, options.test_examples
    if config is not None and options.task is None:
        # The run's own test examples: drawn as the run drew them.
        seed = config.seed
        data_dir = config.data.data_dir if data_dir is None else data_dir
        test_examples = config.data.test_examples if test_examples is None else test_examples
    task_data = data.load(spec, data_dir=data_dir, seed=seed, test_examples=test_examples)
    task_data = _in_model_order(task_data, model)
    _check_task(task_data, model)
    return task_data


def _in_model_order(task_data: "data.TaskData", model: "TrainedModel") -> "data.TaskData":
    """Renumber the test labels of a task whose classes the model has in another order.

    ``LABEL_3`` of `transformers` is class 3 of data that is labelled with numbers.
    """
    import numpy as np

    ours = _without_prefix(model.metadata.classes)
    task_classes = list(task_data.classes)
    if model.metadata.language or ours == task_classes or sorted(ours) != sorted(task_classes):
        return task_data
    number = np.array([ours.index(name) for name in task_classes], np.int32)
    test = task_data.test._replace(labels=number[task_data.test.labels])
    return task_data._replace(classes=model.metadata.classes, test=test)


def _make_evaluator(
    model: "TrainedModel", task_data: "data.TaskData", *, batch: int, cache_dir: str
) -> tuple["Evaluator", int]:
    """Build the evaluation on the test examples; returns it and the number of examples."""
    from fedjax_lora import interop
    from fedjax_lora.runs.evaluate import label_evaluator, language_evaluator

    if model.metadata.language:
        return language_evaluator(model, task_data, batch=batch, cache_dir=cache_dir)
    tokens = interop.tokenize(model, task_data.test, cache_dir=cache_dir)
    logits = interop.make_logits_fn(model.pretrained, tokens, batch=batch)
    return label_evaluator(tokens.label, logits, task_data.task.metric), len(tokens.label)


def _check_task(task_data: "data.TaskData", model: "TrainedModel") -> None:
    """Check that a task can be evaluated with a model.

    Raises:
      InputError: it cannot; everything that does not fit is named.
    """
    subject = f"Task {task_data.task.name!r} does not go with the model"
    is_language = task_data.task.type == "language"
    if model.metadata.language != is_language:
        types = {True: "a language model", False: "a classifier"}
        raise_all(
            subject, [f"it is for {types[is_language]}, and this is {types[not is_language]}"]
        )
    if not is_language:
        raise_all(subject, list(_label_problems(task_data, model)))


def _without_prefix(classes: Sequence[str]) -> list[str]:
    """Return class names without the prefix of `transformers`: ``3`` for ``LABEL_3``."""
    return [name.removeprefix("LABEL_") for name in classes]


def _is_numbered(classes: Sequence[str]) -> bool:
    """Whether the names of classes say no more than their numbers."""
    return _without_prefix(classes) == [*map(str, range(len(classes)))]


def _label_problems(task_data: "data.TaskData", model: "TrainedModel") -> Iterator[str]:
    """Yield in what a task with labels differs from that of the model."""
    about, classes = model.metadata, task_data.classes
    is_regression = task_data.task.type == "regression"
    if is_regression != about.regression or len(classes) != len(about.classes):
        outputs = len(about.classes) or "one score"
        yield f"it has {len(classes) or 'no'} classes, the model {outputs}"
    elif about.classes and not _is_numbered(about.classes) and classes != about.classes:
        yield f"its classes are {classes}, the model's {about.classes}"
    if about.task and (task_data.test.pairs is not None) != about.pair:
        yield "one is of single texts, the other of pairs"


def _f1(scores: dict[str, Any]) -> str:
    """Say what an F1 score is of."""
    if "positive_class" in scores:
        return f"; f1 is of the class {printable(scores['positive_class'])}"
    return "; f1 is macro F1, the mean over the classes" * (scores["metric"] == "f1")


def _print(console: Console, scores: dict[str, Any]) -> None:
    """Print the scores as a table: a row per model, a column per score."""
    spread = scores.get("spread", {})
    columns = [*spread] or [
        name
        for name in dict.fromkeys((scores["metric"], "perplexity", "loss"))
        if name in scores["global"]
    ]
    console.print(f"{printable(scores['task'])}, {scores['examples']} test examples{_f1(scores)}")
    console.print(f"{'':<24}" + "".join(f"{name:>16}" for name in columns))

    def line(title: str, values: dict[str, float]) -> None:
        cells = (f"{values[name]:>16.4f}" if name in values else f"{'-':>16}" for name in columns)
        console.print(f"{title:<24}" + "".join(cells))

    line("global model", scores["global"])
    for row in scores.get("ranks", ()):
        line(f"  cut to rank {row['rank']}", row)
    for level in next(iter(spread.values()), ()):
        line(f"clients, {level.replace('_', ' ')}", {n: of[level] for n, of in spread.items()})
