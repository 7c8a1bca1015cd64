"""Results of zero padding are labelled with the treatment of components without an owner."""

import re

import pytest

from experiments.papers import byun_lee, fed_plora_vs_flexlora
from experiments.studies import ag_news, noise
from experiments.studies.noise import report
from experiments.tools.study import distinct
from fedjax_lora.runs.figure_style import method_label


@pytest.mark.parametrize(
    "arms",
    [ag_news.METHODS, fed_plora_vs_flexlora.METHODS],
    ids=["ag_news", "fed_plora_vs_flexlora"],
)
def test_arm_label_follows_from_its_method(arms):
    named = {name: spec for name, spec in arms.items() if "zero padding" in name}
    assert named
    for name, spec in named.items():
        assert name.startswith(method_label(spec))


def test_no_arm_is_labelled_plain_zero_padding():
    for part in byun_lee.STUDY.parts("small", {}):
        for arm in part.arms:
            assert not re.search(r"zero padding(?! \(unowned kept\))", arm), arm


def test_both_interpretations_are_planned_and_otherwise_equal():
    """28 runs more: four rates on two tasks, and five seeds on two tasks with two mixes."""
    study = fed_plora_vs_flexlora
    cells = distinct(study.STUDY.parts("small", {}))
    literal = "zero_padding(empty='zero')"
    new = [c for c in cells if c.config.federation.method == literal]
    kept = [c for c in cells if c.config.federation.method == "zero_padding"]
    assert len(new) == len(kept) == 4 * 2 + 5 * 2 * 2


def test_recorded_methods_are_named_with_their_former_defaults():
    records = report.records()
    assert set(noise.METHODS) == set(records)
    assert "fedrora(largest='signed', first=0.0)" in records
    rows = [line.split(" | ")[0].strip("| ") for line in report.table().splitlines()[2:]]
    assert "`zero_padding` (unowned kept)" in rows
    assert "`lora_fair(penalty=0.01, relative=False)` (rank 32)" in rows
