"""Keep JAX's client from being the first to notice that process 0 is gone.

JAX's client aborts its process, with messages of its own, once its connection to process 0 breaks.
Here it connects to a small process on its own host, which passes all bytes on and leaves the
client's connection open when the one to process 0 is lost. So `fedjax_lora.core.process_watch`,
which loses its connection at the same moment, can say what happened and end the process; JAX's
limit for heartbeats (100 s) stays behind it. It is no thread, because heartbeats must also pass
while other code holds the interpreter.

This file is the program of that small process, too, and therefore imports nothing but Python.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

CONNECT = 10.0
"""Seconds to wait for a connection to process 0, after which JAX's client tries again."""


@contextlib.contextmanager
def relayed(address: str) -> Iterator[str]:
    """Yield an address on this host that leads to another one inside the context.

    Args:
      address: ``host:port`` of process 0. With mutual TLS or a proxy it is yielded as it is: both
        decide by its name.
    """
    names = {name.lower() for name in os.environ}
    if any("_proxy" in name or name.startswith("jax_mtls") for name in names):
        yield address
        return
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, _, port = address.rpartition(":")
        words = [__file__, str(server.fileno()), host.strip("[]"), port]
        local = f"127.0.0.1:{server.getsockname()[1]}"
        program = subprocess.Popen(
            [sys.executable, "-I", "-S", *words],
            stdin=subprocess.PIPE,  # closes when this process ends, however it ends
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[server.fileno()],
            start_new_session=True,  # Ctrl-C is for the process that is served
        )
    with program:
        yield local


def serve(listening: int, host: str, port: int) -> None:
    """Pass bytes on until the standard input ends.

    Args:
      listening: file descriptor of a listening socket.
      host: of process 0.
      port: of process 0.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # schedulers send it to all processes of a job
    server = socket.socket(fileno=listening)
    threading.Thread(target=_accept, args=(server, host, port), daemon=True).start()
    sys.stdin.buffer.read()


def _accept(server: socket.socket, host: str, port: int) -> None:
    while True:
        near, _ = server.accept()
        threading.Thread(target=_connect, args=(near, host, port), daemon=True).start()


def _connect(near: socket.socket, host: str, port: int) -> None:
    try:
        far = socket.create_connection((host, port), CONNECT)
    except OSError:
        near.close()  # process 0 is not there yet
        return
    far.settimeout(None)
    for one in (near, far):
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=_pass_on, args=(far, near), daemon=True).start()
    _pass_on(near, far)
    # Closed alone, the connection would last for as long as the other thread waits on it.
    with contextlib.suppress(OSError):
        far.shutdown(socket.SHUT_RDWR)
    near.close()
    far.close()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """Copy until the source ends. The target stays open, and may be gone already."""
    with contextlib.suppress(OSError):
        while some := source.recv(2**16):
            with contextlib.suppress(OSError):
                target.sendall(some)


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
