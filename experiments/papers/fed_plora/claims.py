"""The claims of Fed-PLoRA's paper."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from experiments.papers.fed_plora import TASKS
from experiments.papers.fed_plora.small_cases import bound, equal_ranks
from experiments.tools.claims import (
    NOT_RUN,
    Claim,
    Finding,
    higher,
    is_as_large,
    last,
    measured,
    progress,
    untestable,
    values,
)
from experiments.tools.study import RUNS, Results
from fedjax_lora.runs.sweep.intervals import estimate

Rounds = list[dict[str, Any]]

NOISE = "noise.png"

EXACT = 1e-3
"""Noise relative to the round's ideal update below which there is none."""

LOW = 0.1
"""A mean cosine below this is low; the paper shows its values in a figure only."""

RATIOS = {"initialization": "init_ratio", "aggregation": "agg_ratio"}


def claims() -> list[Claim]:
    """The claims of the paper."""
    return [*_glue(), *_similarity(), *_noise(), *_figures(), *_cost(), *_language_models()]


def mean_of(name: str) -> Callable[[Rounds], float]:
    """Return a function that averages over the rounds after the first, which starts at zero."""
    return lambda rounds: float(np.mean([h[name] for h in rounds[1:]]))


_measured = functools.partial(measured, "measured", task=TASKS[0])


def _glue() -> Iterator[Claim]:
    for other in BASELINES:
        yield Claim(
            f"Fed-PLoRA ends above {other} (mean over the GLUE tasks)",
            "figure and tables not available",
            "glue",
            higher("glue", "Fed-PLoRA", other),
        )
    yield Claim(
        "it is above them by 39 % of their accuracy (mean over the three and the GLUE tasks)",
        "+39 %",
        "glue",
        gain,
    )
    yield Claim(
        "it is 54 % above FLoRA on CoLA, where that is near chance",
        "+54 %",
        "",
        untestable("CoLA is not among the tasks"),
    )


BASELINES = ("FLoRA", "FlexLoRA", "HetLoRA")
GAIN = 0.39


def gain(results: Results) -> Finding:
    """Fed-PLoRA's relative gain over its baselines, averaged over baselines and tasks by seed."""
    tasks, arms = results.parts["glue"].tasks, ("Fed-PLoRA", *BASELINES)
    accuracy = values(results, "glue", arms, tasks, last)
    if accuracy is None:
        return Finding(progress(results, "glue", arms, tasks), NOT_RUN)
    found = estimate((accuracy[0] / accuracy[1:] - 1).mean(axis=(0, 1)).tolist())
    ours = f"{100 * found.mean:+.1f} % [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return Finding(ours, is_as_large(found, GAIN))


def _similarity() -> Iterator[Claim]:
    grown = lambda rounds: rounds[-1]["same_cosine"] - rounds[0]["same_cosine"]  # noqa: E731
    cross = lambda rounds: max(abs(h["cross_cosine"]) for h in rounds)  # noqa: E731
    for says, value, holds, text in (
        (
            "modules of the same index grow alike on different clients (Fig. 2)",
            grown,
            lambda x: x > 0,
            "their cosine changes by {0:+.3f} ± {1:.3f} from the first to the last round",
        ),
        (
            f"the cosine of modules of different index stays low (below {LOW:g}, Fig. 2)",
            cross,
            lambda x: x < LOW,
            "it is at most {0:.3f} ± {1:.3f} in any round",
        ),
    ):
        yield Claim(
            says,
            "figure, values not available",
            "measured",
            _measured(["Fed-PLoRA"], value, holds, text),
            NOISE,
        )


def _noise() -> Iterator[Claim]:
    for arm, kind, none, published in (
        ("Fed-PLoRA", "initialization", True, "0"),
        ("FedIT, rank 32 for all", "initialization", True, "0"),
        ("HetLoRA", "initialization", False, "truncation"),
        ("FlexLoRA", "initialization", False, "truncation after the SVD"),
        ("HetLoRA", "aggregation", False, "bias"),
        ("FLoRA", "aggregation", True, "0"),
    ):
        says = f"no {kind} noise (below" if none else f"{kind} noise (above"
        yield Claim(
            f"{arm} has {says} {EXACT:g} of the ideal update)",
            published,
            "measured",
            _measured(
                [arm],
                mean_of(RATIOS[kind]),
                (lambda x: x < EXACT) if none else (lambda x: x > EXACT),
                "{0:.2g} ± {1:.1g}",
            ),
            NOISE,
        )
    yield Claim(
        "FLoRA has large initialization noise",
        "adapters start afresh",
        "",
        untestable("of effective weights it is 0; what else is meant is not public"),
    )
    yield Claim(
        "Fed-PLoRA's aggregation noise is at most the mean distance of the modules' factors from "
        "their means",
        "a bound",
        "small_cases.py",
        bound,
    )
    yield Claim("with equal ranks it is FedIT", "exactly", "small_cases.py", equal_ranks)


def _figures() -> Iterator[Claim]:
    yield Claim(
        "PLoRA and its rank-stabilised variant with equal ranks (Fig. 3)",
        "not available",
        "fig3",
        untestable("which of the two the paper finds better is not known; values below"),
    )
    yield Claim(
        "other rules to select modules (Fig. 4)",
        "not available",
        "fig4",
        untestable("which rules, and how they compare, is not known; values below"),
    )


def _cost() -> Iterator[Claim]:
    arms = ["Fed-PLoRA", "FlexLoRA"]
    for says, name, holds in (
        ("uplink is within 2 % of", "up_bytes", lambda ratio: ratio <= 1.02),
        ("downlink is above", "down_bytes", lambda ratio: ratio > 1.02),
        (
            "clients need within 2 % of the memory of",
            "client_bytes_mean",
            lambda ratio: ratio <= 1.02,
        ),
    ):
        mean = mean_of(name)
        yield Claim(
            f"Fed-PLoRA's {says} FlexLoRA's",
            "Fig. 5, values not available",
            "measured",
            _measured(
                arms,
                lambda ours, theirs, mean=mean: mean(ours) / mean(theirs),
                holds,
                "{0:.3f} of FlexLoRA's",
            ),
            RUNS,
        )
    yield Claim(
        "Fed-PLoRA takes no more time on a client",
        "FedRoRA's table: 68.9 s a round against FlexLoRA's 47.6",
        "",
        untestable("folding is simulated as modules that act and are not trained"),
    )


def _language_models() -> Iterator[Claim]:
    for says, published in (
        ("Natural Instructions, Llama-1B, FedIT", "66.88 IID, 61.28 non-IID"),
        ("Rouge-L on Natural Instructions above all baselines", "+31 % relative"),
        ("finance tasks above all baselines", "+13 % relative"),
    ):
        yield Claim(says, published, "", untestable("needs a language model and its data"))
