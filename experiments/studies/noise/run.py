"""Run the measurements; see `experiments.studies.noise`."""

import functools
import json

import numpy as np
import tyro

from experiments.studies.ag_news.run import public
from experiments.studies.noise import COHORTS, METHODS, RESULTS, dilution_config, get_config
from fedjax_lora.core.atomic_io import write
from fedjax_lora.core.cache import cache_dir, enable_compilation_cache
from fedjax_lora.runs.build import Assets, load_assets
from fedjax_lora.runs.outputs import Result
from fedjax_lora.runs.run import run
from fedjax_lora.runs.sweep.record_store import run_once


def measured(method: str, data_dir: str, assets: Assets) -> None:
    """Run a method unless its file exists; its server's seconds go into a file beside it."""
    config = get_config(method, data_dir=data_dir)
    path = RESULTS / "runs" / f"{method}.json"
    seconds: list[float] = []

    def told() -> Result:
        print(f"{method} ...", flush=True)
        note = lambda record: seconds.append(record["server_seconds"])  # noqa: E731
        return run(config, assets=assets, on_round=note)

    run_once(path, public(config), told)
    if seconds:
        write(RESULTS / "seconds" / path.name, json.dumps(seconds) + "\n")


def tail(method: str, clients: int, data_dir: str, assets: Assets) -> float:
    """The size of the product of components 2 to 7 of the global adapter after a round."""
    config = dilution_config(method, clients=clients, data_dir=data_dir)
    adapter = run(config, assets=assets).state.server.adapter
    squares = [
        np.sum((np.asarray(a)[..., 2:] @ np.asarray(b)[..., 2:, :]) ** 2)
        for a, b in adapter.values()
    ]
    return float(np.sqrt(np.sum(squares)))


def main(data_dir: str) -> None:
    """Measure every method, and the dilution law.

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
