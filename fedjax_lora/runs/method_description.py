"""What ``fedjax-lora methods NAME`` says about a method: formula, options, paper and traffic."""

import inspect
from collections.abc import Iterator

from fedjax_lora.core import registry
from fedjax_lora.core.errors import unknown

SIZE, RANK = 768, 8
"""The matrix and the rank for which the traffic is counted."""


def describe(name: str) -> Iterator[str]:
    """Yield the description of a method as lines of text.

    Args:
      name: name of the method, which may have options: ``"hlora(sigma='b')"``.

    Raises:
      InputError: an unknown name or option.
    """
    from fedjax_lora import methods  # imports JAX

    word, _ = registry.parse(name, "method")
    if word not in methods.METHODS:
        raise unknown("method", word, methods.METHODS)
    factory = methods.METHODS[word]
    options = [
        f"{p.name}={p.default!r}"
        for p in inspect.signature(factory).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    yield f"--method {word}"
    if options:
        yield f'--method "{word}({", ".join(options)})"'
    yield ""
    text = (inspect.getdoc(factory) or "").replace("\n  spec: the adapted layers.", "")
    yield text.replace("\nArgs:\n\n", "\n")
    yield ""
    yield _traffic(name)


def _traffic(name: str) -> str:
    """Count what a client of `RANK` sends and receives for one matrix in the first round."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from fedjax_lora import lora, methods

    target = lora.LoraTarget("layer", SIZE, SIZE, None)
    spec = lora.LoraSpec(targets=(target,), rank=RANK, alpha=float(RANK))
    method = methods.make(name, spec)
    kernels = {"layer": jnp.zeros((SIZE, SIZE))}
    server = method.init(lora.init(spec, jax.random.key(0)), kernels)
    traffic = method.traffic(server, np.array([RANK]), 0)
    up, down = (int(np.sum(x)) for x in (traffic.up, traffic.down))
    return (
        f"Traffic of a client of rank {RANK} for one matrix of {SIZE} x {SIZE} in the first round: "
        f"{up:,} bytes up, {down:,} down."
    )
