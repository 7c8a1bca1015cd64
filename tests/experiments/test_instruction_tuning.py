"""The study of instruction tuning: its configs, and how its learning rates are chosen."""

import pytest

from experiments.studies import instruction_tuning
from experiments.studies.instruction_tuning import METHODS, RATES, SEEDS, STUDY, TASK
from experiments.tools import runner
from experiments.tools.study import distinct
from fedjax_lora import methods
from fedjax_lora.core import registry
from fedjax_lora.data.datasets import registry as tasks

pytestmark = pytest.mark.slow


def scored(scores):
    """Finished tuning runs with these perplexities, by method and rate."""
    (part,) = instruction_tuning.tuning("small", {})
    return {
        part.config(instruction_tuning.tuned(label, rate), TASK, seed): {
            "history": [{instruction_tuning.TUNED_BY: value}]
        }
        for (label, rate), value in scores.items()
        for seed in part.seeds
    }


def test_every_method_has_the_same_budget():
    tuning, reporting = (stage("small", {}) for stage in STUDY.stages)
    assert len(distinct(tuning)) == len(METHODS) * len(RATES)
    assert len(distinct(reporting)) == len(METHODS) * len(SEEDS)
    tried = {cell.config.seed for cell in distinct(tuning)}
    assert not tried & {cell.config.seed for cell in distinct(reporting)}
    assert tasks.find_task(TASK).prompting.format == "plain"
    for cell in distinct(tuning + reporting):
        assert registry.parse(cell.config.federation.method)[0] in methods.METHODS
        ranks = "fixed(rank=8)" if cell.config.federation.method == "fedit" else "tiers"
        assert cell.config.federation.ranks.startswith(ranks)


def test_learning_rate_minimises_perplexity():
    low, middle, high = RATES
    scores = {("FLoRA", low): 30.0, ("FLoRA", middle): 20.0, ("FLoRA", high): 900.0}
    records = scored(scores | {("HetLoRA", low): 25.0})
    assert instruction_tuning.best_rate(records, "FLoRA") == middle
    assert instruction_tuning.best_rate(records, "HetLoRA") == low
    assert instruction_tuning.best_rate({}, "FLoRA") == low
    (part,) = instruction_tuning.reporting("small", records)
    assert part.config("FLoRA", TASK, 1).local.learning_rate == middle
    # A tie goes to the smaller rate.
    records = scored({("FLoRA", low): 20.0, ("FLoRA", middle): 20.0})
    assert instruction_tuning.best_rate(records, "FLoRA") == low


def test_records_hold_no_local_path():
    (part,) = instruction_tuning.reporting("small", {})
    config = part.config("FLoRA", TASK, 0)
    moved = runner.located(config, "here", "there")
    assert (moved.data.data_dir, moved.model.model) == ("here", "there/stories260k")
    assert (config.data.data_dir, config.model.model) == (None, "stories260k")


@pytest.mark.parametrize("name", ["accuracy", "perplexity"])
def test_progress_line_shows_the_available_score(name):
    assert runner.score({name: 2.0, "loss": 1.0}) == f"{name} 2.000"
