"""``fedjax-lora run --explain``: what a run needs, here or on a target that is not at hand."""

import contextlib
import dataclasses
from collections.abc import Iterator

from fedjax_lora.core.chips import CHIPS, parse_target
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.topology import check_installed, prepare_environment
from fedjax_lora.runs.config import RunConfig


def check_target(config: RunConfig, words: str) -> RunConfig:
    """Check the words of a target and whether a run can be compiled for it.

    Args:
      config: the run.
      words: of the target, see `fedjax_lora.core.chips.parse_target`.

    Returns:
      The config of the run on the target: several chips imply mode ``sharded``.

    Raises:
      InputError: an unknown target, or a run that is not compiled as one program.
    """
    spec, options = parse_target(words), config.execution
    for option, given in (("--mode loop", options.mode == "loop"), ("--measure", options.measure)):
        if given:
            raise InputError(
                f"--target compiles a round as one program, which a run with {option} is not; "
                f"leave {option} out."
            )
    if spec.count == 1:
        return config
    return dataclasses.replace(config, execution=dataclasses.replace(options, mode="sharded"))


def prepare_target(words: str) -> None:
    """Let this process compile for a target; to be called before JAX is loaded.

    Args:
      words: of the target.

    Raises:
      InputError: its compiler is not installed.
    """
    check_installed(parse_target(words))
    prepare_environment()


def explain(config: RunConfig, words: str | None = None) -> list[str]:
    """Return what a run needs as lines of text.

    Weights are not read, and nothing is written but the cache of tokens.

    Args:
      config: the run, of `check_target` for a target.
      words: of the target to compile for; None estimates for this machine and compiles nothing.
    """
    from fedjax_lora.core.cache import cache_dir
    from fedjax_lora.core.target import current_target
    from fedjax_lora.runs import cost
    from fedjax_lora.runs.cost.round_flops import product_rate
    from fedjax_lora.runs.loading import load_assets

    with _compiling_for(words):
        target = current_target()
        assets = load_assets(config, cache_dir=str(cache_dir() / "tokens"), weights=False)
        notes: list[str] = []
        outline = cost.outline_run(config, assets, tell=notes.append)
        needs = cost.needs_of(outline)
        rate = None if words else product_rate(needs.dtype)
        lines = cost.format(needs, rate) + cost.advice(needs, target.memory) + notes
        if words:
            lines += cost.format_compiled(cost.compile_round(outline), needs, target)
        return lines


@contextlib.contextmanager
def _compiling_for(words: str | None) -> Iterator[None]:
    """Decide and compile for a target inside the context, without the cache of programs."""
    import jax

    from fedjax_lora.core.target import compiling_for, target_of
    from fedjax_lora.core.topology import topology_devices

    if words is None:
        yield
        return
    spec = parse_target(words)
    target = target_of(topology_devices(spec), CHIPS[spec.chip].memory)
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)  # its programs cannot be loaded here
    try:
        with compiling_for(target):
            yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
