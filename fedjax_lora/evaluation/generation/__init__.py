"""Text generation with decoders: one adapter for a whole batch, or one adapter per row.

Example::

  model = models.load("stories260k", num_labels=None, key=key)
  generate_text(model, ["Once upon a time"], new_tokens=32)
"""

from fedjax_lora.evaluation.generation.decode import Generated, generate
from fedjax_lora.evaluation.generation.sampling import GREEDY, Sampling, filter_logits, sample_token
from fedjax_lora.evaluation.generation.text import (
    decode_tokens,
    generate_text,
    prompt_batches,
    stop_token_ids,
)

__all__ = [
    "GREEDY",
    "Generated",
    "Sampling",
    "decode_tokens",
    "filter_logits",
    "generate",
    "generate_text",
    "prompt_batches",
    "sample_token",
    "stop_token_ids",
]
