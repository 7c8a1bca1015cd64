"""A process that kills itself in a phase of a round, chosen by an environment variable.

`install` is called when Python starts (see `experiments.robustness.deployment.harness`), before
anything is imported; the functions are wrapped as soon as they exist.
"""

import os
import signal
import sys
import threading
import time
from typing import Any

VARIABLE = "FEDJAX_LORA_FAULT"
"""``PHASE:ROUND``, rounds from 0."""

SITE = {
    "registering": "it says how many examples it has",
    "asked": "it has received its message",
    "training": "it trains",
    "answering": "it has trained, and sends nothing",
    "answered": "it has sent its answer",
}
"""Phases of a site, in the order of a round."""

SERVER = {
    "sending": "its messages are made, and not sent",
    "waiting": "sites train",
    "aggregating": "all answers are there, and not aggregated",
    "recording": "it has aggregated, and saved nothing of it",
}
"""Phases of the server."""


def install() -> None:
    """Wrap the functions of this process's part in a round, if it is to be killed."""
    if VARIABLE in os.environ:
        phase, number = os.environ[VARIABLE].split(":")
        threading.Thread(target=_watch, args=(phase, int(number)), daemon=True).start()


def die() -> None:
    """End this process and the one of the engine that watches over it, at once."""
    parent = os.getppid()
    with open(f"/proc/{parent}/cmdline", "rb") as file:
        if b"nvflare" in file.read():
            os.kill(parent, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _later(seconds: float) -> None:
    threading.Timer(seconds, die).start()


def _watch(phase: str, number: int) -> None:
    """Wait for the modules, then wrap."""
    if phase in SERVER:
        exchange = _loaded("fedjax_lora.deploy.exchange", "rows")
        _server(exchange.Exchange, phase, number)
        return
    client = _loaded("fedjax_lora.deploy.client", "widened")
    _site(client, phase, number)


def _loaded(name: str, last: str) -> Any:
    """A module, as soon as the last of its definitions that matter is there."""
    while not hasattr(sys.modules.get(name), last):
        time.sleep(0.005)
    return sys.modules[name]


def _site(module: Any, phase: str, number: int) -> None:
    kind, count = module.Client, iter(range(10**6))
    register, fit, trained = kind.register, kind.fit, module.Site._trained

    def registering(self: Any, data: bytes) -> bytes:
        die()
        return register(self, data)

    def fitting(self: Any, data: bytes) -> bytes:
        due = next(count) == number
        if due and phase == "asked":
            die()
        self.site.__dict__["due"] = due and phase == "training"
        answer = fit(self, data)
        if due and phase == "answering":
            die()
        if due and phase == "answered":
            _later(1.0)  # by then the engine has carried it
        return answer

    def training(self: Any, *given: Any) -> Any:
        if self.__dict__.get("due"):
            _later(0.02)
        return trained(self, *given)

    if phase == "registering":
        kind.register = registering
    kind.fit, module.Site._trained = fitting, training


def _server(kind: Any, phase: str, number: int) -> None:
    call, report, count = kind.__call__, kind.report, iter(range(10**6))

    def calling(self: Any, given: Any) -> Any:
        due = next(count) == number
        send = self.send

        def sending(round: int, messages: Any) -> Any:
            if due and phase == "sending":
                die()
            if due and phase == "waiting":
                _later(0.3)
            return send(round, messages)

        self.send = sending
        try:
            answers = call(self, given)
        finally:
            self.send = send
        if due and phase == "aggregating":
            die()
        self.due = due
        return answers

    def reporting(self: Any, plan: Any, metrics: Any) -> None:
        report(self, plan, metrics)
        if self.due and phase == "recording":
            die()

    kind.__call__, kind.report = calling, reporting
