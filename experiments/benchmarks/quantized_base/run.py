"""Measure: ``python -m experiments.benchmarks.quantized_base.run --models-dir DIR``."""

import dataclasses
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.benchmarks.quantized_base import RESULTS
from fedjax_lora import lora, models
from fedjax_lora.core import trees
from fedjax_lora.core.quantization import STORAGES
from fedjax_lora.core.tokenizer import Tokenizer
from fedjax_lora.evaluation import generation

LARGE, TRAINED = "llama-3.2-1b", "stories260k"
TEXTS, TOKENS = 64, 128


def memory(folder: pathlib.Path, storage: str) -> dict[str, Any]:
    """Bytes of the base and of XLA's temporary buffers in a step of one client.

    Nothing is computed: the gradient of an adapter of rank 8 on query and value, for one text of
    64 tokens with recomputed layers, is compiled for this machine's backend.
    """
    config = dataclasses.replace(models.read_config(folder), remat=True, scan_unroll=1)
    params = models.abstract_params(config, storage)
    spec = lora.make_spec(params, rank=8)
    gain = jax.eval_shape(lambda: lora.uniform_gain(spec))
    module = models.module_of(config)

    def loss(adapter, gain, params, ids, mask):
        return jnp.sum(lora.apply(module, params, adapter, gain, ids, mask).hidden ** 2)

    texts = [jax.ShapeDtypeStruct((1, 64), kind) for kind in (jnp.int32, jnp.bool_)]
    compiled = jax.jit(jax.grad(loss)).lower(spec.shapes(), gain, params, *texts).compile()
    found: Any = compiled.memory_analysis()
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(models.abstract_params(config))),
        "base_bytes": trees.size_bytes(params),
        "step_bytes": found.temp_size_in_bytes,
    }


def stories(folder: pathlib.Path) -> np.ndarray:
    """Sample texts from the exact model, which needs no data set."""
    exact = models.load(str(folder), num_labels=None, key=jax.random.key(0))
    tokenizer = cast(Tokenizer, exact.tokenizer)
    start = np.full((TEXTS, 1), tokenizer.bos_token_id, np.int32)
    out = generation.generate(
        exact.module,
        exact.params,
        start,
        np.ones_like(start, bool),
        new_tokens=TOKENS - 1,
        sampling=generation.Sampling(),
        key=jax.random.key(1),
    )
    return np.concatenate([start, out.tokens], axis=1)


def outputs(folder: pathlib.Path, storage: str, texts: np.ndarray) -> np.ndarray:
    """Next-token logits ``[n, t - 1, V]``."""
    model = models.load(str(folder), num_labels=None, storage=storage, key=jax.random.key(0))
    out: Any = model.module.apply({"params": model.params}, texts, np.ones_like(texts, bool))
    return np.asarray(models.logits(model.params, out.hidden[:, :-1]), np.float64)


def compared(got: np.ndarray, want: np.ndarray, texts: np.ndarray) -> dict[str, float]:
    """Perplexity, relative error of the logits, and agreement of the predicted tokens."""
    shifted = got - got.max(axis=-1, keepdims=True)
    scores = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    taken = np.take_along_axis(scores, texts[:, 1:, None], axis=-1)
    return {
        "perplexity": float(np.exp(-taken.mean())),
        "error": float(np.sqrt(np.mean((got - want) ** 2)) / want.std()),
        "agreement": float(np.mean(got.argmax(-1) == want.argmax(-1))),
    }


def loading(folder: pathlib.Path, storage: str) -> dict[str, int]:
    """Increase of a process's peak memory by loading the base on a CPU, base included."""
    command = [
        sys.executable,
        "-m",
        "experiments.benchmarks.quantized_base.run",
        str(folder),
        storage,
    ]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(made.stdout.splitlines()[-1])


def load_once(folder: str, storage: str) -> None:
    """Load the base and print its size and the peak memory; run by `loading` in a process."""
    small = models.tiny(family="llama", num_labels=None)  # what loading imports and compiles anyway
    jax.block_until_ready(small.params)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = models.load(folder, num_labels=None, storage=storage, key=jax.random.key(0))
    jax.block_until_ready(model.params)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = trees.size_bytes(model.params)
    print(json.dumps({"base_bytes": size, "peak_bytes": 1024 * (peak - before)}))


def write_checkpoint(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Write random bfloat16 weights of the large model: one file per layer and an index."""
    from safetensors.numpy import save_file

    config = models.read_config(source)
    shapes = {path: x.shape for path, x in trees.flat(models.abstract_params(config)).items() if x}
    rng = np.random.default_rng(0)
    where: dict[str, str] = {}
    for layer in [None, *range(config.layers)]:
        tensors = {}
        for path, shape in shapes.items():
            if models.is_stacked(config, path) == (layer is not None):
                one = shape if layer is None else shape[1:]
                one = one[::-1] if path.endswith("/kernel") else one
                value = (rng.random(one, np.float32) - 0.5) / 25
                tensors[models.hf_name(config, path, layer)] = value.astype(jnp.bfloat16)
        name = f"model-{'rest' if layer is None else layer}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, name)
    index = json.dumps({"weight_map": where})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    (folder / "config.json").write_text((source / "config.json").read_text(), encoding="utf-8")


def main(models_dir: pathlib.Path) -> None:
    """Measure every storage format; takes minutes on two cores and 3 GB of disk space.

    Args:
      models_dir: holds the folders ``llama-3.2-1b`` (its config.json is enough) and
        ``stories260k``.
    """
    record: dict[str, dict[str, Any]] = {storage: {} for storage in STORAGES}
    texts = stories(models_dir / TRAINED)
    exact = outputs(models_dir / TRAINED, "float32", texts)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(models_dir / LARGE, pathlib.Path(folder))
        for storage, found in record.items():
            found["memory"] = memory(models_dir / LARGE, storage)
            found["output"] = compared(outputs(models_dir / TRAINED, storage, texts), exact, texts)
            found["loading"] = loading(pathlib.Path(folder), storage)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "storage.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[2] in STORAGES:
        load_once(sys.argv[1], sys.argv[2])
    else:
        tyro.cli(main)
