"""Run the comparison; see `experiments.instruction_tuning`."""

import dataclasses
import pathlib
import time
from typing import Any

import tyro

from experiments.instruction_tuning import METHODS, RATES, RESULTS, SEEDS, TUNING_ROUNDS, get_config
from fedjax_lora.cache import cache_dir, keep_compiled_programs
from fedjax_lora.compare.queue import Record, run_once
from fedjax_lora.config import RunConfig
from fedjax_lora.experiment import Assets, load_assets
from fedjax_lora.programs import Programs, programs
from fedjax_lora.runs import Result, run


def public(config: RunConfig) -> RunConfig:
    """The config without where the files lay, which is nobody's business."""
    model = dataclasses.replace(config.model, model=pathlib.Path(config.model.model).name)
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, data_dir=None), model=model
    )


def finish(path: pathlib.Path, config: RunConfig, assets: Assets, shared: Programs) -> Record:
    """The record of a run, from its file if it is finished."""

    def told() -> Result:
        clock = time.perf_counter()
        result = run(config, assets=assets, programs=shared)
        score = result.records[-1]["perplexity"]
        print(f"{path.stem}: {score:.2f} in {time.perf_counter() - clock:.0f} s", flush=True)
        return result

    return run_once(path, public(config), told)


def best_rate(method: str, assets: Assets, shared: Programs, where: dict[str, Any]) -> float:
    """The learning rate with the lowest perplexity on the clients' held-out examples."""
    found = {}
    for rate in RATES:
        config = get_config(method, rate=rate, seed=0, rounds=TUNING_ROUNDS, **where)
        path = RESULTS / "tuning" / f"{method}-{rate:g}.json"
        record = finish(path, config, assets, shared)
        found[rate] = record["history"][-1]["validation_perplexity"]
    return min(RATES, key=lambda rate: (found[rate], rate))


def main(data_dir: str, model: str, seeds: int = 1) -> None:
    """Tune and run every method.

    Args:
      data_dir: folder that holds dolly_alpaca_fed10/.
      model: folder of stories260k.
      seeds: how many seeds, from 0.
    """
    keep_compiled_programs()
    where: dict[str, Any] = {"data_dir": data_dir, "model": model}
    shared, tokens = programs(), str(cache_dir() / "tokens")
    first = load_assets(get_config("flora", rate=1e-2, seed=0, **where), cache_dir=tokens)
    for seed in SEEDS[:seeds]:
        any_method = get_config("flora", rate=1e-2, seed=seed, **where)
        assets = first if seed == 0 else load_assets(any_method, cache_dir=tokens)
        for method in METHODS.values():
            rate = best_rate(method, first, shared, where)
            config = get_config(method, rate=rate, seed=seed, **where)
            finish(RESULTS / "runs" / f"{method}-seed{seed}.json", config, assets, shared)


if __name__ == "__main__":
    tyro.cli(main)
