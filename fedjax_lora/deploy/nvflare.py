"""A federation over NVIDIA FLARE: its two components, and the job that names them.

The engine provisions certificates, connects the machines and carries bytes. A job holds the name of
these classes and the federation's spec and no code; a kit allows a site to run this executor alone.
"""

import json
import logging
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

from nvflare.apis.controller_spec import ClientTask, SendOrder, Task  # pyright: ignore[reportMissingImports]
from nvflare.apis.executor import Executor  # pyright: ignore[reportMissingImports]
from nvflare.apis.fl_constant import ReturnCode  # pyright: ignore[reportMissingImports]
from nvflare.apis.fl_context import FLContext  # pyright: ignore[reportMissingImports]
from nvflare.apis.impl.controller import Controller  # pyright: ignore[reportMissingImports]
from nvflare.apis.shareable import Shareable, make_reply  # pyright: ignore[reportMissingImports]
from nvflare.apis.signal import Signal  # pyright: ignore[reportMissingImports]

from fedjax_lora.core.errors import InputError

log = logging.getLogger(__name__)

MESSAGE, ERROR = "message", "error"
REGISTER, FIT = "register", "fit"

WAIT = 0.05
"""Seconds between looks for answers."""


class SiteExecutor(Executor):
    """Answers the server on a site; its model and rows are loaded once in a job.

    Args:
      spec: the federation, as JSON values; another one than the kit's is refused.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__()
        self.spec = dict(spec)
        self._client: Any = None

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """Answer one message; what is wrong is told in one sentence."""
        reply = make_reply(ReturnCode.OK)
        try:
            reply[MESSAGE] = self._answer(task_name, shareable[MESSAGE], fl_ctx)
        except InputError as error:
            log.error("%s", error)
            reply[ERROR] = str(error)
        return reply

    def _answer(self, task_name: str, data: bytes, fl_ctx: FLContext) -> bytes:
        if self._client is None:
            self._client = self._load(fl_ctx)
        return self._client.register(data) if task_name == REGISTER else self._client.fit(data)

    def _load(self, fl_ctx: FLContext) -> Any:
        """Load the site's half.

        Raises:
          InputError: the job is of another federation than the kit, or anything about the site.
        """
        from fedjax_lora.deploy import client, spec

        kit = pathlib.Path(fl_ctx.get_engine().get_workspace().get_site_config_dir())
        own, given = spec.read(kit), spec.from_record(self.spec)
        if own.digest != given.digest:
            raise InputError(
                "The server runs another federation than this site's kit is for; ask its owner for "
                "a new kit."
            )
        return client.Client(own, client.read_options(kit))


class FederationController(Controller):
    """Plays a federation on the server.

    Args:
      spec: the federation, as JSON values.
      task: its task with the server's own file.
      out: the run folder.
      status: file in which the end of the run is told.
      resume: continue the run in ``out``.
      overwrite: replace it.
      patience: seconds that sites have to be there at the beginning.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        task: str,
        out: str,
        status: str,
        resume: bool = False,
        overwrite: bool = False,
        patience: int = 600,
    ) -> None:
        super().__init__(task_check_period=0.1)
        self.spec, self.task, self.out, self.status = dict(spec), task, out, status
        self.resume, self.overwrite, self.patience = resume, overwrite, patience

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Nothing is needed before the run."""

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Nothing is left after it."""

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Play the federation, and tell how it has ended."""
        from fedjax_lora.deploy import server, spec

        try:
            federation = spec.from_record(self.spec)
            carrier = _Carrier(self, fl_ctx, abort_signal, federation.sites)
            server.serve(
                federation,
                lambda data: carrier.ask(data, self.patience),
                lambda round, data: carrier.carry(FIT, data, federation.deadline),
                task=self.task,
                out=pathlib.Path(self.out),
                resume=self.resume,
                overwrite=self.overwrite,
            )
        except InputError as error:
            self._tell(state="failed", error=str(error))
        except Exception as error:
            self._tell(state="failed", error=f"{type(error).__name__}: {error}")
            raise
        else:
            self._tell(state="finished", error="")

    def _tell(self, **values: str) -> None:
        path = pathlib.Path(self.status)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(values), encoding="utf-8")
        partial.replace(path)

    def process_result_of_unknown_task(
        self,
        client: Any,
        task_name: str,
        client_task_id: str,
        result: Shareable,
        fl_ctx: FLContext,
    ) -> None:
        """An answer after the deadline: it is dropped and told."""
        log.warning(
            "the answer of site %s to %s came too late and is dropped", client.name, task_name
        )


class _Carrier:
    """Carries messages to sites and waits for their answers, with deadlines of its own."""

    def __init__(
        self, controller: Controller, fl_ctx: FLContext, abort: Signal, sites: tuple[str, ...]
    ) -> None:
        self.controller, self.fl_ctx, self.abort, self.sites = controller, fl_ctx, abort, sites

    def present(self) -> set[str]:
        """Names of the sites that are connected."""
        return {client.name for client in self.fl_ctx.get_engine().get_clients()}

    def ask(self, data: bytes, patience: int) -> dict[int, bytes]:
        """Ask every site once, as soon as it is there.

        Raises:
          InputError: a site refuses to take part.
        """
        end = time.monotonic() + patience
        answers: dict[int, bytes] = {}
        while len(answers) < len(self.sites) and time.monotonic() < end:
            missing = [k for k in range(len(self.sites)) if k not in answers]
            if there := [k for k in missing if self.sites[k] in self.present()]:
                left = max(1, int(end - time.monotonic()))
                answers |= self.carry(REGISTER, {k: data for k in there}, left, strict=True)
            self._check_abort()
            time.sleep(WAIT)
        return answers

    def carry(
        self, name: str, messages: Mapping[int, bytes], deadline: int, *, strict: bool = False
    ) -> dict[int, bytes]:
        """Send each site its message and return what has come back before the deadline.

        Args:
          name: of the task.
          messages: by client id.
          deadline: seconds.
          strict: whether a site that refuses ends the run.

        Raises:
          InputError: the run is aborted, or a site refuses and ``strict``.
        """
        answers: dict[int, Shareable] = {}
        there = self.present()
        tasks = [
            self._post(name, k, data, deadline, answers)
            for k, data in messages.items()
            if self.sites[k] in there
        ]
        end = time.monotonic() + deadline
        while any(task.completion_status is None for task in tasks) and time.monotonic() < end:
            self._check_abort()
            time.sleep(WAIT)
        for task in tasks:
            if task.completion_status is None:
                self.controller.cancel_task(task, fl_ctx=self.fl_ctx)
        return dict(self._read(list(answers.items()), strict=strict))

    def _post(
        self, name: str, k: int, data: bytes, deadline: int, answers: dict[int, Shareable]
    ) -> Task:
        shareable = Shareable()
        shareable[MESSAGE] = data

        def received(client_task: ClientTask, fl_ctx: FLContext) -> None:
            if client_task.result is not None:
                answers.setdefault(k, client_task.result)

        task = Task(name=name, data=shareable, timeout=deadline, result_received_cb=received)
        self.controller.send(
            task, self.fl_ctx, targets=[self.sites[k]], send_order=SendOrder.SEQUENTIAL
        )
        return task

    def _read(
        self, answers: list[tuple[int, Shareable]], *, strict: bool
    ) -> Iterable[tuple[int, bytes]]:
        for k, reply in answers:
            if isinstance(error := reply.get(ERROR), str):
                sentence = f"Site {self.sites[k]!r} says: {error}"
                if strict:
                    raise InputError(sentence)
                log.warning("%s", sentence)
            elif isinstance(data := reply.get(MESSAGE), bytes):
                yield k, data

    def _check_abort(self) -> None:
        if self.abort.triggered:
            raise InputError("The job was aborted; continue it with --resume.")
