"""Notice at once that another process of a distributed run has died, and end with one sentence.

JAX notices a lost process by its heartbeat, more than a minute later, and aborts with messages of
its coordination service or of Gloo. Here every process holds a TCP connection to process 0, which
the operating system closes when a process ends, however it ends. Process 0 tells the others which
one it was. A process that ends as it should says so before it closes its connection.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from typing import Any, NoReturn

from fedjax_lora.core.errors import InputError

KEY = "fedjax_lora/process_watch"
STATUS = 1
DIED = "has died"
GRACE = 3.0
"""Seconds in which a dead process is noticed by all, more than enough on one network."""


class ProcessWatch:
    """The connections of one process to the others, from `connect` to `finish`.

    Args:
      advice: how to start the run again, the end of the sentence.
    """

    def __init__(self, advice: str) -> None:
        self.number, self.count, self.advice = 0, 1, advice
        self._peers: dict[int, _Peer] = {}
        self._lock = threading.Lock()

    def connect(self, state: Any, address: str, deadline: float) -> None:
        """Connect to the other processes and begin to watch them.

        Args:
          state: of `jax.distributed`: this process's number, the number of processes, and a store
            through which to tell the port.
          address: ``host:port`` of the first process.
          deadline: of `time.monotonic`, for the others to answer.

        Raises:
          InputError: a process did not answer in time.
        """
        self.number, self.count, store = state.process_id, state.num_processes, state.client
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        if self.number == 0:
            self._accept_all(store, host, deadline)
        else:
            self._join(store, (host, int(port)), deadline)
        for number, peer in self._peers.items():
            threading.Thread(target=self._watch, args=(number, peer), daemon=True).start()

    def _accept_all(self, store: Any, host: str, deadline: float) -> None:
        family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
        token = secrets.token_hex(16)
        with socket.create_server((host, 0), family=family) as server:
            store.key_value_set(KEY, json.dumps([server.getsockname()[1], token]))
            while missing := set(range(1, self.count)) - self._peers.keys():
                server.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    peer = _Peer(server.accept()[0])
                except OSError:
                    raise InputError(self._missing(missing)) from None
                hello = peer.receive(min(deadline, time.monotonic() + GRACE)) or {}
                if hello.get("token") == token and hello.get("process") in missing:
                    peer.name = f"process {hello['process']} of {self.count}, {hello['where']}"
                    self._peers[hello["process"]] = peer
        for peer in self._peers.values():
            peer.send({"where": _where()})

    def _join(self, store: Any, address: tuple[str, int], deadline: float) -> None:
        try:
            port, token = _look_up(store, address, deadline)
            left = max(1.0, deadline - time.monotonic())
            found = socket.create_connection((address[0], port), left)
            first = _Peer(found)
            first.send({"token": token, "process": self.number, "where": _where()})
            answer = first.receive(deadline)
        except (OSError, RuntimeError):  # the store's errors are JAX's
            answer = None
        if answer is None:
            raise InputError(self._missing({0}))
        first.name = f"process 0 of {self.count}, {answer['where']}"
        self._peers[0] = first

    def _missing(self, numbers: set[int]) -> str:
        names = ", ".join(map(str, sorted(numbers)))
        return (
            f"Process {names} of {self.count} does not answer process {self.number}: it died, or "
            f"no connection between the hosts is allowed; {self.advice}."
        )

    def _watch(self, number: int, peer: "_Peer") -> None:
        """Read what a process says until it finishes, fails or is gone."""
        while True:
            message = peer.receive()
            if message is None:
                self._lost(number, f"{peer.name}, {DIED}")
            if "failed" in message:
                self._lost(number, f"{peer.name}, {message['failed']}")
            if "lost" in message:
                self._lost(number, message["lost"])
            if "finished" in message:
                peer.finished = True
                return

    def _lost(self, number: int, what: str) -> NoReturn:
        """Tell the others, if this is process 0, and end this process."""
        for other, peer in self._peers.items():
            if other != number:
                peer.send({"lost": what})
        text = f"{what[0].upper()}{what[1:]}, so process {self.number} ends too; {self.advice}."
        self._end(f"fedjax-lora: {text}\n", STATUS)

    def fail(self, message: str, status: int, reason: str) -> NoReturn:
        """End this process by an error of its own; the others are told the reason.

        If another process has died, this one's error may follow from that; then it is not shown.

        Args:
          message: to print.
          status: exit status.
          reason: of the end, in words that follow the name of this process.
        """
        time.sleep(0 if status == 130 else GRACE)  # a dead process is noticed meanwhile
        for peer in self._peers.values():
            peer.send({"failed": reason})
        self._end(message, status)

    def _end(self, message: str, status: int) -> NoReturn:
        """End this process with a message; of several threads, the first one."""
        with self._lock:  # the first thread to come here speaks, and no other follows
            exit_now(status, message)

    def finish(self) -> None:
        """Tell the others that this process ends as it should."""
        for peer in self._peers.values():
            peer.send({"finished": True})


def _look_up(store: Any, address: tuple[str, int], deadline: float) -> tuple[int, str]:
    """Return the port and the token that process 0 has put into the store, or will."""
    while True:
        wait = min(GRACE, deadline - time.monotonic())
        try:
            return json.loads(store.blocking_key_value_get(KEY, max(1, int(1000 * wait))))
        except RuntimeError:
            if time.monotonic() >= deadline:
                raise
            socket.create_connection(address, GRACE).close()  # an OSError where it has died


def exit_now(status: int, message: str) -> NoReturn:
    """End this process at once, without Python's shutdown, which would wait for the others."""
    os.write(2, message.encode())
    os._exit(status)


class _Peer:
    """A connection over which JSON values are sent, one a line."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(None)
        # A host that loses power closes nothing; then the system asks, and gives up.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self.name, self.finished = "", False
        self._connection, self._unread = connection, b""

    def send(self, value: dict[str, Any]) -> None:
        """Send a value; a connection that is gone is noticed by its reader."""
        with contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(value).encode() + b"\n")

    def receive(self, deadline: float | None = None) -> dict[str, Any] | None:
        """Return the next value; None if the other side is gone or says something else."""
        try:
            while b"\n" not in self._unread:
                if deadline is not None:
                    self._connection.settimeout(max(0.01, deadline - time.monotonic()))
                more = self._connection.recv(4096)
                if not more or len(self._unread) > 2**16:
                    return None
                self._unread += more
            line, _, self._unread = self._unread.partition(b"\n")
            value = json.loads(line)
        except (OSError, ValueError):
            return None
        finally:
            if deadline is not None:
                self._connection.settimeout(None)
        return value if isinstance(value, dict) else None


def _where() -> str:
    return f"on {socket.gethostname()} (pid {os.getpid()})"
