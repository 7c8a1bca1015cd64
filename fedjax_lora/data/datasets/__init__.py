"""Data sets: the tasks by name, and reading their examples from files or the Hugging Face hub."""

from fedjax_lora.data.datasets.loading import load
from fedjax_lora.data.datasets.records import METRICS, Folder, Hub, Local, Split, Task, TaskData
from fedjax_lora.data.datasets.registry import TASKS, find_task

__all__ = [
    "METRICS",
    "TASKS",
    "Folder",
    "Hub",
    "Local",
    "Split",
    "Task",
    "TaskData",
    "find_task",
    "load",
]
