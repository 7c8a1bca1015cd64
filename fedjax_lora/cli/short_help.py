"""The help of ``fedjax-lora run --help``: the options of a first day, read from their source."""

import ast
import inspect
from collections.abc import Iterator, Mapping

from rich.table import Table

from fedjax_lora.cli.terminal import make_console
from fedjax_lora.core.registry import parse_python
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.config import schema

FIRST_DAY = (
    "data.task",
    "data.train_examples",
    "model.model",
    "federation.method",
    "federation.ranks",
    "federation.partition",
    "federation.clients",
    "federation.cohort",
    "federation.rounds",
    "local.learning_rate",
    "local.batch",
    "execution.eval_every",
    "seed",
)
"""Fields of the config that the short help lists."""


def field_docs() -> Mapping[str, str]:
    """Read the docstrings of all fields of a config, by dotted name."""
    tree = parse_python(inspect.getsource(schema))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    groups = [("", "RunConfig")] + [
        (f"{field.name}.", field.type.__name__)
        for field in configs.RunConfig.__dataclass_fields__.values()
        if isinstance(field.type, type) and field.type.__name__ in classes
    ]
    return {
        f"{prefix}{name}": doc for prefix, record in groups for name, doc in _docs(classes[record])
    }


def _docs(record: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Yield name and docstring of the fields of a dataclass."""
    for field, after in zip(record.body, record.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            yield field.target.id, inspect.cleandoc(str(after.value.value)).replace("\n", " ")


def print_run_help(default: configs.RunConfig) -> None:
    """Print the options of a first day of ``fedjax-lora run``.

    Args:
      default: config whose values are the defaults.
    """
    docs, values = field_docs(), configs.to_dict(default)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for name in FIRST_DAY:
        group, _, field = name.rpartition(".")
        value = (values[group] if group else values)[field]
        table.add_row(f"  --{field.replace('_', '-')}", f"{docs[name]} (default: {value})")
    console = make_console(soft_wrap=False)
    console.print("usage: fedjax-lora run [OPTIONS]\n")
    console.print("Run one config and write a result folder; without options, the demo.\n")
    console.print(table)
    console.print(
        "\n  --config FILE    start from a config in JSON, YAML or TOML\n"
        "  --out FOLDER     result folder\n"
        "  --resume FOLDER  go on with an interrupted run\n"
        "  --dry-run        print the memory, traffic and time that the run would need\n"
        "  --track NAME     send each round to tensorboard, wandb, mlflow or trackio\n"
        "\nfedjax-lora run --help-all lists every option."
    )
