"""Federations to try: their files, their processes, and the same messages in one process."""

import contextlib
import csv
import json
import os
import pathlib
import random
import socket
import subprocess
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from experiments.robustness.deployment import faults
from fedjax_lora.deploy import client, kits, operate, server, tasks
from fedjax_lora.deploy.client import SiteOptions
from fedjax_lora.deploy.spec import FederationSpec
from fedjax_lora.runs import config as configs

GOOD = ("order", "invoice", "meeting", "schedule", "report", "lunch", "team")
BAD = ("winner", "prize", "free", "click", "offer", "pills", "cheap")
COLUMNS = {"text": "body", "label": "class"}
ADAPTER = pathlib.Path("adapter", "adapter_model.safetensors")
RANKS = (2, 4, 8)


def write_mails(path: pathlib.Path, rows: int) -> None:
    """Mails in two classes, drawn for the file's name."""
    draw = random.Random(path.name)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS.values())
        for k in range(rows):
            words = draw.choices(BAD if k % 2 else GOOD, k=draw.randint(5, 30))
            table.writerow([" ".join(words), "spam" if k % 2 else "ham"])


def spec_of(
    sites: int,
    *,
    method: str = "hlora",
    rounds: int = 3,
    ranks: tuple[int, ...] = RANKS,
    least: int = 1,
    deadline: int = 60,
) -> FederationSpec:
    """A federation of one layer of MiniLM; ranks are repeated among the sites."""
    every = {
        "data": configs.DataConfig(task="file", max_length=16),
        "model": configs.ModelConfig(model="minilm", layers=1),
        "federation": configs.FederationConfig(method=method, rounds=rounds, cohort=sites),
        "local": configs.LocalConfig(batch=8, max_steps=3),
    }
    return FederationSpec(
        config=configs.RunConfig(**every),
        classes=("ham", "spam"),
        sites=tuple(f"s{k}" for k in range(sites)),
        ranks=tuple(ranks[k % len(ranks)] for k in range(sites)),
        least=least,
        deadline=deadline,
    )


class Bench:
    """Files and kits of a federation; its processes play one spec after another.

    Attributes:
      folder: of everything.
      sites: names.
      columns: of all files.
    """

    def __init__(
        self, folder: pathlib.Path, spec: FederationSpec, columns: Mapping[str, str] = COLUMNS
    ) -> None:
        self.folder, self.sites, self.columns = folder, spec.sites, dict(columns)
        folder.mkdir(parents=True, exist_ok=True)
        if columns is COLUMNS:
            for k, site in enumerate(self.sites):
                write_mails(folder / f"{site}.csv", 20 + 7 * k % 40)
            write_mails(folder / "test.csv", 30)

    def file(self, name: str) -> str:
        """The file of a site, or ``test``."""
        return next(str(path.resolve()) for path in sorted(self.folder.glob(f"{name}.*")))

    def task(self, spec: FederationSpec) -> str:
        """The server's task."""
        return tasks.with_file(spec.config.data.task, self.file("test"), self.columns)

    def options(self, site: str) -> SiteOptions:
        """What a site's owner says."""
        return SiteOptions(name=site, train=self.file(site), columns=self.columns)

    def prepare(self, spec: FederationSpec) -> dict[str, pathlib.Path]:
        """The kits, of the first spec, with this one in them."""
        fed = self.folder / "fed"
        if not fed.exists():
            with socket.socket() as free:
                free.bind(("localhost", 0))
                port = free.getsockname()[1]
            kits.create(fed, spec, task=self.task(spec), server="localhost", port=port)
        spec.write(fed)
        found = kits.find(fed, spec)
        for site in self.sites:
            spec.write(found[site] / "local")
            self.options(site).write(found[site] / "local")
        return found

    def play(
        self,
        spec: FederationSpec,
        out: pathlib.Path,
        *,
        resume: bool = False,
        watched: subprocess.Popen | None = None,
    ) -> None:
        """Play a spec with the processes that run, as long as the watched one does."""
        operate.play(
            self.folder / "fed",
            spec,
            out,
            resume=resume,
            overwrite=not resume,
            is_alive=lambda: watched is None or watched.poll() is None,
        )

    def in_process(
        self, spec: FederationSpec, out: pathlib.Path, silent: Collection[tuple[int, int]] = ()
    ) -> None:
        """Play a spec without an engine; ``silent`` are rounds and sites that do not answer."""
        sites = [client.Client(spec, self.options(site)) for site in self.sites]

        def send(round: int, messages: Mapping[int, bytes]) -> dict[int, bytes]:
            there = {k: data for k, data in messages.items() if (round, k) not in silent}
            return {k: sites[k].fit(data) for k, data in there.items()}

        server.serve(
            spec,
            lambda data: {k: site.register(data) for k, site in enumerate(sites)},
            send,
            task=self.task(spec),
            out=out,
            overwrite=True,
        )


@contextlib.contextmanager
def running(
    bench: Bench, found: Mapping[str, pathlib.Path], names: Collection[str], fault: str = ""
) -> Iterator[dict[str, subprocess.Popen]]:
    """Processes of some sites or the ``server`` until the block ends, perhaps with a fault."""
    commands = {
        name: operate.server_command(found[name])
        if name == "server"
        else operate.client_command(found[name], name)
        for name in names
    }
    hooks = bench.folder / "hooks"
    hooks.mkdir(exist_ok=True)
    (hooks / "sitecustomize.py").write_text(
        "from experiments.robustness.deployment import faults\nfaults.install()\n"
    )
    before = dict(os.environ)
    if fault:
        os.environ[faults.VARIABLE] = fault
        root = pathlib.Path(__file__).parents[3]
        path = [str(hooks), str(root), before.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(path)
    try:
        logs = bench.folder / "logs" / time.strftime("%H%M%S")
        with operate.processes(commands, logs) as started:
            os.environ.clear()
            os.environ.update(before)
            yield started
    finally:
        os.environ.clear()
        os.environ.update(before)


class Memory(threading.Thread):
    """Watches the resident memory of processes and all that they start."""

    def __init__(self, started: Mapping[str, subprocess.Popen]) -> None:
        super().__init__(daemon=True)
        self.started, self.most, self.stop = started, dict.fromkeys(started, 0), threading.Event()

    def run(self) -> None:
        """Look every two seconds."""
        import psutil

        while not self.stop.wait(2):
            for name, process in self.started.items():
                with contextlib.suppress(psutil.Error):
                    parent = psutil.Process(process.pid)
                    every = [parent, *parent.children(recursive=True)]
                    size = sum(one.memory_info().rss for one in every)
                    self.most[name] = max(self.most[name], size)


def same(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Whether two runs left the same adapter, byte for byte."""
    return (one / ADAPTER).read_bytes() == (other / ADAPTER).read_bytes()


def lines(out: pathlib.Path, name: str) -> list[dict[str, Any]]:
    """The lines of a file of a run."""
    return [json.loads(line) for line in (out / name).read_text("utf-8").splitlines()]


def load() -> float:
    """The load average of the machine."""
    return round(os.getloadavg()[0], 1)
