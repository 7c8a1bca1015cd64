"""Run the study; see `experiments.studies.simulated_time`."""

import tyro

from experiments.studies.simulated_time import METHODS, RESULTS, SEEDS, grid
from fedjax_lora.runs.sweep.runner import Finished, compare


def main(methods: tuple[str, ...] = METHODS, seeds: tuple[int, ...] = SEEDS) -> None:
    """Run what has no result yet, and write table and figure of the runs asked for.

    Args:
      methods: only these methods.
      seeds: only these seeds.
    """

    def told(run: Finished) -> None:
        print(f"{run.number} of {run.total}: {run.cell.labels} {run.seconds:.0f} s {run.error}")

    compare(grid(methods, seeds), out=RESULTS, on_run=told)


if __name__ == "__main__":
    tyro.cli(main)
