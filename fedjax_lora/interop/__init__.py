"""Exchange of models with other libraries: PEFT adapters and `transformers` checkpoints.

`load_model` reads a folder of either kind, `save_adapter` and `save_merged` write them, and
`probabilities` and `answers` use the model.
"""

from fedjax_lora.interop.huggingface import save_merged
from fedjax_lora.interop.load import load_model
from fedjax_lora.interop.matrices import LoadedAdapter
from fedjax_lora.interop.metadata import ModelMetadata
from fedjax_lora.interop.model_card import public_base
from fedjax_lora.interop.peft import (
    assemble,
    check_task,
    load_adapter,
    read_num_labels,
    save_adapter,
)
from fedjax_lora.interop.predict import (
    answers,
    make_logits_fn,
    probabilities,
    tokenize,
    tokenizer_of,
)
from fedjax_lora.interop.trained_model import TrainedModel
from fedjax_lora.interop.warm_start import warm_start, warm_start_spec, with_saved_modules

__all__ = [
    "LoadedAdapter",
    "ModelMetadata",
    "TrainedModel",
    "answers",
    "assemble",
    "check_task",
    "load_adapter",
    "load_model",
    "make_logits_fn",
    "probabilities",
    "public_base",
    "read_num_labels",
    "save_adapter",
    "save_merged",
    "tokenize",
    "tokenizer_of",
    "warm_start",
    "warm_start_spec",
    "with_saved_modules",
]
