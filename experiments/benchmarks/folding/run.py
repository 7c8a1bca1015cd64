"""Time folding and local steps; see `experiments.benchmarks.folding`."""

import json
import pathlib
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import tyro

from fedjax_lora import lora
from fedjax_lora.core import atomic_io
from fedjax_lora.core.types import Adapter, Params
from fedjax_lora.models import EncoderConfig, SequenceClassifier, random_params

RESULTS = pathlib.Path(__file__).parent / "results"
MOST, RANKS = 32, (4, 8, 16)
TEXTS, TOKENS, LABELS = 16, 48, 2


def encoder() -> tuple[SequenceClassifier, Params]:
    """An encoder of MiniLM's shape with random weights, which take as long as trained ones."""
    config = EncoderConfig(
        family="bert",
        vocab_size=30522,
        embedding_size=384,
        hidden=384,
        layers=6,
        heads=12,
        intermediate=1536,
        max_positions=512,
        type_vocab=2,
        pad_token_id=0,
        num_labels=LABELS,
        pooling="mean",
    )
    return SequenceClassifier(config), random_params(config, jax.random.key(0))


def seconds(run: Callable[[], object], repeats: int) -> float:
    """The median processor time of some calls after one that compiles."""
    jax.block_until_ready(run())
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        jax.block_until_ready(run())
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def measure(repeats: int) -> dict[str, object]:
    """Processor seconds of a step and, by rank, of folding all other modules."""
    module, params = encoder()
    spec = lora.make_spec(params, targets="attention-qv", rank=MOST)
    adapter = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(1), x.shape), lora.init(spec, jax.random.key(0))
    )
    gain, kernels = lora.uniform_gain(spec), lora.kernels_of(params, spec)
    ids = jax.random.randint(jax.random.key(2), (TEXTS, TOKENS), 0, 30000)
    mask, label = jnp.ones((TEXTS, TOKENS), bool), jnp.arange(TEXTS) % LABELS

    @jax.jit
    def step(params: Params, adapter: Adapter) -> Adapter:
        def loss(adapter: Adapter) -> jax.Array:
            logits = lora.apply(module, params, adapter, gain, ids, mask)
            return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(TEXTS), label])

        return jax.grad(loss)(adapter)

    @jax.jit
    def fold(kernels: dict[str, jax.Array], adapter: Adapter, trained: jax.Array) -> object:
        others = {
            path: jnp.where(jnp.arange(MOST).reshape((1,) * (x.ndim - 1) + (MOST,)) < trained, 0, x)
            for path, x in gain.items()
        }
        return {p: k + lora.delta(adapter[p], others[p]) for p, k in kernels.items()}

    of_rank = {
        str(r): seconds(lambda r=r: fold(kernels, adapter, jnp.int32(r)), repeats) for r in RANKS
    }
    return {
        "step": seconds(lambda: step(params, adapter), repeats),
        "fold": of_rank,
        "repeats": repeats,
        "texts": TEXTS,
        "tokens": TOKENS,
    }


def run(repeats: int = 20) -> None:
    """Measure, print and keep the results.

    Args:
      repeats: calls of which the median is taken.
    """
    found = measure(repeats)
    RESULTS.mkdir(exist_ok=True)
    atomic_io.write(RESULTS / "folding.json", json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    tyro.cli(run)
