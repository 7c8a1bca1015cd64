"""The sentence about the demo's result: ``python -m experiments.tools.readme_demo``."""

import json
import pathlib

from experiments.tools.markdown import put

RESULTS = pathlib.Path(__file__).parents[1] / "studies" / "demo" / "results"


def sentence() -> str:
    """Accuracy, the majority class's, rounds and time, from ``summary.json``."""
    s = json.loads((RESULTS / "summary.json").read_text())
    return (
        f"On 2 CPU cores: {100 * s['accuracy']:.1f} % test accuracy after {s['rounds']} rounds of "
        f"{s['method']} (always the most frequent class: {100 * s['majority_accuracy']:.1f} %) in "
        f"{s['seconds']:.0f} s, compilation included, with Python {s['python']} and jax "
        f"{s['packages']['jax']}.\n"
    )


if __name__ == "__main__":
    put("demo", sentence())
