"""What an accelerator does with the project's programs, in eight minutes.

Parts, each in a process of its own with a limit of seconds; each result is a line in
``results.jsonl`` as soon as it is there, and what is there already is not measured again:

* peak: large matrix products in bfloat16 and float32, by precision;
* attention: JAX's implementations, forwards and backwards, and how far they are from float32;
* adapters: many adapters over one kernel as a `vmap`, as one wide product with a mask, and as
  ragged products;
* server: leading singular triplets by an SVD, and by subspace iteration;
* encoder, decoder: rounds of RoBERTa-large and of a Llama of 1.2 billion parameters: tokens a
  second, share of the peak, clients at once, memory against the estimate, and layers in a loop
  against layers without one;
* sharded: the same round on a mesh and by `vmap`, with the largest difference of their states;
* peft: a loop over the same clients in PyTorch and PEFT.

    python -m experiments.benchmarks.accelerators.run --rehearse   # tiny shapes, on any machine
    python -m experiments.benchmarks.accelerators.run              # on a GPU or TPU
    python -m experiments.benchmarks.accelerators.report           # tables

A machine that has jax 0.10.2 or newer, flax, optax, orbax, transformers and peft, but no package
index, lacks two small packages, which travel as wheels::

    pip download --no-deps --dest build/wheels jaxtyping wadler-lindig   # where there is an index
    pip install --no-index --no-deps build/wheels/*.whl                  # there
"""

import pathlib
from collections.abc import Mapping
from types import MappingProxyType

RESULTS = pathlib.Path(__file__).parent / "results"
RECORDS = "results.jsonl"

TOTAL_SECONDS = 480.0

PARTS: Mapping[str, float] = MappingProxyType(
    {
        "peak": 40.0,
        "encoder": 130.0,
        "peft": 60.0,
        "decoder": 120.0,
        "attention": 50.0,
        "adapters": 40.0,
        "sharded": 50.0,
        "server": 50.0,
    }
)
"""Parts in the order of their worth, and the most seconds of each."""
