"""What is imported before the first round of a run."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[3]
SCRIPT = """
import json, sys
from fedjax_lora.runs import run
from fedjax_lora.runs.config import demo
from fedjax_lora.runs.loading import load_assets

assets = load_assets(demo(), weights=False)
slow = {"datasets", "matplotlib", "pandas", "sklearn", "torch"} & sys.modules.keys()
print(json.dumps([len(assets.train.ids), sorted(slow)]))
"""


def test_demo_is_loaded_without_slow_packages():
    """`transformers` imports PyTorch in its automatic classes, where that is installed."""
    import torch

    assert torch.__version__  # it is installed
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    output = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, text=True, capture_output=True, check=True
    )
    examples, slow = json.loads(output.stdout.splitlines()[-1])
    assert examples > 1000
    assert slow == []
