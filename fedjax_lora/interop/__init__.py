"""Models in and out: PEFT adapters, plain checkpoints, and what they say about themselves."""

from fedjax_lora.interop.huggingface import save_merged
from fedjax_lora.interop.load import Opened, open_model
from fedjax_lora.interop.matrices import LoadedAdapter
from fedjax_lora.interop.metadata import ModelMetadata
from fedjax_lora.interop.peft import Stored, labels_of, load_adapter, put_together, save_adapter
from fedjax_lora.interop.predict import encode, probabilities
from fedjax_lora.interop.trained_model import TrainedModel, make_outputs
from fedjax_lora.interop.warm_start import begin_with, fitting_spec, read_start, with_parts

__all__ = [
    "LoadedAdapter",
    "ModelMetadata",
    "Opened",
    "Stored",
    "TrainedModel",
    "begin_with",
    "encode",
    "fitting_spec",
    "labels_of",
    "load_adapter",
    "make_outputs",
    "open_model",
    "probabilities",
    "put_together",
    "read_start",
    "save_adapter",
    "save_merged",
    "with_parts",
]
