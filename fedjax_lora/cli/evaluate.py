"""``fedjax-lora evaluate``: a model on a task's test examples, also per client and rank."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import tyro
from rich.console import Console

from fedjax_lora.core.errors import InputError, raise_all

if TYPE_CHECKING:
    from fedjax_lora import data
    from fedjax_lora.interop import TrainedModel
    from fedjax_lora.runs.evaluate import Evaluator


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Evaluate the model of a run, of an adapter folder or of a checkpoint on a task's test set.

    Of a run, the task and its examples are the run's own unless options say otherwise.
    """

    where: tyro.conf.Positional[pathlib.Path]
    """Folder of a run, an adapter or a checkpoint."""
    clients: bool = False
    """Also each client's own model (its rank, local head and what a method keeps on it), and the
    global model cut to the clients' ranks; needs the run's checkpoint."""
    ranks: tuple[int, ...] = ()
    """Also the global model cut to its first so many components, each as it is in the whole model,
    whatever the scale of a client of that rank; with more than there are it is the whole model."""
    task: str | None = None
    """Another task with the same classes, or of a language model any language task; needed where
    the folder names none. Its prompts are those of the training unless it has a format."""
    data_dir: str | None = None
    """Folder with the task's files; without it they come from where the run's came from."""
    test_examples: int | None = None
    """Use this many test examples; the run's number, or all, by default."""
    model: str | None = None
    """The base model of an adapter, if it is not where the folder says."""
    pooling: Literal["family", "mean"] | None = None
    """What the classifier of an adapter reads that was not made by fedjax-lora."""
    batch: int = 64
    """Texts computed, or prompts answered, at once."""
    out: pathlib.Path | None = None
    """JSON file for all numbers."""


def main(args: Sequence[str]) -> None:
    """Evaluate as the arguments say.

    Raises:
      InputError: no model, no data, or data that do not go with the model.
    """
    options = tyro.cli(EvaluateOptions, args=args, prog="fedjax-lora evaluate")
    low = [("batch", options.batch), *(("ranks", rank) for rank in options.ranks)]
    raise_all("Options", [f"{n} must be at least 1, got {x}" for n, x in low if x < 1])
    console = Console(highlight=False, markup=False, soft_wrap=True)
    with console.status("loading ...") as status:
        found = evaluate(options, status.update)
    _print(console, found)
    if options.out is not None:
        try:
            options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            reason = error.strerror
            raise InputError(f"Output {options.out} cannot be written: {reason}.") from error


def evaluate(options: EvaluateOptions, score: Any = lambda text: None) -> dict[str, Any]:
    """The numbers that the options ask for, as JSON values."""
    # Imported here: --help and wrong options should not wait for JAX.
    from fedjax_lora.cli.run_or_model import check_options, is_run, need_run, open_folder
    from fedjax_lora.core.cache import cache_dir, enable_compilation_cache
    from fedjax_lora.runs import evaluate as run_evaluation
    from fedjax_lora.runs import outputs as run_outputs
    from fedjax_lora.runs.resume import read_config, reopen

    enable_compilation_cache()
    cache, where = str(cache_dir() / "tokens"), options.where
    config = None
    if options.clients:
        need_run(where)
    if is_run(where):
        own_data = None if options.task else options.data_dir
        config = read_config(where, data_dir=own_data, model=options.model)
    run = None
    if options.clients:
        assert config is not None
        run = reopen(where, config, cache_dir=cache)
        model = run_outputs.of_server(run[0], run[1].state, {})
    else:
        model = open_folder(where, model=options.model, pooling=options.pooling)
    check_options(where, model, model=options.model, pooling=options.pooling, ranks=options.ranks)
    loaded = _load(options, model, config)
    assess, examples = _assess(model, loaded, batch=options.batch, cache_dir=cache)
    score("computing ...")
    found: dict[str, Any] = {
        "task": loaded.task.name,
        "examples": examples,
        "metric": loaded.task.metric,
        "global": assess.of(model),
    }
    ranks = [*options.ranks, *(() if run is None else run[1].rank.tolist())]
    if ranks:
        # In one adapter, as the run's folder holds it: the same cut with and without --clients.
        found["ranks"] = run_evaluation.of_ranks(model.fold_kernels(), assess, ranks)
    if run is not None:
        rows = run_evaluation.of_clients(
            *run,
            assess,
            own_mix=options.task is None,
            on_client=lambda client: score(f"client {client} done"),
        )
        told = lambda name: any(row.get(name) is not None for row in rows)  # noqa: E731
        names = [name for name in assess.names if told(name)]
        found["spread"] = {name: run_evaluation.spread(rows, name) for name in names}
        found["clients"] = rows
    return found


def _load(options: EvaluateOptions, model: "TrainedModel", config: Any) -> "data.TaskData":
    """The task whose test examples are used.

    Raises:
      InputError: no task, or one that does not go with the model.
    """
    from fedjax_lora import data

    about = model.metadata
    spec = options.task or (config.data.task if config else about.task)
    if not spec or spec == "file":
        raise InputError(f"{options.where} does not say where its task's data is; give --task.")
    sizes: dict[str, Any] = {"test_examples": options.test_examples}
    seed, data_dir = 0, options.data_dir
    if config is not None and options.task is None:
        # The run's own test examples: drawn as the run drew them.
        chosen, seed = config.data, config.seed
        data_dir = chosen.data_dir if data_dir is None else data_dir
        if options.test_examples is None:
            sizes["test_examples"] = chosen.test_examples
    loaded = data.load(spec, data_dir=data_dir, seed=seed, **sizes)
    _check_task(loaded, model)
    return loaded


def _assess(
    model: "TrainedModel", loaded: "data.TaskData", *, batch: int, cache_dir: str
) -> tuple["Evaluator", int]:
    """How models are assessed on the test examples, and how many there are."""
    from fedjax_lora import interop
    from fedjax_lora.runs import evaluate as run_evaluation

    if model.metadata.language:
        return run_evaluation.assess(model, loaded, batch=batch, cache_dir=cache_dir)
    tokens = interop.tokenize(model, loaded.test, cache_dir=cache_dir)
    outputs = interop.make_logits_fn(model.pretrained, tokens, batch=batch)
    return run_evaluation.by_labels(tokens.label, outputs, loaded.task.metric), len(tokens.label)


def _check_task(loaded: "data.TaskData", model: "TrainedModel") -> None:
    about, task = model.metadata, loaded.task
    if about.language or task.type == "language":
        kinds = {True: "a language model", False: "a classifier"}
        told = f"it is for {kinds[task.type == 'language']}, and this is {kinds[about.language]}"
        differs = about.language != (task.type == "language")
        raise_all(f"Task {task.name!r} does not go with the model", [told] * differs)
        return
    named = about.classes and about.classes != tuple(map(str, range(len(about.classes))))
    problems = []
    if (task.type == "regression") != about.regression or len(loaded.classes) != len(about.classes):
        outputs = len(about.classes) or "one score"
        problems.append(f"it has {len(loaded.classes) or 'no'} classes, the model {outputs}")
    elif named and loaded.classes != about.classes:
        problems.append(f"its classes are {loaded.classes}, the model's {about.classes}")
    if about.task and (loaded.test.pairs is not None) != about.pair:
        problems.append("one is of single texts, the other of pairs")
    raise_all(f"Task {task.name!r} does not go with the model", problems)


def _print(console: Console, found: dict[str, Any]) -> None:
    metric = found["metric"]
    console.print(f"{found['task']}, {found['examples']} test examples")
    columns = list(found.get("spread") or dict.fromkeys((metric, "perplexity", "loss")))
    columns = [name for name in columns if name in found["global"] or "spread" in found]
    console.print(f"{'':<24}" + "".join(f"{name:>16}" for name in columns))

    def line(title: str, values: dict[str, float]) -> None:
        cells = (f"{values[name]:>16.4f}" if name in values else f"{'-':>16}" for name in columns)
        console.print(f"{title:<24}" + "".join(cells))

    line("global model", found["global"])
    for row in found.get("ranks", ()):
        line(f"  cut to rank {row['rank']}", row)
    spread = found.get("spread", {})
    for level in next(iter(spread.values()), ()):
        line(f"clients, {level.replace('_', ' ')}", {n: of[level] for n, of in spread.items()})
