"""``python -O`` leaves out assertions, of other libraries too: the numbers are the same."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests._helpers import optimized_start

ROOT = pathlib.Path(__file__).parents[3]


@pytest.mark.slow
def test_run_under_python_O_gives_the_same_adapter(tmp_path):
    quick = jax.config.values["jax_disable_most_optimizations"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(quick)),
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "JAX_COMPILATION_CACHE_DIR": "",  # every program is traced and compiled by the process
        "USE_TORCH": "0",
    }
    words = [sys.executable, "-O", "-m", "tests._helpers.optimized_start", str(tmp_path / "o")]
    with subprocess.Popen(
        words, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        expected = optimized_start.play(tmp_path / "normal")  # at the same time
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    for ours, theirs in zip(expected, json.loads(output.splitlines()[-1]), strict=True):
        numbers = {name: x for name, x in ours.items() if isinstance(x, float)}
        assert {"loss", "train_loss"} <= set(numbers)
        np.testing.assert_allclose([theirs[n] for n in numbers], [*numbers.values()], rtol=1e-5)
    files = [tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("o", "normal")]
    optimized, normal = map(load_file, files)
    assert optimized.keys() == normal.keys()
    for name, value in normal.items():
        np.testing.assert_allclose(optimized[name], value, atol=1e-6, err_msg=name)
