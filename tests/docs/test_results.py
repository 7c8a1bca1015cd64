"""Properties of committed result files, and the tables generated from them."""

import json

import pytest

from experiments.benchmarks.aggregation import report as aggregation
from experiments.benchmarks.cohort import report as cohort
from experiments.benchmarks.compilation import report as compilation
from experiments.benchmarks.cost_estimates import report as cost_estimates
from experiments.benchmarks.end_to_end import report as end_to_end
from experiments.benchmarks.quantized_base import report as quantized_base
from experiments.benchmarks.scaling import report as scaling
from experiments.robustness.deployment import report as deployment
from experiments.robustness.huggingface_parity import report as huggingface_parity
from experiments.robustness.interruptions import report as interruptions
from experiments.studies.ag_news import report as ag_news
from experiments.studies.demo import centralised
from experiments.studies.instruction_tuning import report as instruction_tuning
from experiments.studies.noise import report as noise
from experiments.tools import json_lines, readme_demo
from experiments.tools.markdown import text_of
from fedjax_lora.methods import METHODS
from fedjax_lora.models.decoder_config import DECODERS, ENCODERS
from fedjax_lora.models.families import FAMILIES
from fedjax_lora.runs.config import demo

REPORTS = [
    ag_news,
    aggregation,
    cohort,
    compilation,
    cost_estimates,
    deployment,
    end_to_end,
    huggingface_parity,
    instruction_tuning,
    interruptions,
    noise,
    quantized_base,
    scaling,
]


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.__name__.split(".")[-2])
def test_table_beside_the_results_is_up_to_date(report):
    table = report.table()
    assert table.count("\n") > 3
    assert (report.RESULTS / "table.md").read_text("utf-8") == table


def test_growing_server_steps_are_up_to_date():
    assert (aggregation.RESULTS / "sweep.md").read_text("utf-8") == aggregation.sweep_table()


def test_committed_interruptions_all_recovered():
    trials = [
        t for name in ("kills", "others", "methods") for t in interruptions.read(name).values()
    ]
    assert all(trial.get("same", True) and trial.get("told", True) for trial in trials)
    assert set(interruptions.read("methods")) <= set(METHODS)
    methods = interruptions.RESULTS / "methods.md"
    assert methods.read_text("utf-8") == interruptions.methods_table()


def test_committed_deployments_left_the_bytes_of_one_process():
    trials = [t for part in ("kills", "parity") for t in deployment.read(part).values()]
    assert len(trials) >= 4 and all(trial["same_bytes"] for trial in trials)


def test_committed_parity_results_are_within_tolerance():
    found = json.loads((huggingface_parity.RESULTS / "parity.json").read_text("utf-8"))
    assert all(max(row["adapter"], row["merged"]) < 1e-4 < row["effect"] for row in found["rows"])
    assert len(found["rows"]) == 5


def test_committed_families_are_within_tolerance():
    found = json.loads(huggingface_parity.FAMILIES.read_text("utf-8"))["rows"]
    names = {row["family"] for row in found}
    assert len(names) == len(found) and names == {*FAMILIES, *ENCODERS, *DECODERS}
    for row in found:
        assert max(row["logits"], row["adapter"], row["merged"], row["gradients"]) < 1e-4
        assert row["back"] and row["cards"] and row["effect"] > 0.1


def test_large_federation_fits_into_memory():
    (record,) = json_lines.read(scaling.RESULTS / scaling.federation.RECORDS)
    assert (record["clients"], record["cohort"]) == (100_000, 1_000)
    assert record["peak_megabytes"] < 6_000 and len(record["train_loss"]) == 2
    assert text_of("scaling_federation") == [scaling.federation_table()]


def test_the_demo_tells_what_lora_in_one_place_reaches():
    found = centralised.best()["records"]
    assert [x["round"] for x in found] == list(range(1, demo().federation.rounds + 1))
    assert readme_demo.in_one_place() in text_of("demo")[0]
