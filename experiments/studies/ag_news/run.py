"""Run the comparison; see `experiments.studies.ag_news`."""

import dataclasses
import functools
import pathlib
import re
import time

import tyro

from experiments.studies.ag_news import METHODS, RATES, RESULTS, SEEDS, get_config, tuning_config
from fedjax_lora.core.cache import cache_dir, enable_compilation_cache
from fedjax_lora.runs.build import Assets, load_assets
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.outputs import Result
from fedjax_lora.runs.run import run
from fedjax_lora.runs.sweep.record_store import Record, run_once


def slug(method: str) -> str:
    """A method spec as part of a file name."""
    return re.sub(r"\W+", "_", method).strip("_")


def finish(path: pathlib.Path, config: RunConfig, assets: Assets) -> Record:
    """Run a config unless its file exists, telling the terminal about it."""

    def told() -> Result:
        clock = time.perf_counter()
        print(f"{path.name} ...", flush=True)
        result = run(config, assets=assets)
        print(f"{path.name} done in {time.perf_counter() - clock:.0f} s", flush=True)
        return result

    return run_once(path, public(config), told)


def public(config: RunConfig) -> RunConfig:
    """The config without where the files lay, which is nobody's business."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=None))


def best_rate(method: str, data_dir: str, assets: Assets) -> float:
    """The learning rate with the highest validation accuracy; the smaller one if equal."""
    scores = {}
    for rate in RATES:
        config = tuning_config(method, rate=rate, data_dir=data_dir)
        path = RESULTS / "tuning" / f"{slug(method)}-{rate:g}.json"
        record = finish(path, config, assets)
        scores[rate] = record["history"][-1]["validation_accuracy"]
    return max(RATES, key=lambda rate: (scores[rate], -rate))


def main(data_dir: str, seeds: int = len(SEEDS)) -> None:
    """Tune and run every method.

    Args:
      data_dir: folder that holds ag_news/.
      seeds: how many seeds, from 0.
    """
    enable_compilation_cache()
    load = functools.partial(load_assets, cache_dir=str(cache_dir() / "tokens"))
    short = load(tuning_config("fed_plora", rate=RATES[0], data_dir=data_dir))
    for seed in SEEDS[:seeds]:
        assets = load(get_config("fed_plora", rate=RATES[0], seed=seed, data_dir=data_dir))
        assets = assets._replace(validation=None)  # held out all the same, and nothing to tune
        for method in METHODS.values():
            rate = best_rate(method, data_dir, short)
            config = get_config(method, rate=rate, seed=seed, data_dir=data_dir)
            finish(RESULTS / "runs" / f"{slug(method)}-seed{seed}.json", config, assets)


if __name__ == "__main__":
    tyro.cli(main)
