"""The tables of the README, from the result files alone."""

import collections
import json
from collections.abc import Iterable

from experiments.robustness.interruptions import RESULTS
from experiments.robustness.interruptions.trials import Trial
from experiments.tools.markdown import as_table, put
from fedjax_lora.methods import METHODS

PHASES = {
    "loading": "loading",
    "compiling, first round": "compiling or in the first round",
    "rounds": "in later rounds, no checkpoint being written",
    "writing a checkpoint": "in later rounds with a checkpoint half written",
    "writing results": "writing the results",
    "ended": "at the very end",
}


def read(name: str) -> dict[str, Trial]:
    """The trials of a result file."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def table() -> str:
    """What was done, how the run took it, and how often the resumed run left the same bytes."""
    kills, others = read("kills"), read("others")
    many = kills.pop("again and again", None)
    phases = collections.Counter(trial["phase"] for trial in kills.values())
    hit = ", ".join(f"{phases[name]} {words}" for name, words in PHASES.items() if phases[name])
    damaged = [x for name, x in others.items() if name.startswith(("truncated", "bit flipped"))]
    second = [x for name, x in others.items() if name.startswith("second run")]
    lock = others["killed while it held the lock"]
    lines = [[f"`kill -9` at {len(kills)} random moments", hit, _same(kills.values())]]
    if many:
        how = f"killed after rounds {', '.join(map(str, many['rounds']))}"
        lines.append(["one run killed again and again", how, _same([many])])
    for name in ("SIGINT", "SIGTERM"):
        how = _told(others[name], "finishes its round, saves, says how to go on, exit status {}")
        lines.append([name, how, _same([others[name]])])
    for name in ("full disk", "read-only folder"):
        how = _told(others[name], "says so in a sentence, exit status {}")
        lines.append([name, how, _same([others[name]])])
    how = _told(second[0], "the second is refused with a sentence, exit status {}")
    lines.append(["two runs in one folder; the first is then killed", how, _same([lock])])
    told = sum(trial["told"] for trial in damaged)
    what = (
        f"each of the {len(damaged) // 2} files of the newest checkpoint truncated, then with a "
        "bit flipped"
    )
    how = f"damage detected, the checkpoint before is used: {told} of {len(damaged)}"
    lines.append([what, how, _same(damaged)])
    each = read("methods").values()
    rounds = [trial["rounds"] for trial in each]
    how = f"after {min(rounds)} to {max(rounds)} rounds"
    lines.append(
        [f"`kill -9`, once for {len(each)} of the {len(METHODS)} methods", how, _same(each)]
    )
    return as_table(["what happens to a run", "how it ends", "resumed: the same bytes"], lines)


def _told(trial: Trial, how: str) -> str:
    return how.format(trial["status"]) if trial["told"] else "not as it should"


def _same(given: Iterable[Trial]) -> str:
    trials = list(given)
    count = sum(trial["same"] for trial in trials)
    if len(trials) > 1:
        return f"{count} of {len(trials)}"
    return "yes" if count else "no"


def methods_table() -> str:
    """Every method killed in the middle of its rounds."""
    lines = [
        [f"`{name}`", str(trial["rounds"]), str(trial["resumed"]), _same([trial])]
        for name, trial in read("methods").items()
    ]
    columns = ["method", "killed after round", "resumed after round", "the same bytes"]
    return as_table(columns, lines)


def cost() -> str:
    """What a checkpoint costs with MiniLM."""
    parts = [
        f"{name}: {x['arrays_mb']:.1f} MB of arrays, {x['disk_mb']:.1f} MB on disk, the run waits "
        f"{x['wait_ms']:.1f} ms, {x['cpu_ms']:.0f} ms of processor time beside it"
        for name, x in read("cost").items()
    ]
    return "A checkpoint with MiniLM, ranks 4 to 32: " + "; ".join(parts) + ".\n"


if __name__ == "__main__":
    (RESULTS / "table.md").write_text(table())
    (RESULTS / "methods.md").write_text(methods_table())
    put("interruptions", table())
    put("checkpoint_cost", cost())
