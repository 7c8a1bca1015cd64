"""Tables of the interrupted runs, from the result files alone."""

import collections
import json
from collections.abc import Iterable, Iterator

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
    """Tabulate the interruptions, how the runs ended, and how many resumed to the same bytes."""
    lines = [
        *_kill_rows(read("kills")),
        *_other_rows(read("others")),
        _method_row(),
        *_command_rows(read("commands")),
    ]
    return as_table(["what happens to a run", "how it ends", "resumed: the same bytes"], lines)


def _kill_rows(kills: dict[str, Trial]) -> Iterator[list[str]]:
    repeated = kills.pop("again and again", None)
    phases = collections.Counter(trial["phase"] for trial in kills.values())
    hit = ", ".join(f"{phases[name]} {words}" for name, words in PHASES.items() if phases[name])
    yield [f"`kill -9` at {len(kills)} random moments", hit, _same(kills.values())]
    if repeated:
        how = f"killed after rounds {', '.join(map(str, repeated['rounds']))}"
        yield ["one run killed again and again", how, _same([repeated])]


ENDS = {
    "SIGINT": "finishes its round, saves, says how to go on, exit status {}",
    "SIGTERM": "finishes its round, saves, says how to go on, exit status {}",
    "full disk": "says so in a sentence, exit status {}",
    "read-only folder": "says so in a sentence, exit status {}",
}


def _other_rows(others: dict[str, Trial]) -> Iterator[list[str]]:
    for name, how in ENDS.items():
        yield [name, _reported(others[name], how), _same([others[name]])]
    second = next(trial for name, trial in others.items() if name.startswith("second run"))
    how = _reported(second, "the second is refused with a sentence, exit status {}")
    lock = others["killed while it held the lock"]
    yield ["two runs in one folder; the first is then killed", how, _same([lock])]
    damaged = [x for name, x in others.items() if name.startswith(("truncated", "bit flipped"))]
    detected = sum(trial["reported"] for trial in damaged)
    what = f"each of the {len(damaged) // 2} files of the newest checkpoint truncated, then with a "
    how = f"damage detected, the checkpoint before is used: {detected} of {len(damaged)}"
    yield [what + "bit flipped", how, _same(damaged)]


def _method_row() -> list[str]:
    trials = read("methods").values()
    rounds = [trial["rounds"] for trial in trials]
    what = f"`kill -9`, once for {len(trials)} of the {len(METHODS)} methods"
    return [what, f"after {min(rounds)} to {max(rounds)} rounds", _same(trials)]


COMMAND_ENDS = {
    "SIGKILL": ("killed", "every file that exists is complete"),
    "SIGINT": (
        "interrupted",
        "one sentence, exit status 130; every file that exists is complete",
    ),
    "full disk": (
        "on a full disk",
        "one sentence, exit status 2; every file that exists is complete",
    ),
}


def _command_rows(found: dict[str, Trial]) -> Iterator[list[str]]:
    for end, (what, how) in COMMAND_ENDS.items():
        chosen = {name.partition(" ")[0]: x for name, x in found.items() if name.endswith(end)}
        good = sum(trial["reported"] and trial["whole_files"] for trial in chosen.values())
        names = ", ".join(f"`{name}`" for name in chosen)
        yield [f"{names} {what}", f"{how}: {good} of {len(chosen)}", _same(chosen.values())]


def _reported(trial: Trial, how: str) -> str:
    return how.format(trial["status"]) if trial["reported"] else "not as it should"


def _same(chosen: Iterable[Trial]) -> str:
    trials = list(chosen)
    count = sum(trial["same"] for trial in trials)
    if len(trials) > 1:
        return f"{count} of {len(trials)}"
    return "yes" if count else "no"


def methods_table() -> str:
    """Tabulate the trials of every method."""
    lines = [
        [f"`{name}`", str(trial["rounds"]), str(trial["resumed"]), _same([trial])]
        for name, trial in read("methods").items()
    ]
    columns = ["method", "killed after round", "resumed after round", "the same bytes"]
    return as_table(columns, lines)


def cost() -> str:
    """Describe the cost of a checkpoint with MiniLM."""
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
