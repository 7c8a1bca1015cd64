"""The base models as complete checkpoints that both libraries load, head included."""

import pathlib
from typing import Any

import torch
import transformers

from experiments.benchmarks.cohort import ours
from fedjax_lora import data, models


def write(name: str, folder: pathlib.Path, data_dir: str | None) -> None:
    """Save a classifier: MiniLM with a random head, or random weights in RoBERTa's shape."""
    labels = len(data.find_task(ours.task(data_dir)).classes)
    torch.manual_seed(0)
    source = models.resolve("minilm").folder
    if name == "minilm":
        auto: Any = transformers.AutoModelForSequenceClassification
        model = auto.from_pretrained(source, num_labels=labels)
    else:
        assert name == "roberta-base", name
        config = transformers.RobertaConfig(
            vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, pad_token_id=0
        )
        config.num_labels = labels
        model = transformers.RobertaForSequenceClassification(config)
    model.save_pretrained(folder)
    # MiniLM's tokenizer for both models keeps the lengths of the texts equal.
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
