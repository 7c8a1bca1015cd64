"""Text from decoders, with one adapter for all rows of a batch or another one for each.

loaded = models.load("stories260k", num_labels=None, key=key)
write(loaded, ["Once upon a time"], new_tokens=32)
"""

from fedjax_lora.evaluation.generation.decode import Generated, generate
from fedjax_lora.evaluation.generation.sampling import GREEDY, Sampling, choose, narrowed
from fedjax_lora.evaluation.generation.text import batched, stop_ids, write

__all__ = [
    "GREEDY",
    "Generated",
    "Sampling",
    "batched",
    "choose",
    "generate",
    "narrowed",
    "stop_ids",
    "write",
]
