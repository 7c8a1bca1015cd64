"""Run the comparison; see `experiments.studies.ag_news`."""

import dataclasses
import functools
import pathlib
import time

import tyro

from experiments.studies.ag_news import (
    METHODS,
    RATES,
    RUNS,
    SEEDS,
    TUNING,
    get_config,
    tuning_config,
)
from experiments.tools import run_store
from experiments.tools.json_lines import Record
from fedjax_lora.core.cache import cache_dir, enable_compilation_cache
from fedjax_lora.runs.build import Assets, load_assets
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.outputs import Result
from fedjax_lora.runs.run import run


def run_once(path: pathlib.Path, config: RunConfig, assets: Assets) -> Record:
    """Run a config unless the file has its record; prints the progress."""

    def logged_run() -> Result:
        fed, clock = config.federation, time.perf_counter()
        print(f"{fed.method}, rate {config.local.learning_rate:g}, seed {config.seed} ...")
        result = run(config, assets=assets)
        print(f"... done in {time.perf_counter() - clock:.0f} s", flush=True)
        return result

    return run_store.run_once(path, without_paths(config), logged_run)


def without_paths(config: RunConfig) -> RunConfig:
    """Remove the local data folder from a config."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=None))


def best_rate(method: str, data_dir: str, assets: Assets) -> float:
    """Tune the learning rate by validation accuracy; returns the smaller rate in a tie."""
    scores = {}
    for rate in RATES:
        record = run_once(TUNING, tuning_config(method, rate=rate, data_dir=data_dir), assets)
        scores[rate] = record["history"][-1]["validation_accuracy"]
    return max(RATES, key=lambda rate: (scores[rate], -rate))


def main(data_dir: str, seeds: int = len(SEEDS)) -> None:
    """Tune and run every method.

    Args:
      data_dir: folder that holds ag_news/.
      seeds: number of seeds, counted from 0.
    """
    enable_compilation_cache()
    load = functools.partial(load_assets, cache_dir=str(cache_dir() / "tokens"))
    tuning_assets = load(tuning_config("fed_plora", rate=RATES[0], data_dir=data_dir))
    for seed in SEEDS[:seeds]:
        assets = load(get_config("fed_plora", rate=RATES[0], seed=seed, data_dir=data_dir))
        assets = assets._replace(validation=None)  # held out, but not needed after tuning
        for method in METHODS.values():
            rate = best_rate(method, data_dir, tuning_assets)
            config = get_config(method, rate=rate, seed=seed, data_dir=data_dir)
            run_once(RUNS, config, assets)


if __name__ == "__main__":
    tyro.cli(main)
