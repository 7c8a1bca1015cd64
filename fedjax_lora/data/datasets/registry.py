"""The tasks by name, with their datasets on the hub and their files on disk.

A task is chosen by a spec: `"ag_news"`, or a user's own files,
`"file(train='a.csv', test='b.csv', text='review', label='stars')"`. Language tasks have options and
their own spec for files, see `fedjax_lora.data.datasets.instruction_registry`. GLUE does not
publish its test labels, so the official development set of its tasks is their `test`.
"""

from collections.abc import Callable, Sequence
from functools import partial

from fedjax_lora.core import registry
from fedjax_lora.core.errors import unknown
from fedjax_lora.data.datasets import (
    conversation_registry,
    instruction_registry,
    official_formats,
    stdlib_definitions,
    stdlib_docstrings,
)
from fedjax_lora.data.datasets.delimited import Layout
from fedjax_lora.data.datasets.own_data import own_source
from fedjax_lora.data.datasets.records import METRICS, Hub, Local, Task
from fedjax_lora.data.datasets.table_readers import read_named

_DBPEDIA = """Company EducationalInstitution Artist Athlete OfficeHolder MeanOfTransportation
    Building NaturalPlace Village Animal Plant Album Film WrittenWork"""
_ENTAILMENT = ("entailment", "not_entailment")
_GLUE = "https://gluebenchmark.com"
_GLUE_HUB = partial(Hub, "nyu-mll/glue", test="validation")

_ALL = (
    Task(
        "definitions",
        "which package of Python's standard library a definition is from (built in, offline)",
        "https://docs.python.org/3/library/",
        tuple(stdlib_definitions.PACKAGES),
        builtin=stdlib_definitions.read,
    ),
    Task(
        "docstrings",
        "which part of Python's library a docstring of a held-out module is from (built in, hard)",
        "https://docs.python.org/3/library/",
        tuple(stdlib_docstrings.FAMILIES),
        builtin=stdlib_docstrings.read,
    ),
    Task(
        "ag_news",
        "topic of a news item, 4 classes",
        "https://arxiv.org/abs/1509.01626",
        ("World", "Sports", "Business", "Sci/Tech"),
        hub=Hub("fancyzhx/ag_news"),
        local=Local(
            "ag_news",
            ("train.csv", "train_first10429.csv"),  # the official file, or its first rows
            ("test.csv",),
            official_formats.read_ag_news,
        ),
    ),
    Task(
        "dbpedia_14",
        "kind of thing an encyclopedia abstract describes, 14 classes",
        "https://arxiv.org/abs/1509.01626",
        tuple(_DBPEDIA.split()),
        hub=Hub("fancyzhx/dbpedia_14", columns=("content",)),
        local=Local(
            "dbpedia14",
            ("train.csv", "train_desc_14000.csv"),
            ("test.csv",),
            official_formats.read_dbpedia,
            cut=True,
        ),
    ),
    Task(
        "sst2",
        "sentiment of a film review's phrase, 2 classes (GLUE)",
        _GLUE,
        ("negative", "positive"),
        hub=_GLUE_HUB(config="sst2", columns=("sentence",)),
        local=Local(
            "sst2",
            ("train.tsv",),
            ("dev.tsv",),
            partial(read_named, text="sentence", label="label"),
        ),
    ),
    Task(
        "mrpc",
        "whether two sentences say the same, official train and labelled test (GLUE)",
        "https://aclanthology.org/I05-5002",
        ("not_equivalent", "equivalent"),
        "f1",
        # The official training set is GLUE's train and development sets together.
        hub=Hub("nyu-mll/glue", "mrpc", "train+validation", columns=("sentence1", "sentence2")),
        local=Local(
            "mrpc",
            ("msr_paraphrase_train.txt",),
            ("msr_paraphrase_test.txt",),
            partial(read_named, text="#1 String", pair="#2 String", label="Quality"),
        ),
    ),
    Task(
        "rte",
        "whether a text entails a hypothesis, 2 classes (GLUE)",
        _GLUE,
        _ENTAILMENT,
        hub=_GLUE_HUB(config="rte", columns=("sentence1", "sentence2")),
        local=Local(
            "rte",
            ("train.jsonl",),
            ("val.jsonl",),
            partial(read_named, text="premise", pair="hypothesis", label="label"),
        ),
    ),
    Task(
        "qqp",
        "whether two questions are duplicates (GLUE)",
        _GLUE,
        ("not_duplicate", "duplicate"),
        "f1",
        hub=_GLUE_HUB(config="qqp", columns=("question1", "question2")),
        local=Local(
            "qqp",
            ("train.tsv", "train_subset_23497.tsv"),
            ("dev.tsv",),
            official_formats.read_qqp,
            cut=True,
        ),
    ),
    Task(
        "qnli",
        "whether a sentence answers a question (GLUE)",
        _GLUE,
        _ENTAILMENT,
        hub=_GLUE_HUB(config="qnli", columns=("question", "sentence")),
        # Without the large train.tsv, dev.tsv alone is split into training and test set.
        local=Local(
            "qnli",
            ("train.tsv", "dev.tsv"),
            ("dev.tsv",),
            partial(read_named, text="question", pair="sentence", label="label"),
            cut=True,
        ),
    ),
    Task(
        "cola",
        "whether a sentence is acceptable English (GLUE)",
        _GLUE,
        ("unacceptable", "acceptable"),
        "matthews",
        hub=_GLUE_HUB(config="cola", columns=("sentence",)),
        local=Local("cola", ("train.tsv",), ("dev.tsv",), official_formats.read_cola),
    ),
    Task(
        "mnli",
        "entailment, neutral or contradiction; matched test; natural clients are its genres",
        "https://arxiv.org/abs/1704.05426",
        ("entailment", "neutral", "contradiction"),
        hub=Hub(
            "nyu-mll/multi_nli",
            test="validation_matched",
            columns=("premise", "hypothesis"),
            group="genre",
        ),
        local=Local(
            "mnli",
            ("train.tsv",),
            ("dev_matched.tsv",),
            partial(
                read_named, text="sentence1", pair="sentence2", label="gold_label", group="genre"
            ),
        ),
    ),
    Task(
        "stsb",
        "how similar two sentences are, a score from 0 to 5 (GLUE)",
        _GLUE,
        metric="pearson",
        hub=_GLUE_HUB(config="stsb", columns=("sentence1", "sentence2")),
        local=Local(
            "stsb",
            ("train.tsv",),
            ("dev.tsv",),
            partial(read_named, text="sentence1", pair="sentence2", label="score"),
        ),
    ),
    Task(
        "newsgroups",
        "newsgroup of a message without headers, footers and quotes, 20 classes",
        "http://qwone.com/~jason/20Newsgroups/",
        hub=Hub("SetFit/20_newsgroups", label="label_text"),
        # The files of the hub's repository; the original archive leaks the group in its headers.
        local=Local(
            "newsgroups",
            ("train.jsonl",),
            ("test.jsonl",),
            partial(read_named, text="text", label="label_text"),
        ),
    ),
    Task(
        "banking77",
        "intent of a bank customer's question, 77 classes",
        "https://arxiv.org/abs/2003.04807",
        hub=Hub("legacy-datasets/banking77"),
        local=Local(
            "banking77",
            ("train.csv",),
            ("test.csv",),
            partial(read_named, text="text", label="category"),
        ),
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in (*_ALL, *instruction_registry.TASKS)}


def file(
    *,
    train: str | Sequence[str] | None = None,
    test: str | Sequence[str] | None = None,
    text: str = "text",
    pair: str | None = None,
    label: str = "label",
    group: str | None = None,
    metric: str = "accuracy",
    format: str | None = None,
    delimiter: str | None = None,
    header: bool = True,
    encoding: str | None = None,
    client_files: bool = False,
    hub: str | None = None,
    config: str | None = None,
) -> Task:
    """Task of the user's own csv, tsv, jsonl, json, parquet or arrow files (.gz, .xz, .bz2 too).

    A folder of `datasets.Dataset.save_to_disk` or `datasets.DatasetDict.save_to_disk` is read too;
    the latter holds the training set in its split `train` and the test set in its split `test`. No
    field may be empty. Labels that a file states as class labels (a feature of `datasets`) have
    the names and the order stated there. A JSON file `{client: [examples]}` or in LEAF's format
    (columns `x` and `y`) states its natural clients.

    Args:
      train: the training file, relative to the data folder if one is given; a pattern such as
        `'data/*.jsonl'`; or a list of these, which are read one after another.
      test: likewise; without it a fifth of `train`, drawn with a fixed seed, is the test set.
      text: name of the text column.
      pair: name of the second text's column.
      label: name of the label column; the classes are the labels that occur in `train`.
      group: name of the column with the natural client of each example.
      metric: `"accuracy"`, `"f1"` (of two classes that of the second one in the order of their
        names, of more classes `"macro_f1"`), `"macro_f1"` (the mean over the classes),
        `"micro_f1"`, `"matthews"`, or for labels that are scores `"pearson"` or `"spearman"`.
      format: a name in `fedjax_lora.data.datasets.table_readers.FORMATS`; by default it follows
        from the ending of the file name.
      delimiter: one character between the fields of a csv or tsv file, such as `';'`.
      header: whether the first row of a csv or tsv file names the columns; otherwise they are
        named `'1'`, `'2'`, ...
      encoding: encoding of a csv or tsv file, such as `'cp1252'`; UTF-8 by default.
      client_files: whether each file is a natural client, with the name of the file.
      hub: id of a data set on the Hugging Face hub, in place of files; `train` and `test` are then
        its splits, by default `'train'` and, if there is one, `'test'`.
      config: configuration of the data set on the hub.

    Raises:
      InputError: a metric that such a task cannot have, or options that do not go together.
    """
    metrics = [name for name, task_type in METRICS.items() if task_type != "language"]
    if metric not in metrics:
        raise unknown("metric", metric, metrics)
    layout = Layout(delimiter, header, encoding)
    layout.check()
    reader = partial(
        read_named, text=text, pair=pair, label=label, group=group, format=format, layout=layout
    )
    own = own_source(
        "file", reader, train=train, test=test, client_files=client_files, hub=hub, config=config
    )
    return Task("file", own.summary, "", metric=metric, local=own.local, hub=own.hub)


def find_task(spec: str) -> Task:
    """Return the task that `spec` names.

    >>> find_task("mrpc").classes
    ('not_equivalent', 'equivalent')

    Raises:
      InputError: unknown task or option.
    """
    return registry.build(spec, factories(), "task")


def factories() -> dict[str, Callable[..., Task]]:
    """Return the factories of all tasks by name; their keyword arguments are the options."""
    return {
        **{name: partial(_as_it_is, task) for name, task in TASKS.items()},
        **{
            task.name: instruction_registry.task_factory(task)
            for task in instruction_registry.TASKS
        },
        "file": file,
        "instructions": instruction_registry.instructions,
        "conversations": conversation_registry.conversations,
        "text": conversation_registry.text,
    }


def _as_it_is(task: Task, /) -> Task:
    """Return a task that has no options."""
    return task
