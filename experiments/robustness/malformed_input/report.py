"""Write the README's sentence on malformed inputs.

Run it with ``python -m experiments.robustness.malformed_input.report``.
"""

import json
import textwrap

from experiments.robustness.malformed_input import RESULTS
from experiments.tools.markdown import put


def sentence() -> str:
    """Number of refused inputs, longest time and largest memory, from ``summary.json``."""
    s = json.loads((RESULTS / "summary.json").read_text())
    refused = s["cases"] - len(s["not refused in one sentence"])
    damaged = s["random damage"]
    text = (
        f"Of {s['cases']} broken inputs ({', '.join(s['families'])}), {refused} are refused with "
        f"exit status 2 and nothing written, in at most {s['slowest']['seconds']:.1f} s and "
        f"{s['largest']['megabytes']:.0f} MB; of {sum(damaged.values())} files with a few bytes "
        f"changed at random, {damaged['refused']} are, and {damaged['accepted']} can be read all "
        "the same (by `python -m experiments.robustness.malformed_input.run`)."
    )
    return textwrap.fill(text, 100) + "\n"


if __name__ == "__main__":
    put("malformed_input", sentence())
