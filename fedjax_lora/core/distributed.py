"""Several processes that run one program (`jax.distributed`): who writes, how they stay together.

Every process computes the same rounds on the mesh of all devices; the first one alone writes and
prints. What only one of them knows (a signal, what is in a folder, a full disk) is told to all
before anybody acts on it: one that went another way would leave the others waiting in the next
round. With a single process all of this does nothing.
"""

import contextlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from fedjax_lora.core.errors import InputError, Stopped

WAIT = 300.0
"""Seconds that processes wait for each other at the start, as in `jax.distributed`."""


@contextlib.contextmanager
def initialized(
    address: str | None = None,
    count: int | None = None,
    number: int | None = None,
    *,
    wait: float = WAIT,
) -> Iterator[None]:
    """Be one of several processes inside the context; before anything else asks JAX for devices.

    They wait for each other at its end, since the last word of each goes through the first.

    Args:
      address: ``host:port`` of the first process. On a TPU pod, under Slurm, Open MPI and
        Kubernetes JAX finds out about all three.
      count: how many processes there are.
      number: of this one, from 0.
      wait: seconds to wait for the others.

    Raises:
      InputError: there is no way to find the others, or they do not come in time.
    """
    given = (address, count, number)
    _check(*given)
    _connect(given, wait)
    try:
        yield
    except (InputError, Stopped):  # on all of them, see `raise_on_all`
        jax.distributed.shutdown()
        raise
    except KeyboardInterrupt:
        _end(130, "fedjax-lora: stopped\n")
    except BaseException:
        _end(1, traceback.format_exc())
    jax.distributed.shutdown()


def _end(status: int, words: str) -> NoReturn:
    """End this process at once.

    The interpreter's own end would wait for the others, and they for this process. Without it JAX
    ends them, in the time that it gives a process to show that it lives.
    """
    sys.stderr.write(words)
    sys.stderr.flush()
    os._exit(status)


def _check(address: str | None, count: int | None, number: int | None) -> None:
    given = (address, count, number)
    if any(x is None for x in given) and any(x is not None for x in given):
        raise InputError(
            "--coordinator-address, --num-processes and --process-id belong together; give all "
            "three, or none on a cluster that JAX knows."
        )
    host, _, port = (address or "").rpartition(":")
    if address is not None and not (host and port.isdecimal() and int(port) < 2**16):
        raise InputError(f"--coordinator-address is {address!r}; write HOST:PORT.")
    if count is not None and count < 1:
        raise InputError(f"--num-processes must be at least 1, got {count}.")
    if count is not None and number is not None and not 0 <= number < count:
        raise InputError(f"--process-id is {number}, but it counts from 0 to {count - 1}.")


def _connect(given: tuple[str | None, int | None, int | None], wait: float) -> None:
    """`jax.distributed.initialize`, whose own end of waiting is a stack trace and no exception."""
    address, count, number = given
    failed: list[Exception] = []

    def connect() -> None:
        try:
            jax.distributed.initialize(*given, initialization_timeout=int(2 * wait) + 60)
        except Exception as error:
            failed.append(error)

    connecting = threading.Thread(target=connect, daemon=True)
    connecting.start()
    connecting.join(wait)
    if connecting.is_alive():
        who = "on a cluster" if address is None else f"process {number} of {count}"
        where = "" if address is None else f", the first is expected at {address}"
        raise InputError(
            f"The processes did not all come together within {wait:g} s (this is {who}{where}); "
            "start them all, and see that they can reach the first."
        )
    if failed and isinstance(failed[0], ValueError) and address is None:
        raise InputError(
            "No cluster was found (a TPU pod, Slurm, Open MPI, Kubernetes); give "
            "--coordinator-address HOST:PORT, --num-processes and --process-id."
        )
    if failed:
        reason = str(failed[0]).partition("\n")[0]
        raise InputError(f"The processes cannot be connected ({reason}).") from failed[0]


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """A JSON value of every process, in their order, on every process."""
    if jax.process_count() == 1:
        return [value]
    own = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.array(own.size)))
    filled = np.pad(own, (0, int(sizes.max()) - own.size))
    rows = np.asarray(multihost_utils.process_allgather(filled))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def broadcast_arrays(tree: Any) -> Any:
    """NumPy arrays of the first process, bit for bit; the others give some of the same shapes."""
    if jax.process_count() == 1:
        return tree
    as_bytes = jax.tree.map(lambda x: np.frombuffer(np.asarray(x).tobytes(), np.uint8), tree)
    told = multihost_utils.broadcast_one_to_all(as_bytes)
    return jax.tree.map(
        lambda x, got: np.frombuffer(np.asarray(got).tobytes(), x.dtype).reshape(x.shape).copy(),
        tree,
        told,
    )


@contextlib.contextmanager
def raise_on_all() -> Iterator[None]:
    """What fails inside the context on one process fails on all of them, with the same sentence.

    All processes have to come to its end.

    Raises:
      InputError: raised inside on this process, or on another one.
    """
    if jax.process_count() == 1:
        yield
        return
    problem = None
    try:
        yield
    except InputError as error:  # anything else ends this process, and JAX the others
        problem = error
    told = gather(None if problem is None else str(problem))
    if problem is not None:
        raise problem
    for number, other in enumerate(told):
        if other is not None:
            raise InputError(f"Process {number}: {other}")


def check_same(what: str, value: dict[str, Any]) -> None:
    """Refuse to go on if the processes were started with different things.

    Args:
      what: the thing, for the message.
      value: JSON values by name.

    Raises:
      InputError: with the names in which the first different process differs.
    """
    given = gather(value)
    for number, other in enumerate(given):
        names = [name for name in value if other.get(name) != given[0].get(name)]
        if names:
            raise InputError(
                f"Process {number} has another {what} than process 0 ({', '.join(names[:5])}); "
                "start every process with the same command and the same files."
            )
