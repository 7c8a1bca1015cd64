"""The words that name a target, and the sheet of chips behind them."""

import subprocess
import sys

import pytest

from fedjax_lora.core.chips import CHIPS, chip_of_kind, parse_target
from fedjax_lora.core.errors import InputError


@pytest.mark.parametrize(
    ("words", "spec", "shown"),
    [
        ("v5e:4x4", ("v5e", "4x4", 16), "v5e:4x4"),
        ("v5e", ("v5e", "1x1", 1), "v5e:1x1"),
        ("v5p:2x2x1", ("v5p", "2x2x1", 4), "v5p:2x2x1"),
        ("v6e:16x16", ("v6e", "16x16", 256), "v6e:16x16"),
        ("h100:4", ("h100", "1x1x4", 4), "h100:4"),
        ("h200", ("h200", "1x1x1", 1), "h200:1"),
        ("h200:16", ("h200", "1x2x8", 16), "h200:16"),
    ],
)
def test_target_names_are_parsed(words, spec, shown):
    assert tuple(parse_target(words)) == spec and str(parse_target(words)) == shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("v5", r"Unknown target 'v5'; did you mean 'v5\w'\? Known: h100, h200, v5e, v5p, v6e\."),
        ("", "Unknown target ''"),
        ("V5E:4x4", "Unknown target 'V5E'"),
        ("v5e:3x3", "names no slice of v5e; known are v5e:1x1, .*v5e:16x16"),
        ("v5p:4x4", "names no slice of v5p; known are v5p:1x1x1"),
        ("v5e:4X4", "names no slice"),
        ("h100:0", "names no number of GPUs; write h100:1 to h100:8, or a multiple of 8"),
        ("h100:12", "names no number"),
        ("h100:1x1x4", "names no number"),
        ("h100:-1", "names no number"),
        ("h100:" + 9 * "8", "names no number"),
    ],
)
def test_unknown_target_is_refused_with_the_known_ones(words, says):
    with pytest.raises(InputError, match=says):
        parse_target(words)


@pytest.mark.parametrize("name", CHIPS)
def test_clock_rates_implied_by_the_chip_table_are_plausible(name):
    """Clocks follow from peak and matrix units: between 1 and 2 GHz for every TPU of the sheet."""
    chip = CHIPS[name]
    assert chip_of_kind(chip.kind) is chip
    if chip.platform == "tpu":
        assert 1e9 < chip.clock < 2e9 and chip.topologies
    else:
        assert chip.memory < chip.device_memory and chip.cores and chip.bandwidth > 1e12


def test_targets_are_parsed_without_importing_jax():
    code = (
        "import sys; from fedjax_lora.core.chips import parse_target; parse_target('v5e:2x2'); "
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
