"""Runs that take hours: each finished run is one file, and what has a file is not run again."""

import json
import pathlib
import time
from typing import Any

from fedjax_lora import config as configs
from fedjax_lora.config import RunConfig
from fedjax_lora.runs import run


def run_once(path: pathlib.Path, config: RunConfig, assets: Any) -> dict[str, Any]:
    """Run a config unless its result file exists; returns the file's contents."""
    if path.exists():
        return json.loads(path.read_text())
    clock = time.perf_counter()
    print(f"{path.name} ...", flush=True)
    result = run(config, assets=assets)
    saved = configs.to_dict(config)
    saved["data"]["data_dir"] = None  # where the files lay is nobody's business
    record = {"config": saved, "history": result.history, "summary": result.summary}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record) + "\n")
    partial.rename(path)
    print(f"{path.name} done in {time.perf_counter() - clock:.0f} s", flush=True)
    return record
