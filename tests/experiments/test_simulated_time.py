"""The plan of the study of accuracy against simulated time."""

from experiments.studies.simulated_time import METHODS, RANKS, SEEDS, grid
from fedjax_lora.runs.choices import check_choices
from fedjax_lora.runs.sweep import grid as grids


def test_every_method_runs_with_every_choice_of_ranks_on_one_federation():
    cells, problems = grids.cells(grid())
    assert not problems and len(cells) == len(METHODS) * len(RANKS) * len(SEEDS)
    assert len({cell.config for cell in cells}) == len(cells)
    for cell in cells:
        check_choices(cell.config)
    shared = {(c.config.data, c.config.local, c.config.federation.device_profiles) for c in cells}
    assert len(shared) == 1
