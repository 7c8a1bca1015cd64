"""What a finished run is worth to each of its clients."""

from fedjax_lora import interop
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.json_values import Record
from fedjax_lora.data import TaskData
from fedjax_lora.runs.checkpoints import Progress
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.evaluate import class_shares, evaluate_clients, label_evaluator
from fedjax_lora.runs.outputs import server_model
from fedjax_lora.runs.prepared import Run


def check_clients_can_be_scored(config: RunConfig, task: TaskData) -> None:
    """Refuse to score clients by a mix of classes that a task does not have.

    Raises:
      InputError: the task is no classification.
    """
    if config.execution.evaluate_clients and not (task.classes and task.task.type != "language"):
        raise InputError(
            f"Clients are scored on their mix of classes, and task {task.task.name!r} has no "
            "classes; leave out evaluate_clients (fedjax-lora evaluate RUN --clients scores them)."
        )


def client_scores(run: Run, progress: Progress, record: Record) -> Record:
    """Score every client's own model and the global one on the client's mix of classes.

    Args:
      run: the run.
      progress: after its last round.
      record: of that round.

    Returns:
      ``clients`` with a list for each of ``rank``, ``examples``, ``own_accuracy`` and
      ``global_accuracy``, in the order of the clients; ``{}`` unless the config asks for it.
    """
    options = run.config.execution
    if not options.evaluate_clients:
        return {}
    assets = run.inputs.assets
    logits = interop.make_logits_fn(assets.model, assets.test, batch=options.eval_batch)
    evaluator = label_evaluator(assets.test.label, logits, run.task.metric)
    rows = evaluate_clients(run, progress, evaluator, local_scores=True)
    of_global = evaluator.predict(server_model(run, progress.state, record))
    shares = class_shares(run)
    assert shares is not None  # checked before the run
    return {
        "clients": {
            "rank": [row["rank"] for row in rows],
            "examples": [row["examples"] for row in rows],
            "own_accuracy": [row["local_accuracy"] for row in rows],
            "global_accuracy": [evaluator.score(of_global, x)["local_accuracy"] for x in shares],
        }
    }
