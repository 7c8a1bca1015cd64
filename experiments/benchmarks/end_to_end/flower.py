"""The same clients and the same server in Flower's simulation engine."""

# Flower is in an environment of its own.
# pyright: reportMissingImports=false

import functools
import os
import pathlib
import time
from importlib.metadata import version
from typing import Any

# No telemetry from a benchmark.
os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from experiments.benchmarks.end_to_end import federated
from experiments.benchmarks.end_to_end import work as files
from experiments.benchmarks.end_to_end.work import Work

CORES = os.cpu_count() or 1


def run(work: Work, workers: int) -> dict[str, Any]:
    """Run the experiment; returns losses and scores by round."""
    history: list[dict[str, float]] = []
    threads = CORES // workers
    run_simulation(
        server_app=_server_app(work, history),
        client_app=_client_app(work.folder, threads),
        num_supernodes=int(work.rounds.id.max()) + 1,
        backend_config={
            "client_resources": {"num_cpus": threads, "num_gpus": 0.0},
            "init_args": {"num_cpus": CORES, "include_dashboard": False},
        },
    )
    names = ("flwr", "ray", "torch", "peft")
    return {"history": history, "versions": {name: version(name) for name in names}}


@functools.cache
def _loaded(folder: pathlib.Path, threads: int) -> tuple[Work, federated.Worker]:
    """Load the work once per worker."""
    torch.set_num_threads(threads)
    work = files.load(folder)
    return work, federated.tools(work, ("train",))


def _client_app(folder: pathlib.Path, threads: int) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        work, tools = _loaded(folder, threads)
        t, k = (int(message.content["turn"][name]) for name in ("round", "k"))
        received = message.content["model"].to_numpy_ndarrays()
        rank, rate = int(work.rounds.rank[t, k]), float(work.rounds.rate[t])
        sent, loss = federated.visit(tools, received, work.rounds.batches(t, k), rank, rate)
        answer = {"model": ArrayRecord(sent), "result": MetricRecord({"loss": loss, "k": k})}
        return Message(RecordDict(answer), reply_to=message)

    return app


def _server_app(work: Work, history: list[dict[str, float]]) -> ServerApp:
    app, rounds = ServerApp(), work.rounds

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        tools = federated.tools(work, ("test",))
        model = federated.first(work, tools)
        for t in range(len(rounds.rate)):
            answers = _visits(grid, work, t, model)
            model = federated.mean([sent for sent, _ in answers], rounds.weight[t], model)
            history.append({"train_loss": rounds.mean_loss(t, [loss for _, loss in answers])})
            if rounds.tested[t]:
                history[-1] |= federated.evaluate(tools, model, work.ranks[-1])

    return app


def _visits(grid: Grid, work: Work, t: int, model: federated.Arrays) -> list[tuple[Any, float]]:
    """Train all clients of a round; returns their arrays and losses in the order of the plan."""
    nodes: list[int] = []
    while len(nodes) <= work.rounds.id.max():  # they register while the simulation starts
        nodes = sorted(grid.get_node_ids())
        time.sleep(0.01)
    messages = []
    for k, rank in enumerate(work.rounds.rank[t].tolist()):
        received = federated.cut(model, rank, len(work.start))
        content = {"model": ArrayRecord(received), "turn": ConfigRecord({"round": t, "k": k})}
        node = nodes[work.rounds.id[t, k]]
        messages.append(Message(RecordDict(content), dst_node_id=node, message_type="train"))
    answers = list(grid.send_and_receive(messages))
    answers.sort(key=lambda answer: int(answer.content["result"]["k"]))
    return [
        (answer.content["model"].to_numpy_ndarrays(), float(answer.content["result"]["loss"]))
        for answer in answers
    ]
