"""The command ``python -m experiments.robustness.fuzz``."""

import argparse
import os
import pathlib
import tempfile

from experiments.robustness.fuzz import RESULTS


def main() -> None:
    """Run parts, print their counts and write the summary.

    The caches are those of this run alone, and nothing is asked of the network.
    """
    cache = tempfile.mkdtemp(prefix="fuzz-cache-")
    os.environ.update(JAX_PLATFORMS="cpu", HF_HUB_OFFLINE="1")
    os.environ.setdefault("FEDJAX_LORA_CACHE", cache)
    import jax
    import torch
    import transformers

    from experiments.robustness.fuzz import report, run

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # Programs of a millisecond are not worth optimising, and many cases have the same ones.
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", os.environ["FEDJAX_LORA_CACHE"] + "/xla")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

    parser = argparse.ArgumentParser(prog="python -m experiments.robustness.fuzz")
    parser.add_argument("--part", choices=list(run.PARTS), action="append", help="all by default")
    parser.add_argument("--size", type=int, help="comparisons per part")
    parser.add_argument(
        "--again", action="append", default=[], help="judge recorded cases of a verdict again"
    )
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "cases.jsonl")
    options = parser.parse_args()
    records = []
    for part in options.part or run.PARTS:
        records += run.run(part, options.out, size=options.size, again=options.again)
    print(report.counts_table(report.summarize(records)))
    if options.part is None and options.size is None and options.out.parent == RESULTS:
        report.write_summary(records)


if __name__ == "__main__":
    main()
