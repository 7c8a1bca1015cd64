"""Process of a contender: ``python -m experiments.benchmarks.end_to_end.contend NAME FOLDER``."""

import json
import pathlib
import sys

from experiments.benchmarks.end_to_end import work as files


def main(name: str, folder: pathlib.Path) -> None:
    """Run the experiment whose work is in the folder and write ``result.json`` there."""
    work = files.load(folder)
    if name == "peft":
        from experiments.benchmarks.end_to_end import peft_loop

        result = peft_loop.run(work)
    else:
        from experiments.benchmarks.end_to_end import flower

        result = flower.run(work, workers=int(name.removeprefix("flower-")))
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]))
