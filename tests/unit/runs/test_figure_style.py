"""Figure style: colours differ under colour blindness, intervals are clipped, labels are set."""

import itertools

import matplotlib.colors
import numpy as np
import pytest
import scipy.stats
from matplotlib.figure import Figure

from fedjax_lora import methods
from fedjax_lora.runs import figure_style
from fedjax_lora.runs.figure_style import METHOD_STYLES, draw_seeds, method_styles

# Machado, Oliveira & Fernandes (2009), severity 1, for linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def oklab(colour: str, vision: str) -> np.ndarray:
    """OKLab coordinates (Ottosson, 2020) of a colour as seen with a vision."""
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(VISIONS[vision]) @ linear, 0, 1)
    to_lms = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.array(to_lab) @ np.cbrt(np.array(to_lms) @ seen)


def test_every_method_has_a_style_of_its_own():
    assert METHOD_STYLES.keys() == methods.METHODS.keys()
    for field in ("label", "colour"):
        assert len({getattr(style, field) for style in METHOD_STYLES.values()}) == len(
            METHOD_STYLES
        )


@pytest.mark.parametrize("vision", VISIONS)
def test_methods_differ_for_colour_blind_readers(vision):
    """Colours of one kind of line by 0.08 in OKLab; the others by 0.05 and line and marker."""
    for one, other in itertools.combinations(METHOD_STYLES.values(), 2):
        distance = np.linalg.norm(oklab(one.colour, vision) - oklab(other.colour, vision))
        if one.dashes == other.dashes:
            assert distance > 0.08, (one, other)
        else:
            assert distance > 0.05, (one, other)
            assert one.marker != other.marker


def test_simulated_colour_blindness_confuses_known_colours():
    """Red and green of equal lightness are close for a deuteranope; black and white never."""
    apart = {v: np.linalg.norm(oklab("#B05A00", v) - oklab("#6B7B00", v)) for v in VISIONS}
    assert apart["deuteranopia"] < 0.4 * apart["normal"]
    assert all(np.linalg.norm(oklab("white", v) - oklab("black", v)) > 0.99 for v in VISIONS)


def test_variants_of_a_method_share_its_hue_and_differ_in_line_and_marker():
    specs = ["hlora", "fed_plora(selection='prefix')", "fed_plora", "no_such_method"]
    hlora, first, second, unknown = method_styles(specs)
    assert first["color"] == METHOD_STYLES["fed_plora"].colour
    hues = [matplotlib.colors.rgb_to_hsv(matplotlib.colors.to_rgb(s["color"]))[0]
            for s in (first, second)]  # fmt: skip
    assert hues[0] == pytest.approx(hues[1], abs=0.01)
    for name in ("color", "ls", "marker"):
        assert first[name] != second[name]
    assert len({s["color"] for s in (hlora, first, second, unknown)}) == 4


def drawn(values, **options):
    axes = Figure().subplots()
    draw_seeds(axes, [1, 2], values, method_styles(["hlora"])[0], label="x", **options)
    return axes


def test_few_seeds_are_drawn_singly_and_many_as_a_clipped_interval():
    few = drawn([[0.1, 0.9], [0.2, 1.0], [0.3, 0.8]])
    assert not few.collections
    assert [line.get_ydata().tolist() for line in few.lines[1:]] == [
        [0.1, 0.9], [0.2, 1.0], [0.3, 0.8],
    ]  # fmt: skip
    values = [[0.4, 0.99], [0.6, 1.0], [0.5, 0.6], [0.3, 1.0]]
    many = drawn(values, bounds=(0, 1))
    (band,) = many.collections
    assert len(many.lines) == 1
    reached = band.get_datalim(many.transData).intervaly
    interval = scipy.stats.ttest_1samp([v[0] for v in values], 0).confidence_interval()
    assert reached[0] == pytest.approx(interval.low)
    assert reached[1] == 1.0
    bars = drawn(values, bounds=(0, 1), shift=0.5).collections[0]
    (low, high), _ = (segment[:, 1] for segment in bars.get_segments())
    assert (low, high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert bars.get_segments()[0][0, 0] == 1.5
    assert drawn([[0.1, 0.2]]).lines[0].get_label() == "x"


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ([1], "one seed"),
        ([2, 3], "thick lines are means over 2 to 3 seeds, thin lines single runs"),
        ([5], "lines are means over 5 seeds with 95 % intervals of the mean"),
    ],
)
def test_captions_describe_runs_or_intervals(counts, text):
    assert figure_style.seeds_caption(counts) == text
