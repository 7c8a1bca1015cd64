"""What compilers of TPUs say of the project's rounds, on a machine without a TPU."""

import pathlib

RESULTS = pathlib.Path(__file__).parent / "results"

OPTIONS = (
    "--explain", "--target", "v5e:2x2", "--method", "zero_padding", "--layers", "2",
    "--batch", "2", "--dtype", "bfloat16",
)  # fmt: skip
"""Of ``fedjax-lora run``: the demo with a third of its layers and small batches."""
