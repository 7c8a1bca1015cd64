"""Write what a compiler has said as a block of the documentation.

Run it with ``python -m experiments.benchmarks.targets.report``.
"""

import json
import shlex

from experiments.benchmarks.targets import RESULTS
from experiments.tools.markdown import put


def block() -> str:
    """The command, what it printed, and the versions of the compiler."""
    found = json.loads((RESULTS / "explained.json").read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = ["```text", f"$ fedjax-lora run {shlex.join(found['options'])}", *found["lines"], "```"]
    return "\n".join([*lines, "", f"(With {versions}.)", ""])


if __name__ == "__main__":
    put("targets", block())
