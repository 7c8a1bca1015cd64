"""Tables of the federations of real processes, from the result files alone."""

import json
from collections.abc import Iterator
from typing import Any

from experiments.robustness.deployment import RESULTS, faults
from experiments.tools.markdown import as_table, put

Trial = dict[str, Any]


def read(part: str) -> dict[str, Trial]:
    """The trials of a part; none if it has not been run."""
    path = RESULTS / f"{part}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def table() -> str:
    """All tables that there are results for."""
    return "\n".join(text for part in (_runs, _kills) if (text := part()))


def _runs() -> str:
    """Seconds and bytes of the federations that nothing happened to."""
    rows = [*_parity_rows(), *_more_rows()]
    if not rows:
        return ""
    names = ["federation", "sites", "rounds", "first / later rounds, s", "up, kB (counted)"]
    names += ["down, kB (counted)", "other bytes", "same bytes as in one process", "load"]
    return as_table(names, rows)


def _parity_rows() -> Iterator[list[str]]:
    for method, trial in read("parity").items():
        ranks = ", ".join(map(str, trial["ranks"]))
        yield _row(f"`{method}`, ranks {ranks}", 3, trial, "yes" if trial["same_bytes"] else "no")


def _more_rows() -> Iterator[list[str]]:
    for name, trial in read("scale").items():
        server, site = (trial[f"{who}_memory"] / 1e6 for who in ("server", "site"))
        memory = f"(memory: server {server:.0f} MB, a site {site:.0f} MB)"
        yield _row(f"`hlora`, {name} {memory}", 20, trial, "")
    for name, trial in read("language").items():
        scores = " to ".join(f"{trial['perplexity'][k]:.1f}" for k in (0, -1))
        yield _row(f"`hlora`, {name}, perplexity {scores}", 3, trial, "")


def _row(name: str, sites: int, trial: Trial, same: str) -> list[str]:
    def kilobytes(way: str) -> str:
        return f"{trial[way] / 1e3:.1f} ({trial[f'counted_{way}'] / 1e3:.1f})"

    seconds = f"{trial['first_seconds']:.1f} / {trial['round_seconds']:.1f}"
    return [
        name,
        str(sites),
        str(trial["rounds"]),
        seconds,
        kilobytes("up"),
        kilobytes("down"),
        str(trial["overhead"]),
        same,
        str(trial["load"]),
    ]


def _kills() -> str:
    """What became of federations in which a process was killed."""
    trials = read("kills")
    phases = {"site": faults.SITE, "server": faults.SERVER}
    rows = [
        [f"{who}: {words}", *_end(who, trials[f"{who} {phase}"])]
        for who, names in phases.items()
        for phase, words in names.items()
        if f"{who} {phase}" in trials
    ]
    names = ["killed when", "what follows", "silent, by round", "same bytes as in one process"]
    return as_table(names, rows) if rows else ""


def _end(who: str, trial: Trial) -> list[str]:
    what = "the run goes on without it"
    if trial["told"]:
        what = "the run ends, and is played again with it"
    if who == "server":
        what = "it is started again, and the run resumed"
    silent = "; ".join(", ".join(map(str, ids)) or "nobody" for ids in trial["silent"])
    return [what, silent, "yes" if trial["same_bytes"] else "no"]


def main() -> None:
    """Write the tables, and the block of the page on deployment."""
    text = table()
    (RESULTS / "table.md").write_text(text, encoding="utf-8")
    put("deployment", text)


if __name__ == "__main__":
    main()
