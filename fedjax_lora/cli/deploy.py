"""``fedjax-lora deploy`` and ``fedjax-lora client``: a federation of real machines."""

import dataclasses
import pathlib
import socket
import subprocess
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import tyro

from fedjax_lora.cli.terminal import make_console, row_printer
from fedjax_lora.core.errors import InputError, unknown
from fedjax_lora.runs.choices import check_choices
from fedjax_lora.runs.config import RunConfig

if TYPE_CHECKING:
    from fedjax_lora.deploy.spec import FederationSpec

USAGE = """usage: fedjax-lora deploy new|serve|run|try FOLDER [OPTIONS]

A federation of real machines, over NVIDIA FLARE (fedjax-lora[deploy]).

  try    everything on this machine: real server and client processes on loopback
  new    make a federation: its spec, and a startup kit for each site
  serve  run the server, in the foreground
  run    train: submit the federation to the server and follow its rounds

A site runs fedjax-lora client KIT --train FILE."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of columns of a file."""

    text: str = "text"
    """Text column."""
    label: str = "label"
    """Label column."""
    instruction: str = "instruction"
    """Instruction column of a language task."""
    completion: str = "completion"
    """Completion column of a language task."""

    def named(self, *, language: bool) -> dict[str, str]:
        """The names of the columns that a task has."""
        names = ("instruction", "completion") if language else ("text", "label")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewOptions:
    """Make a federation: a spec that all machines share, and a startup kit for each site."""

    folder: tyro.conf.Positional[pathlib.Path]
    """Folder of the federation; it must not exist."""
    sites: tuple[str, ...]
    """Names of the sites: letters, digits and -."""
    test: pathlib.Path
    """File of examples at the server, by which the model is judged; it stays there."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in any order; sites may have some of them only. None for --language."""
    language: bool = False
    """The model generates text: it learns completions of instructions, and there are no classes."""
    columns: tyro.conf.OmitArgPrefixes[Columns] = dataclasses.field(default_factory=Columns)
    server: str = "localhost"
    """Host name of the server, as the sites reach it."""
    port: int = 8002
    """Port of the server; the only one that sites must reach."""
    min_clients: int = 1
    """A round needs answers of so many sites, else the run stops and can be resumed."""
    round_seconds: int = 600
    """Seconds that sites have for a round; later answers are dropped."""
    run: tyro.conf.OmitArgPrefixes[RunConfig] = dataclasses.field(default_factory=RunConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TryOptions:
    """Run a federation on this machine, with a server and a client process for each file."""

    folder: tyro.conf.Positional[pathlib.Path]
    """Folder of the federation; it must not exist."""
    data: tuple[pathlib.Path, ...]
    """The sites' files; a site is named after its file."""
    test: pathlib.Path
    """File of examples at the server, by which the model is judged."""
    language: bool = False
    """The model generates text: it learns completions of instructions, and there are no classes."""
    columns: tyro.conf.OmitArgPrefixes[Columns] = dataclasses.field(default_factory=Columns)
    out: pathlib.Path | None = None
    """Run folder; by default FOLDER/run."""
    min_clients: int = 1
    """A round needs answers of so many sites."""
    round_seconds: int = 600
    """Seconds that sites have for a round."""
    run: tyro.conf.OmitArgPrefixes[RunConfig] = dataclasses.field(default_factory=RunConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlayOptions:
    """Train: submit the federation to the server, on its machine, and follow the rounds."""

    folder: tyro.conf.Positional[pathlib.Path]
    """Folder of the federation."""
    out: pathlib.Path
    """Run folder; like that of a simulation, and messages.jsonl."""
    resume: bool = False
    """Continue the run in the run folder."""
    overwrite: bool = False
    """Replace it."""
    patience: int = 600
    """Seconds that the sites have to be there at the beginning."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Run the server of a federation, in the foreground; Ctrl-C ends it."""

    folder: tyro.conf.Positional[pathlib.Path]
    """Folder of the federation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """Run a site of a federation, in the foreground; Ctrl-C ends it. Its file is read here only."""

    kit: tyro.conf.Positional[pathlib.Path]
    """Startup kit of this site: the zip file from the server, or its folder."""
    train: pathlib.Path
    """File of this site's examples."""
    columns: tyro.conf.OmitArgPrefixes[Columns] = dataclasses.field(default_factory=Columns)
    rank: int | None = None
    """Rank of this site's adapter, up to that of the federation; by default what the kit says."""
    memory: float | None = None
    """Gigabytes for base, adapter and head in training (activations come on top): the largest rank
    that fits is taken."""
    updates: tuple[str, ...] = ()
    """What this site does to its updates before it sends them, on top of what the federation asks
    for: clip(norm=1.0), gaussian_noise(multiplier=1.0, norm=1.0). Drawn from its own entropy."""
    check: bool = False
    """Load everything, print what would leave this machine, and connect to nobody."""


def _spec(
    config: RunConfig,
    sites: tuple[str, ...],
    classes: tuple[str, ...],
    task: str,
    least: int,
    deadline: int,
) -> "FederationSpec":
    """The spec of a federation.

    Raises:
      InputError: choices that do not go together or cannot be deployed.
    """
    from fedjax_lora.deploy import tasks
    from fedjax_lora.deploy.spec import FederationSpec, site_ranks

    own = dataclasses.replace(config.data, task=task)
    check_choices(dataclasses.replace(config, data=own))
    data = dataclasses.replace(config.data, task=tasks.shared(task), data_dir=None)
    return FederationSpec(
        config=dataclasses.replace(config, data=data),
        classes=classes,
        sites=sites,
        ranks=site_ranks(config, len(sites)),
        least=least,
        deadline=deadline,
    )


def _task(test: pathlib.Path, columns: Columns, *, language: bool) -> str:
    """The task with the server's own file."""
    from fedjax_lora.deploy import tasks

    kind = "instructions" if language else "file"
    return tasks.with_file(kind, str(test.resolve()), columns.named(language=language))


def _refuse_folder(folder: pathlib.Path) -> None:
    if folder.exists():
        raise InputError(f"{folder} exists already; give a folder that does not.")


def new_command(args: Sequence[str]) -> int:
    """``fedjax-lora deploy new``; returns the exit status."""
    options = tyro.cli(NewOptions, args=args, prog="fedjax-lora deploy new")
    from fedjax_lora.deploy import kits

    kits.check_engine()
    _refuse_folder(options.folder)
    task = _task(options.test, options.columns, language=options.language)
    spec = _spec(
        options.run,
        options.sites,
        options.classes,
        task,
        options.min_clients,
        options.round_seconds,
    )
    made = kits.create(options.folder, spec, task=task, server=options.server, port=options.port)
    console = make_console()
    console.print(f"{options.folder}: {spec.config.federation.method}, ranks {list(spec.ranks)}")
    for site in spec.sites:
        console.print(f"give {made[site]} to site {site}, over a channel that you trust")
    console.print(f"then: fedjax-lora deploy serve {options.folder}")
    return 0


def try_command(args: Sequence[str]) -> int:
    """``fedjax-lora deploy try``; returns the exit status."""
    options = tyro.cli(TryOptions, args=args, prog="fedjax-lora deploy try")
    from fedjax_lora import data
    from fedjax_lora.core import registry
    from fedjax_lora.deploy import kits, operate, tasks
    from fedjax_lora.deploy.client import SiteOptions

    kits.check_engine()
    _refuse_folder(options.folder)
    names = tuple(path.stem for path in options.data)
    columns = options.columns.named(language=options.language)
    task = _task(options.test, options.columns, language=options.language)
    name, given = registry.parse(task, "task")
    files = [str(path.resolve()) for path in options.data]
    everything = data.load(tasks.written(name, {**given, "train": files}))
    classes = () if options.language else everything.classes
    spec = _spec(options.run, names, classes, task, options.min_clients, options.round_seconds)
    kits.create(options.folder, spec, task=task, server="localhost", port=_free_port())
    found = kits.find(options.folder, spec)
    for name, file in zip(names, files, strict=True):
        SiteOptions(name=name, train=file, columns=columns).write(found[name] / "local")
    commands = {"server": operate.server_command(found["server"])}
    commands |= {name: operate.client_command(found[name], name) for name in names}
    out, console = options.out or options.folder / "run", make_console()
    console.print(f"{len(names)} sites and a server on this machine; logs in {options.folder}/logs")
    with operate.processes(commands, options.folder / "logs") as started:
        operate.play(
            options.folder,
            spec,
            out,
            on_round=row_printer(console, everything.task.metric),
            is_alive=lambda: all(p.poll() is None for p in started.values()),
        )
    console.print(f"{out} has the run")
    return 0


def serve_command(args: Sequence[str]) -> int:
    """``fedjax-lora deploy serve``; returns the exit status."""
    options = tyro.cli(ServeOptions, args=args, prog="fedjax-lora deploy serve")
    from fedjax_lora.deploy import kits, operate, spec

    kits.check_engine()
    found = kits.find(options.folder, spec.read(options.folder))
    return subprocess.call(operate.server_command(found["server"]))


def run_command(args: Sequence[str]) -> int:
    """``fedjax-lora deploy run``; returns the exit status."""
    options = tyro.cli(PlayOptions, args=args, prog="fedjax-lora deploy run")
    from fedjax_lora.deploy import kits, operate, spec

    kits.check_engine()
    console, federation = make_console(), spec.read(options.folder)
    operate.play(
        options.folder,
        federation,
        options.out,
        resume=options.resume,
        overwrite=options.overwrite,
        patience=options.patience,
        on_round=row_printer(console, "perplexity" if federation.is_language else "accuracy"),
    )
    console.print(f"{options.out} has the run")
    return 0


def client_command(args: Sequence[str]) -> int:
    """``fedjax-lora client``; returns the exit status."""
    options = tyro.cli(ClientOptions, args=args, prog="fedjax-lora client")
    from fedjax_lora.deploy import client, kits, operate, spec

    folder = kits.unzipped(options.kit)
    federation, name = spec.read(folder / "local"), kits.site_of(folder)
    own = client.SiteOptions(
        name=name,
        train=str(options.train.resolve()),
        columns=options.columns.named(language=federation.is_language),
        rank=options.rank,
        memory=None if options.memory is None else int(options.memory * 1e9),
        updates=options.updates,
    )
    if options.check:
        loaded = client.Client(federation, own)
        make_console().print("\n".join(client.describe(loaded)))
        return 0
    kits.check_engine()
    own.write(folder / "local")
    return subprocess.call(operate.client_command(folder, name))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "new": new_command,
    "serve": serve_command,
    "run": run_command,
    "try": try_command,
}


def main(args: Sequence[str]) -> int:
    """``fedjax-lora deploy``; returns the exit status."""
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if args else 2
    if args[0] not in COMMANDS:
        raise unknown("deploy command", args[0], COMMANDS)
    return COMMANDS[args[0]](args[1:])
