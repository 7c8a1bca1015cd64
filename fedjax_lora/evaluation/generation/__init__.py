"""Text from decoders, with one adapter for all rows of a batch or another one for each.

loaded = models.load("stories260k", num_labels=None, key=key)
generate_text(loaded, ["Once upon a time"], new_tokens=32)
"""

from fedjax_lora.evaluation.generation.decode import Generated, generate
from fedjax_lora.evaluation.generation.sampling import GREEDY, Sampling, filter_logits, sample_token
from fedjax_lora.evaluation.generation.text import generate_text, prompt_batches, stop_token_ids

__all__ = [
    "GREEDY",
    "Generated",
    "Sampling",
    "filter_logits",
    "generate",
    "generate_text",
    "prompt_batches",
    "sample_token",
    "stop_token_ids",
]
