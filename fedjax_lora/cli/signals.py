"""Stop a run after its current round on Ctrl-C and SIGTERM."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

ASKED = "stopping after this round; interrupt again to stop at once\n"


@contextlib.contextmanager
def after_this_round() -> Iterator[Callable[[], int]]:
    """Record SIGINT and SIGTERM inside the context; a second one ends the process at once.

    Yields:
      A function that returns the number of the first signal, or 0 if there was none.
    """
    received: list[int] = []

    def record(number: int, frame: FrameType | None) -> None:
        received.append(number)
        # The system's own way: Python's would wait for a compilation or a round to return.
        signal.signal(number, signal.SIG_DFL)
        show_cursor = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar has hidden it
        os.write(2, f"\n{show_cursor}fedjax-lora: {ASKED}".encode())

    handlers = {number: signal.signal(number, record) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
