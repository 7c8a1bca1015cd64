"""Evaluation: metrics, task types, predictions and text generation.

`METRICS` and `TASK_TYPES` are what configs refer to by name. `make_predict` and `make_evaluate`
compute outputs and scores of models with adapters; `generate_text` continues prompts.
"""

from fedjax_lora.evaluation.evaluator import LabelledSplit, global_model, make_evaluate
from fedjax_lora.evaluation.generation import (
    GREEDY,
    Generated,
    Sampling,
    generate,
    generate_text,
)
from fedjax_lora.evaluation.metrics import METRICS
from fedjax_lora.evaluation.predict import AdaptedParams, Predict, make_predict
from fedjax_lora.evaluation.task_types import TASK_TYPES, EvalContext, EvalFn, Scores, TaskType

__all__ = [
    "GREEDY",
    "METRICS",
    "TASK_TYPES",
    "AdaptedParams",
    "EvalContext",
    "EvalFn",
    "Generated",
    "LabelledSplit",
    "Predict",
    "Sampling",
    "Scores",
    "TaskType",
    "generate",
    "generate_text",
    "global_model",
    "make_evaluate",
    "make_predict",
]
