"""Accuracy against simulated time: ranks by device against one rank for all.

The demo's task and model, 50 clients with four kinds of devices in equal shares. Each device gets
the largest rank of at most 16 with which it needs at most 0.6 seconds for a round (3 on a Raspberry
Pi 5, 6 on a Jetson Nano, 16 on the others); or all clients have rank 16, so that rounds wait longer
for the slow ones; or all have 2, so that rounds are short. All settings and seeds were fixed before
the first run, and nothing is tuned: learning rates are the demo's.

    python -m experiments.studies.simulated_time.run      # resumable; 45 runs of a minute or two

The command writes ``results/table.md`` and ``results/curves.png``, whose right panels are over
simulated time.
"""

import dataclasses
import pathlib

from fedjax_lora.runs import config as configs
from fedjax_lora.runs.sweep.grid import Grid

RESULTS = pathlib.Path(__file__).parent / "results"

METHODS = ("zero_padding", "replication", "hlora", "fed_plora", "flora")
SEEDS = (0, 1, 2)
DEVICES = "classes(names=['raspberry-pi-5', 'jetson-nano', 'jetson-orin-nano', 'laptop-m1'])"
RANKS = ("by_device(high=16, seconds=0.6)", "fixed(rank=16)", "fixed(rank=2)")


def grid(methods: tuple[str, ...] = METHODS, seeds: tuple[int, ...] = SEEDS) -> Grid:
    """Return the runs of the study, or a part of them."""
    base = configs.demo()
    federation = dataclasses.replace(base.federation, device_profiles=DEVICES)
    return Grid(
        base=dataclasses.replace(base, federation=federation),
        methods=methods,
        seeds=seeds,
        vary={"federation.ranks": RANKS},
    )
