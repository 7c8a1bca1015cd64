"""What the README says of a model of one's own.

Run it with ``python -m experiments.tools.readme_own_model``.
"""

import json

from experiments.examples.own_model import RESULTS
from experiments.tools.markdown import put


def sentence() -> str:
    """Accuracies, from the result file."""
    found = json.loads((RESULTS / "own_model.json").read_text(encoding="utf-8"))
    upright, before, after = (
        f"{100 * found[name]:.1f} %"
        for name in ("base_on_upright", "base_on_turned", "adapted_on_turned")
    )
    return (
        f"The base is right on {upright} of upright test digits and on {before} of digits turned "
        f"by a quarter; after {found['rounds']} rounds with clients that have turned ones, on "
        f"{after} of these. It is one seed, on which the steps per round were chosen too: it shows "
        "that the loop works, not how well.\n"
    )


if __name__ == "__main__":
    put("own_model", sentence())
