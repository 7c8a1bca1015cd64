"""The README's claims and tables of the rerun of Fed-PLoRA, from the result files alone."""

import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.drawing import curves, finished, legend, sheet
from experiments.fed_plora import MAIN, MEASURED, SELECTIONS, STUDY, TASKS
from experiments.markdown import as_table
from experiments.study import Results
from experiments.telling import Report, picture, publish
from experiments.verdicts import Claim, higher, measured, untestable
from fedjax_lora.compare.queue import Record

Rounds = list[dict[str, Any]]

NOISE = "noise.png"

EXACT = 1e-3
"""Noise relative to the round's ideal update that counts as none."""

RATIOS = {"initialization": "init_ratio", "aggregation": "agg_ratio"}


def claims() -> list[Claim]:
    """All of the paper's claims."""
    return [*_glue(), *_similarity(), *_noise(), *_figures(), *_cost(), *_language_models()]


def mean_of(name: str) -> Callable[[Rounds], float]:
    """The mean over the rounds, without the first, in which every method begins at zero."""
    return lambda rounds: float(np.mean([h[name] for h in rounds[1:]]))


_measured = functools.partial(measured, "measured", task=TASKS[0])


def _glue() -> Iterator[Claim]:
    for other in ("FLoRA", "FlexLoRA", "HetLoRA"):
        yield Claim(
            f"Fed-PLoRA ends above {other} (mean over the GLUE tasks)",
            "+39 % relative on average over GLUE and the baselines",
            "glue",
            higher("glue", "Fed-PLoRA", other),
        )


def _similarity() -> Iterator[Claim]:
    grown = lambda name: lambda rounds: rounds[-1][name] - rounds[0][name]  # noqa: E731
    yield Claim(
        "modules of the same index grow alike on different clients (Fig. 2)",
        "figure, values not available",
        "measured",
        _measured(
            ["Fed-PLoRA"],
            lambda x: x > 0,
            lambda x: f"cosine changes by {x:+.3f} from the first to the last round",
            grown("same_cosine"),
        ),
        NOISE,
    )
    yield Claim(
        "modules of different index stay unlike (Fig. 2): cosine below 0.1",
        "figure, values not available",
        "measured",
        _measured(
            ["Fed-PLoRA"],
            lambda x: x < 0.1,
            lambda x: f"{x:.3f} at most",
            lambda rounds: max(abs(h["cross_cosine"]) for h in rounds),
        ),
        NOISE,
    )


def _noise() -> Iterator[Claim]:
    for arm, kind, none, published in (
        ("Fed-PLoRA", "initialization", True, "0"),
        ("HetLoRA", "initialization", False, "truncation"),
        ("FlexLoRA", "initialization", False, "truncation after the SVD"),
        ("FLoRA", "initialization", False, "large: adapters start afresh"),
        ("FLoRA", "aggregation", True, "0"),
    ):
        says = f"no {kind} noise (below" if none else f"{kind} noise (above"
        yield Claim(
            f"{arm} has {says} {EXACT:g} of the ideal update)",
            published,
            "measured",
            _measured(
                [arm],
                (lambda x: x < EXACT) if none else (lambda x: x > EXACT),
                lambda x: f"{x:.2g}",
                mean_of(RATIOS[kind]),
            ),
            NOISE,
        )


def _figures() -> Iterator[Claim]:
    yield Claim(
        "PLoRA and its rank-stabilised variant with equal ranks (Fig. 3)",
        "not available",
        "fig3",
        untestable("which of the two the paper finds better is not known; values below"),
    )
    for other in SELECTIONS[1:]:
        yield Claim(
            f"random selection is above {other} selection (Fig. 4, whose rules are not known)",
            "not available",
            "fig4",
            higher("fig4", "random", other),
        )


def _cost() -> Iterator[Claim]:
    ratio = lambda x, y: f"{x / y:.3f} of FlexLoRA's"  # noqa: E731
    for says, name, holds in (
        ("Fed-PLoRA's uplink is within 2 % of FlexLoRA's", "up_bytes", lambda x, y: x <= 1.02 * y),
        ("Fed-PLoRA's downlink is above FlexLoRA's", "down_bytes", lambda x, y: x > 1.02 * y),
        (
            "Fed-PLoRA's clients need at most 2 % more memory than FlexLoRA's",
            "client_bytes_mean",
            lambda x, y: x <= 1.02 * y,
        ),
    ):
        arms = ["Fed-PLoRA", "FlexLoRA"]
        yield Claim(
            says,
            "Fig. 5, values not available",
            "measured",
            _measured(arms, holds, ratio, mean_of(name)),
            "runs",
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


def noise_table(results: Results) -> str:
    """What a round loses and costs, and how it changes over the rounds."""
    runs = {arm: list(results.runs("measured", arm, TASKS[0]).values()) for arm in MAIN}
    lines = [_noise_row(arm, of_arm) for arm, of_arm in runs.items() if of_arm]
    if not lines:
        return ""
    says = (
        f"**measured**: noise relative to the ideal update of the round, on {TASKS[0]}, "
        f"{MEASURED['federation.rounds']} rounds, {results.parts['measured'].backbone()}, means "
        "over seeds; the server's time is the median over the rounds after the first.\n"
    )
    drawing = picture(results, "noise", "noise and similarity over the rounds")
    return "\n".join([says, as_table(NOISE_COLUMNS, lines), drawing])


NOISE_COLUMNS = (
    "arm",
    "initialization noise, rounds 2 / last",
    "aggregation noise, rounds 2 / last",
    "same-index cosine, first / last",
    "cross-index",
    "MB up",
    "MB down",
    "client MB",
    "server ms",
)


def _noise_row(arm: str, runs: list[Record]) -> list[str]:
    histories = [run["history"] for run in runs]
    server = np.mean([run["summary"]["server_seconds"] for run in runs])
    at = lambda name, n: _number([h[n][name] for h in histories])  # noqa: E731
    mean = lambda name: np.mean([mean_of(name)(h) for h in histories])  # noqa: E731
    return [
        arm,
        f"{at('init_ratio', 1)} / {at('init_ratio', -1)}",
        f"{at('agg_ratio', 1)} / {at('agg_ratio', -1)}",
        f"{at('same_cosine', 0)} / {at('same_cosine', -1)}",
        at("cross_cosine", -1),
        f"{mean('up_bytes') / 1e6:.2f}",
        f"{mean('down_bytes') / 1e6:.2f}",
        f"{mean('client_bytes_mean') / 1e6:.1f}",
        f"{1000 * server:.0f}",
    ]


PANELS = {
    "init_ratio": "initialization noise / ideal update",
    "agg_ratio": "aggregation noise / ideal update",
    "same_cosine": "cosine of same-index modules, across clients",
    "cross_cosine": "cosine of modules of different index",
}


def figures(results: Results) -> dict[str, Figure]:
    """Both noises and the similarities (the paper's Fig. 2) over the rounds."""
    part = results.parts["measured"]
    arms = finished(results, part, TASKS[0])
    if not arms:
        return {}
    figure, panels = sheet(len(PANELS), 2)
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        curves(axes, part, arms, operator.itemgetter(name))
        axes.set(title=title, xlabel="round")
        if name in RATIOS.values():
            axes.set_yscale("symlog", linthresh=EXACT)
    legend(figure, panels)
    return {"noise": figure}


def _number(values: list[float | None]) -> str:
    """A mean over seeds; what is not defined in any is a dash."""
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.2g}" if known else "-"


REPORT = Report(STUDY, claims(), noise_table, figures)

if __name__ == "__main__":
    publish(REPORT)
