"""A contender's process: ``python -m experiments.benchmarks.end_to_end.contend NAME FOLDER``."""

import json
import pathlib
import sys

from experiments.benchmarks.end_to_end import work as files


def main(name: str, folder: pathlib.Path) -> None:
    """Run the experiment whose work is in the folder, and write ``told.json`` there."""
    work = files.load(folder)
    if name == "peft":
        from experiments.benchmarks.end_to_end import peft_loop

        told = peft_loop.run(work)
    else:
        from experiments.benchmarks.end_to_end import flower

        told = flower.run(work, workers=int(name.removeprefix("flower-")))
    (folder / "told.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]))
