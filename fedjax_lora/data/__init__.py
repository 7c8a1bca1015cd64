"""Tasks, tokens and the partition of examples over clients; needs NumPy and `datasets` only."""

from fedjax_lora.data.datasets.loading import load
from fedjax_lora.data.datasets.records import Prompting, Split, Task, TaskData
from fedjax_lora.data.datasets.registry import TASKS, find_task
from fedjax_lora.data.partition import Partition, class_counts, partition
from fedjax_lora.data.partitioners import PARTITIONERS
from fedjax_lora.data.tokenization import Tokens, encode

__all__ = [
    "PARTITIONERS",
    "TASKS",
    "Partition",
    "Prompting",
    "Split",
    "Task",
    "TaskData",
    "Tokens",
    "class_counts",
    "encode",
    "find_task",
    "load",
    "partition",
]
