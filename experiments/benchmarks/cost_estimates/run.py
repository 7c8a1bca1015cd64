"""Estimate and measure.

Run it with ``python -m experiments.benchmarks.cost_estimates.run --data-dir DATA --models-dir
MODELS``.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import tyro

from experiments.benchmarks.cost_estimates import (
    CARDS,
    LARGE,
    MEASURED,
    RESULTS,
    SMALL,
    STORAGES,
    TOKENIZER,
    Storage,
    large,
)
from experiments.benchmarks.cost_estimates.compiled import compiled_bytes
from experiments.tools import alternate
from fedjax_lora import models
from fedjax_lora.core import atomic_io, trees
from fedjax_lora.runs import cost
from fedjax_lora.runs.build import load_assets

FILE = RESULTS / "explain.json"


def checkpoint(folder: pathlib.Path, config: dict[str, Any], tokenizer: pathlib.Path) -> str:
    """Write a checkpoint folder without weights."""
    folder.mkdir()
    for file in tokenizer.glob("token*"):
        shutil.copyfile(file, folder / file.name)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


def estimated(storage: Storage, data_dir: str, model: str) -> dict[str, Any]:
    """The estimate for the large model and XLA's memory analysis."""
    config = large(storage, data_dir=data_dir, model=model)
    assets = load_assets(config, weights=False)
    found = cost.needs(config, assets)
    memory = found.memory
    one = memory.client + memory.working + memory.activations  # all clients are trained at once
    rest = memory.total - memory.cohort * one
    return {
        "parameters": sum(
            x.size for x in jax.tree.leaves(models.abstract_params(assets.model.config))
        ),
        "memory": memory._asdict() | {"total": memory.total},
        "flops": found.flops,
        "clients": {f"{card / 1e9:.0f}": int((card - rest) // one) for card in CARDS},
        "compiled_bytes": compiled_bytes(config, assets),
    }


def measured(name: str, data_dir: str, model: str) -> dict[str, int]:
    """Estimated and measured memory of a round of the small model."""
    command = [
        sys.executable,
        "-m",
        "experiments.benchmarks.cost_estimates.watch",
        name,
        data_dir,
        model,
    ]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(made.stdout.splitlines()[-1])


def write_weights(folder: str) -> None:
    """Write random weights for the config of a checkpoint folder."""
    from safetensors.numpy import save_file

    config = models.read_config(pathlib.Path(folder))
    drawn = models.random_params(config, jax.random.key(0))
    tensors = {}
    for path, leaf in trees.flat(drawn).items():
        if path == "head":
            continue
        stacked = models.is_stacked(config, path)
        for layer in range(leaf.shape[0]) if stacked else (None,):
            one = jax.device_get(leaf if layer is None else leaf[layer])
            name = models.hf_name(config, path, layer)
            tensors[name] = one.T.copy() if path.endswith("/kernel") else one.copy()
    save_file(tensors, pathlib.Path(folder) / "model.safetensors", metadata={"format": "pt"})


def main(data_dir: str, models_dir: pathlib.Path) -> None:
    """Run the measurements that the result file does not have.

    Args:
      data_dir: holds dolly_alpaca_fed10/.
      models_dir: holds the folders ``llama-3.2-1b`` (its config.json is enough) and
        ``stories260k`` (its tokenizer).
    """
    found = json.loads(FILE.read_text()) if FILE.exists() else {"large": {}, "small": {}}

    def fill(part: str, name: str, run: Callable[[], Any]) -> None:
        if name not in found[part]:
            found[part][name] = run()
            atomic_io.write(
                FILE, json.dumps(found | {"machine": alternate.machine()}, indent=1) + "\n"
            )
            print(part, name, found[part][name], flush=True)

    with tempfile.TemporaryDirectory() as made:
        place, tokenizer = pathlib.Path(made), models_dir / TOKENIZER
        config = json.loads((models_dir / LARGE / "config.json").read_text(encoding="utf-8"))
        shapes = checkpoint(place / "large", config, tokenizer)
        for storage in STORAGES:
            fill("large", storage, lambda s=storage: estimated(s, data_dir, shapes))
        weights = checkpoint(place / "small", SMALL, tokenizer)
        write_weights(weights)
        for name in MEASURED:
            fill("small", name, lambda n=name: measured(n, data_dir, weights))


if __name__ == "__main__":
    tyro.cli(main)
