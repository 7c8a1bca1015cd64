"""Language tasks, whose models learn the completions of instructions.

A task's options are the keywords of `task_factory`, as in
`"gsm8k(metric='perplexity', format='plain')"`. A user's own files are the task
`"instructions(train='a.jsonl', instruction='question', completion='answer')"`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from fedjax_lora.core.errors import raise_all, unknown
from fedjax_lora.data import prompts
from fedjax_lora.data.datasets import stdlib_descriptions
from fedjax_lora.data.datasets.delimited import Layout
from fedjax_lora.data.datasets.instruction_formats import (
    ALPACA,
    DOLLY,
    GSM8K,
    NATURAL_HUB,
    Columns,
    hub_instructions,
    hub_mmlu,
    read_dolly_alpaca,
    read_instructions,
    read_mmlu_1444,
    read_natural_instructions,
)
from fedjax_lora.data.datasets.own_data import own_source
from fedjax_lora.data.datasets.records import METRICS, Folder, Hub, Local, Prompting, Task

_METRICS = [name for name, kind in METRICS.items() if kind == "language"]

TASKS = (
    Task(
        "descriptions",
        "what functions of Python's standard library do (built in, offline); packages are clients",
        "https://docs.python.org/3/library/",
        metric="perplexity",
        builtin=stdlib_descriptions.read,
        prompting=Prompting(answer_tokens=32),
    ),
    Task(
        "dolly",
        "instructions written by employees, 8 categories, which are the natural clients",
        "https://huggingface.co/datasets/databricks/databricks-dolly-15k",
        metric="perplexity",
        hub=Hub(
            "databricks/databricks-dolly-15k", test=None, read=partial(hub_instructions, DOLLY)
        ),
        local=Local(
            "dolly",
            ("databricks-dolly-15k.jsonl",),
            (),
            partial(read_instructions, columns=DOLLY),
            cut=True,
        ),
    ),
    Task(
        "alpaca",
        "instructions made by self-instruct (Stanford Alpaca)",
        "https://github.com/tatsu-lab/stanford_alpaca",
        metric="perplexity",
        hub=Hub("tatsu-lab/alpaca", test=None, read=partial(hub_instructions, ALPACA)),
        local=Local(
            "alpaca",
            ("alpaca_data.json",),
            (),
            partial(read_instructions, columns=ALPACA),
            cut=True,
        ),
    ),
    Task(
        "dolly_alpaca",
        "both, as FedIT's and FLoRA's script splits them over 10 natural clients (files only)",
        "https://arxiv.org/abs/2305.05644",
        metric="perplexity",
        local=Folder("dolly_alpaca_fed10", read_dolly_alpaca),
    ),
    Task(
        "natural_instructions",
        "Super-Natural-Instructions; its tasks are the natural clients",
        "https://arxiv.org/abs/2204.07705",
        metric="rouge_l",
        hub=Hub("Muennighoff/natural-instructions", read=partial(hub_instructions, NATURAL_HUB)),
        local=Folder("natural_instructions", read_natural_instructions),
    ),
    Task(
        "gsm8k",
        "grade-school mathematics with worked answers",
        "https://arxiv.org/abs/2110.14168",
        metric="exact_match",
        hub=Hub("openai/gsm8k", "main", read=partial(hub_instructions, GSM8K)),
        local=Local(
            "gsm8k",
            ("train.jsonl",),
            ("test.jsonl",),
            partial(read_instructions, columns=GSM8K),
        ),
        prompting=Prompting(answer_tokens=256),
    ),
    Task(
        "mmlu",
        "multiple choice in 57 subjects; on disk the 1,444 questions that FLoRA evaluates on",
        "https://arxiv.org/abs/2009.03300",
        metric="choice_accuracy",
        hub=Hub("cais/mmlu", "all", "validation+dev", read=hub_mmlu),
        local=Local(
            "mmlu", ("mmlu_test_1444.jsonl",), ("mmlu_test_1444.jsonl",), read_mmlu_1444, cut=True
        ),
    ),
)


def task_factory(task: Task) -> Callable[..., Task]:
    """Make the factory that a spec of this task calls with its options."""

    def choose(
        *,
        metric: str | None = None,
        format: str = task.prompting.format,
        answer_tokens: int = task.prompting.answer_tokens,
        test: str | None = None,
        clients: Literal["own", "category"] = task.prompting.clients,
    ) -> Task:
        """Return the task with other options.

        Args:
          metric: `"perplexity"`, `"rouge_l"`, `"exact_match"`, or of multiple choice
            `"choice_accuracy"`; by default that of the test set.
          format: the prompt format, see `Prompting`.
          answer_tokens: largest number of tokens generated for an answer.
          test: name of another language task, whose test set is taken.
          clients: whether the natural clients are the data's own or its categories.
        """
        metrics = {other.name: other.metric for other in TASKS}
        if test is not None and test not in metrics:
            raise unknown(f"test set of task {task.name!r}:", test, metrics)
        metric = metric or metrics[test or task.name]
        return with_options(task, metric, Prompting(format, answer_tokens, test, clients))

    return choose


def instructions(
    *,
    train: str | Sequence[str] | None = None,
    test: str | Sequence[str] | None = None,
    instruction: str = "instruction",
    completion: str = "completion",
    context: str | None = None,
    category: str | None = None,
    group: str | None = None,
    metric: str = "perplexity",
    format: str = "auto",
    answer_tokens: int = Prompting().answer_tokens,
    delimiter: str | None = None,
    header: bool = True,
    encoding: str | None = None,
    client_files: bool = False,
    hub: str | None = None,
    config: str | None = None,
) -> Task:
    """Language task of the user's own files or folders, of the formats of `file(...)`.

    Args:
      train: files, as in `file(...)`.
      test: files, as in `file(...)`.
      instruction: name of the instruction column.
      completion: name of the completion column.
      context: name of the column of texts that instructions are about; fields may be empty, null
        or left out.
      category: name of the category column, which partitioners by label use.
      group: name of the column with the natural client of each example.
      metric: `"perplexity"`, `"rouge_l"` or `"exact_match"`.
      format: the prompt format, see `Prompting`.
      answer_tokens: largest number of tokens generated for an answer.
      delimiter: one character between the fields of a csv or tsv file, such as `';'`.
      header: whether the first row of a csv or tsv file names the columns; otherwise they are
        named `'1'`, `'2'`, ...
      encoding: encoding of a csv or tsv file, such as `'cp1252'`; UTF-8 by default.
      client_files: as in `file(...)`.
      hub: as in `file(...)`.
      config: as in `file(...)`.

    Raises:
      InputError: an unknown metric or format, or one that these tasks cannot have.
    """
    layout = Layout(delimiter, header, encoding)
    layout.check()
    columns = Columns(instruction, completion, context, category, group)
    own = own_source(
        "instructions",
        partial(read_instructions, columns=columns, layout=layout),
        train=train,
        test=test,
        client_files=client_files,
        hub=hub,
        config=config,
    )
    task = Task("instructions", own.summary, "", metric="perplexity", local=own.local, hub=own.hub)
    return with_options(task, metric, Prompting(format, answer_tokens))


def with_options(task: Task, metric: str, prompting: Prompting) -> Task:
    """Return the task with other options, once they are checked."""
    if metric not in _METRICS:
        raise unknown(f"metric of task {task.name!r}:", metric, _METRICS)
    prompts.check_format(prompting.format)
    test_task = prompting.test or task.name
    raise_all(
        f"Task {task.name!r}",
        [f"answer_tokens is {prompting.answer_tokens}, must be at least 1"]
        * (prompting.answer_tokens < 1)
        + [f"{test_task} has no choices to choose from; take another metric"]
        * (metric == "choice_accuracy" and test_task != "mmlu"),
    )
    return dataclasses.replace(task, metric=metric, prompting=prompting)
