"""A port on which no process listens."""

import socket


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]
