"""What the README says of broken inputs: ``python -m experiments.malformed.report``."""

import json

from experiments.malformed import RESULTS
from experiments.markdown import put


def sentence() -> str:
    """How many were refused, the slowest and the largest, from ``summary.json``."""
    s = json.loads((RESULTS / "summary.json").read_text())
    refused = s["cases"] - len(s["not refused in one sentence"])
    damaged = s["random damage"]
    return (
        f"Of {s['cases']} broken inputs ({', '.join(s['families'])}), {refused} end with exit "
        f"status 2 and one sentence; the slowest takes {s['slowest']['seconds']:.1f} s, the "
        f"largest {s['largest']['megabytes']:.0f} MB. Of {sum(damaged.values())} files with a few "
        f"random bytes changed, {damaged['refused']} are refused like that, and "
        f"{damaged['accepted']} are still read\n"
        "([list](experiments/malformed/results/summary.json), "
        "`python -m experiments.malformed.run`).\n"
    )


if __name__ == "__main__":
    put("malformed", sentence())
