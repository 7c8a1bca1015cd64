"""Run the measurements; see `experiments.studies.noise`."""

import functools
import json

import numpy as np
import tyro

from experiments.studies.ag_news.run import without_paths
from experiments.studies.noise import (
    COHORTS,
    METHODS,
    RESULTS,
    RUNS,
    dilution_config,
    get_config,
)
from experiments.tools import run_store
from fedjax_lora.core.atomic_io import write
from fedjax_lora.core.cache import cache_dir, enable_compilation_cache
from fedjax_lora.runs.build import Assets, load_assets
from fedjax_lora.runs.run import run


def measured(method: str, data_dir: str, assets: Assets) -> None:
    """Run a method unless it has a record, which includes the seconds of the server's steps."""
    config = get_config(method, data_dir=data_dir)
    if without_paths(config) in run_store.finished(RUNS):
        return
    print(f"{method} ...", flush=True)
    seconds: list[float] = []
    note = lambda record: seconds.append(record["server_seconds"])  # noqa: E731
    result = run(config, assets=assets, on_round=note)
    run_store.add(RUNS, without_paths(config), result, server_seconds=seconds)


def tail(method: str, clients: int, data_dir: str, assets: Assets) -> float:
    """Frobenius norm of the product of components 2 to 7 of the global adapter after a round."""
    config = dilution_config(method, clients=clients, data_dir=data_dir)
    adapter = run(config, assets=assets).state.server.adapter
    squares = [
        np.sum((np.asarray(a)[..., 2:] @ np.asarray(b)[..., 2:, :]) ** 2)
        for a, b in adapter.values()
    ]
    return float(np.sqrt(np.sum(squares)))


def main(data_dir: str) -> None:
    """Measure every method and the dilution law.

    Args:
      data_dir: folder that holds ag_news/.
    """
    enable_compilation_cache()
    load = functools.partial(load_assets, cache_dir=str(cache_dir() / "tokens"))
    assets = load(get_config("fed_plora", data_dir=data_dir))
    for method in METHODS:
        measured(method, data_dir, assets)
    path = RESULTS / "dilution.json"
    if not path.exists():
        sizes = {
            str(k): {m: tail(m, k, data_dir, assets) for m in ("zero_padding", "replication")}
            for k in COHORTS
        }
        write(path, json.dumps(sizes) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
