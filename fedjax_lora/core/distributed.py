"""Multi-process runs (`jax.distributed`): start-up, shared decisions and errors.

Every process computes the same rounds on the mesh of all devices; only process 0 writes and prints.
Information that a single process has (a signal, the contents of a folder, a full disk) is sent to
all processes before any of them acts on it: a process that took another branch would leave the
others waiting in the next round. With a single process these functions do nothing.
"""

import contextlib
import json
import os
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax._src import distributed as jax_distributed
from jax.experimental import multihost_utils

from fedjax_lora.core.coordinator_relay import relayed
from fedjax_lora.core.errors import InputError, Stopped
from fedjax_lora.core.process_watch import ProcessWatch, exit_now
from fedjax_lora.core.trees import Tree

WAIT = 300.0
"""Seconds that processes wait for each other at start-up, the default of `jax.distributed`."""


@contextlib.contextmanager
def initialized(
    address: str | None = None,
    count: int | None = None,
    number: int | None = None,
    *,
    wait: float = WAIT,
    advice: str = "start all processes again",
) -> Iterator[None]:
    """Connect this process to the others inside the context.

    Enter the context before any other code asks JAX for devices. At its end the processes wait for
    each other, because each one disconnects through process 0. If one of them dies meanwhile, the
    others say which one in a sentence and end with status 1, at once and whatever they are doing:
    see `fedjax_lora.core.process_watch`.

    Args:
      address: ``host:port`` of process 0. On a TPU pod and under Slurm, Open MPI and Kubernetes JAX
        detects `address`, `count` and `number`.
      count: number of processes.
      number: index of this process, from 0.
      wait: seconds to wait for the other processes.
      advice: how to start the run again if a process dies, the end of a sentence.

    Raises:
      InputError: incomplete or invalid arguments, no cluster was detected, or the other processes
        did not connect in time.
    """
    _check_arguments(address, count, number)
    watch = ProcessWatch(advice)
    with relayed(address) if address and number else contextlib.nullcontext(address) as local:
        _connect((local, count, number), address, wait, watch)
        with _ending_together(watch):
            yield


@contextlib.contextmanager
def _ending_together(watch: ProcessWatch) -> Iterator[None]:
    """Disconnect at the end, or tell the other processes why this one ends before them."""
    try:
        yield
    except (InputError, Stopped):  # raised on all processes, see `raise_on_all`
        jax.distributed.shutdown()
        watch.finish()
        raise
    except KeyboardInterrupt:
        watch.fail("fedjax-lora: stopped\n", 130, "was stopped by Ctrl-C")
    except BaseException as error:
        line = str(error).partition("\n")[0]
        watch.fail(traceback.format_exc(), 1, f"failed ({type(error).__name__}: {line})")
    jax.distributed.shutdown()
    watch.finish()


def _check_arguments(address: str | None, count: int | None, number: int | None) -> None:
    missing = [value is None for value in (address, count, number)]
    if all(missing):
        return
    if address is None or count is None or number is None:
        raise InputError(
            "--coordinator-address, --num-processes and --process-id belong together; give all "
            "three, or none on a cluster that JAX knows."
        )
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and int(port) < 2**16):
        raise InputError(f"--coordinator-address is {address!r}; write HOST:PORT.")
    if count < 1:
        raise InputError(f"--num-processes must be at least 1, got {count}.")
    if not 0 <= number < count:
        raise InputError(f"--process-id is {number}, but it counts from 0 to {count - 1}.")


def _connect(
    arguments: tuple[str | None, int | None, int | None],
    first: str | None,
    wait: float,
    watch: ProcessWatch,
) -> None:
    """Call `jax.distributed.initialize` with a time limit that raises, and begin to watch.

    JAX's own time limit aborts the process with a stack trace instead of raising an exception. JAX
    would also listen on all interfaces of process 0, not on the given address alone.

    Args:
      arguments: of `jax.distributed.initialize`: where to connect, number of processes, and of this
        process.
      first: ``host:port`` of process 0.
      wait: seconds to wait for the other processes.
      watch: of the other processes.
    """
    address, count, number = arguments
    errors: list[Exception] = []
    began = time.monotonic()
    listen = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or address

    def connect() -> None:
        try:
            jax.distributed.initialize(
                *arguments,
                initialization_timeout=int(2 * wait) + 60,
                coordinator_bind_address=listen,
            )
        except Exception as error:
            errors.append(error)

    connecting = threading.Thread(target=connect, daemon=True)
    connecting.start()
    connecting.join(wait)
    if connecting.is_alive():
        process = "on a cluster" if address is None else f"process {number} of {count}"
        where = "" if first is None else f", the first is expected at {first}"
        raise InputError(
            f"The processes did not all connect within {wait:g} s (this is {process}{where}); "
            "start them all, and check that they can reach the first."
        )
    if errors and isinstance(errors[0], ValueError) and address is None:
        raise InputError(
            "No cluster was found (a TPU pod, Slurm, Open MPI, Kubernetes); give "
            "--coordinator-address HOST:PORT, --num-processes and --process-id."
        )
    if errors:
        reason = str(errors[0]).partition("\n")[0]
        raise InputError(f"The processes cannot be connected ({reason}).") from errors[0]
    try:
        state = jax_distributed.global_state
        watch.connect(state, first or str(state.coordinator_address), began + wait)
    except InputError as error:
        exit_now(2, f"fedjax-lora: {error}\n")


def is_first() -> bool:
    """Whether this is process 0, which writes and prints."""
    return jax.process_index() == 0


def gather(value: object) -> list[Any]:
    """Gather one JSON value per process, in the order of the processes, on every process."""
    if jax.process_count() == 1:
        return [value]
    encoded = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.array(encoded.size)))
    padded = np.pad(encoded, (0, int(sizes.max()) - encoded.size))
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def broadcast_arrays(tree: Tree) -> Tree:
    """Broadcast the NumPy arrays of process 0 bit for bit.

    Args:
      tree: arrays; the other processes pass arrays of the same shapes and dtypes.
    """
    if jax.process_count() == 1:
        return tree
    as_bytes = jax.tree.map(lambda x: np.frombuffer(np.asarray(x).tobytes(), np.uint8), tree)
    received = multihost_utils.broadcast_one_to_all(as_bytes)
    return jax.tree.map(
        lambda x, data: np.frombuffer(np.asarray(data).tobytes(), x.dtype).reshape(x.shape).copy(),
        tree,
        received,
    )


@contextlib.contextmanager
def raise_on_all() -> Iterator[None]:
    """Raise an `InputError` on all processes if one process raises it inside the context.

    All processes have to reach the end of the context.

    Raises:
      InputError: the error of this process, or else that of the first process that has one.
    """
    if jax.process_count() == 1:
        yield
        return
    own_error = None
    try:
        yield
    except InputError as error:  # any other error ends this process, and JAX ends the others
        own_error = error
    messages = gather(None if own_error is None else str(own_error))
    if own_error is not None:
        raise own_error
    for number, message in enumerate(messages):
        if message is not None:
            raise InputError(f"Process {number}: {message}")


def check_same(subject: str, value: dict[str, object]) -> None:
    """Refuse values that differ between processes.

    Args:
      subject: what the values are, for the message.
      value: JSON values by name.

    Raises:
      InputError: names the values in which the first deviating process differs from process 0.
    """
    values = gather(value)
    for number, other in enumerate(values):
        names = [name for name in value if other.get(name) != values[0].get(name)]
        if names:
            raise InputError(
                f"Process {number} has another {subject} than process 0 ({', '.join(names[:5])}); "
                "start every process with the same command and the same files."
            )
