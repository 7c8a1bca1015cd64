"""Ctrl-C and SIGTERM: finish the round first."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

ASKED = "stopping after this round; interrupt again to stop at once\n"


@contextlib.contextmanager
def after_this_round() -> Iterator[Callable[[], int]]:
    """Inside the context, SIGINT and SIGTERM only leave a note; a second one stops at once.

    Yields:
      A function that returns the signal's number once there was one, before that 0.
    """
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        # The system's own way: Python's would wait for a compilation or a round to return.
        signal.signal(number, signal.SIG_DFL)
        show_cursor = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar has hidden it
        os.write(2, f"\n{show_cursor}fedjax-lora: {ASKED}".encode())

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: seen[0] if seen else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
