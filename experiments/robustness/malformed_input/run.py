"""Run all malformed inputs; see `experiments.robustness.malformed_input`."""

import collections
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import tyro

from experiments.robustness.malformed_input import RESULTS, cases, damage
from experiments.robustness.malformed_input.case import Case, write_case
from experiments.robustness.malformed_input.judge import Verdict, judge
from experiments.tools import json_lines

DAMAGED = 60  # versions of every file
Judged = tuple[Case, Verdict]


def verdicts(chosen: Iterable[Case], place: pathlib.Path) -> Iterator[Judged]:
    """Judge each case in a new folder."""
    for number, case in enumerate(chosen):
        root = place / str(number)
        yield case, judge(write_case(case, root), root / "out")
        shutil.rmtree(root)


def is_unclear(judged: Judged) -> bool:
    """Whether a case did not end with status 2, a sentence on its defect and no output folder."""
    case, verdict = judged
    clear = verdict.outcome == "refused" and verdict.lines == 1
    return verdict.left or not clear or not re.search(case.says, verdict.sentence)


def summarise(malformed: list[Judged], damaged: list[Judged]) -> dict[str, Any]:
    """Count the outcomes; lists the worst cases and the failures."""

    def worst(what: str) -> dict[str, Any]:
        case, verdict = max(malformed + damaged, key=lambda one: getattr(one[1], what))
        return {"case": f"{case.family}: {case.name}", what: round(getattr(verdict, what), 2)}

    return {
        "cases": len(malformed),
        "families": dict(collections.Counter(case.family for case, _ in malformed)),
        "not refused in one sentence": [
            f"{case.family}: {case.name}: {verdict.outcome}: {verdict.sentence}"
            for case, verdict in filter(is_unclear, malformed)
        ],
        "random damage": dict(collections.Counter(verdict.outcome for _, verdict in damaged)),
        "slowest": worst("seconds"),
        "largest": worst("megabytes"),
    }


def recorded(chosen: Iterable[Case], place: pathlib.Path, file: pathlib.Path) -> list[Judged]:
    """Judge the cases that are not in a JSON-lines file yet, and append their verdicts to it."""
    known, judged = json_lines.by_name(file), []
    for case in chosen:
        name = f"{case.family}: {case.name}"
        if name not in known:
            ((_, verdict),) = verdicts([case], place)
            known[name] = {"name": name, **verdict._asdict()}
            json_lines.append(file, known[name])
        values = {field: known[name][field] for field in Verdict._fields}
        judged.append((case, Verdict(**values)))
    return judged


def main(file: pathlib.Path | None = None) -> None:
    """Judge all cases and write the summary.

    Args:
      file: JSON-lines file of the verdicts; what it holds is not judged again. By default all cases
        are judged.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        file = place / "verdicts.jsonl" if file is None else file
        os.environ["FEDJAX_LORA_CACHE"] = str(place / "cache")
        # The first call imports everything, which must not count as time or memory of a case.
        list(verdicts([Case("well-formed", "everything")], place))
        malformed = recorded(cases(), place, file)
        damaged = recorded(damage.cases(each=DAMAGED), place, file)
    summary = summarise(malformed, damaged)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
