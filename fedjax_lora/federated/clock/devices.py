"""Device profiles: how fast each client computes, sends and receives, and what it holds.

A choice of profiles is a function from (clients, seed) to the `Devices` of a federation. A new one
is one function and one row of `DEVICE_PROFILES`; a new class of device is one row of
`DEVICE_CLASSES`.
"""

import csv
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_lora.core.errors import InputError, unknown
from fedjax_lora.core.records import checked_options

COLUMNS = ("flops", "down", "up", "memory", "availability")
"""Columns of a file of profiles; ``memory`` and ``availability`` may be missing."""

GIGABYTE = 1e9
MEGABIT = 1e6 / 8
"""Bytes."""


class Devices(NamedTuple):
    """The devices of all clients, ``float[N]`` each."""

    flops: np.ndarray  # operations a second that a client reaches in training
    down: np.ndarray  # bytes a second from the server
    up: np.ndarray  # bytes a second to the server
    memory: np.ndarray  # bytes
    availability: np.ndarray  # probability to be available in a round


class DeviceClass(NamedTuple):
    """A kind of device: its peak in float32, and the network that it is usually on."""

    peak: float  # operations a second, a product and a sum are two
    memory: float  # bytes
    down: float  # bytes a second
    up: float
    source: str  # of peak and memory


class Network(NamedTuple):
    """Bytes a second to and from a client."""

    down: float
    up: float


MOBILE = Network(10 * MEGABIT, 5 * MEGABIT)
"""What ITU-R M.2083 (figure 3) gives a user of a 4G network; up is half, as ITU-R M.2410 has it."""

MOBILE_5G = Network(100 * MEGABIT, 50 * MEGABIT)
"""ITU-R M.2410: user experienced data rates of IMT-2020, dense urban."""

BROADBAND = Network(100 * MEGABIT, 20 * MEGABIT)
"""The FCC's benchmark of fixed broadband since 2024."""

WIRED = Network(1000 * MEGABIT, 1000 * MEGABIT)
"""Gigabit Ethernet."""

DEVICE_CLASSES: Mapping[str, DeviceClass] = {
    "raspberry-pi-5": DeviceClass(
        153.6e9, 8 * GIGABYTE, *MOBILE,
        "4 Cortex-A76 at 2.4 GHz (Raspberry Pi product brief), each with two 128-bit pipelines of "
        "multiply-add (Arm's optimization guide): 16 operations a cycle",
    ),
    "jetson-nano": DeviceClass(
        235.9e9, 4 * GIGABYTE, *MOBILE,
        "NVIDIA data sheet: 128 cores at 921.6 MHz, two operations a cycle",
    ),
    "jetson-orin-nano": DeviceClass(
        1.28e12, 8 * GIGABYTE, *MOBILE_5G,
        "NVIDIA data sheet of the 8 GB module: 1024 cores at 625 MHz, two operations a cycle (the "
        "Super mode of 2024 has 1020 MHz)",
    ),
    "laptop-m1": DeviceClass(
        2.6e12, 8 * GIGABYTE, *BROADBAND,
        "Apple, press release of the M1 (2020): 2.6 teraflops, with 8 GPU cores",
    ),
    "desktop-rtx4090": DeviceClass(
        82.6e12, 24 * GIGABYTE, *BROADBAND,
        "NVIDIA Ada architecture whitepaper: 16384 cores at 2.52 GHz, two operations a cycle",
    ),
    "server-t4": DeviceClass(
        8.1e12, 16 * GIGABYTE, *WIRED,
        "NVIDIA T4 data sheet: 2560 cores at 1.59 GHz, two operations a cycle",
    ),
}  # fmt: skip
"""Classes of devices by name."""

DeviceMix = Callable[[int, int], Devices]
"""``(clients, seed) -> Devices``."""


def none() -> None:
    """No profiles: a run has no simulated clock."""


@checked_options
def classes(
    *,
    names: Sequence[str],
    shares: Sequence[int | float] | None = None,
    efficiency: float = 0.3,
    availability: float = 1.0,
) -> DeviceMix:
    """Give shares of the clients, chosen at random, devices of `DEVICE_CLASSES`.

    Args:
      names: the classes.
      shares: the share of clients of each class; equal by default.
      efficiency: part of a device's peak that training reaches; no device reaches its peak, and
        small batches less of it than large ones.
      availability: probability that a client is available in a round.

    Raises:
      InputError: an unknown class, other numbers of shares than classes, values out of range.
    """
    given = [1.0] * len(names) if shares is None else list(shares)
    _check_classes(names, given)
    if not (0 < efficiency <= 1 and 0 < availability <= 1):
        raise InputError(
            "Device profiles 'classes' need efficiency and availability above 0 and at most 1, got "
            f"{efficiency} and {availability}."
        )
    kinds = [DEVICE_CLASSES[name] for name in names]
    rows = np.array([[k.peak * efficiency, k.down, k.up, k.memory, availability] for k in kinds])

    def mix(clients: int, seed: int) -> Devices:
        exact = np.asarray(given) / sum(given) * clients
        counts = np.floor(exact).astype(int)
        order = np.argsort(-(exact - counts), kind="stable")
        counts[order[: clients - counts.sum()]] += 1
        kind = _rng(seed).permutation(np.repeat(np.arange(len(kinds)), counts))
        return Devices(*rows[kind].T)

    return mix


@checked_options
def file(*, path: str, inference_flops: float | None = None) -> DeviceMix:
    """Read profiles from a CSV or JSON file; a federation of another size draws from its rows.

    The columns (or keys of a JSON list of objects) are ``flops`` (operations a second that training
    reaches), ``down`` and ``up`` (bytes a second), and if there are ``memory`` (bytes) and
    ``availability`` (a probability). A JSON object of objects by client, with FedScale's keys
    ``computation`` (milliseconds of a prediction) and ``communication`` (kilobits a second, both
    ways), is read too. As many rows as clients are taken in their order.

    Args:
      path: the file.
      inference_flops: operations of the prediction that ``computation`` has timed; needed for it.

    Lai et al., "FedScale", arXiv 2105.11367 (its trace is a pickle: convert it to JSON).

    Raises:
      InputError: no such file, missing columns, or values that are not above 0.
    """
    rows = [_profile(row, path, inference_flops) for row in _read(pathlib.Path(path))]
    if not rows:
        raise InputError(f"Device profiles {path} are empty; give a row per device.")
    table = np.array(rows)

    def mix(clients: int, seed: int) -> Devices:
        at = np.arange(clients)
        if len(table) != clients:
            at = _rng(seed).choice(len(table), clients, replace=len(table) < clients)
        return Devices(*table[at].T)

    return mix


DEVICE_PROFILES: dict[str, Callable[..., DeviceMix | None]] = {
    "none": none,
    "classes": classes,
    "file": file,
}
"""Factories of device profiles by name; options are their keyword arguments."""


def _check_classes(names: Sequence[str], shares: Sequence[float]) -> None:
    for name in names:
        if name not in DEVICE_CLASSES:
            raise unknown("device class", name, DEVICE_CLASSES)
    fits = len(shares) == len(names) > 0 and min(shares) >= 0 and 0 < sum(shares) < math.inf
    if not fits:
        raise InputError(
            f"Device profiles 'classes' need as many non-negative shares as names, got names "
            f"{list(names)} and shares {list(shares)}."
        )


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, 6])


def _read(path: pathlib.Path) -> list[Mapping[str, Any]]:
    """Return the rows of a file.

    Raises:
      InputError: the file cannot be read, or is in another format.
    """
    problem = f"Device profiles {path} cannot be read"
    try:
        text = path.expanduser().read_text(encoding="utf-8")
        if path.suffix.lower() == ".csv":
            return list(csv.DictReader(text.splitlines()))
        values = json.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(f"{problem}: {error}; give a CSV or JSON file.") from error
    rows = list(values.values()) if isinstance(values, dict) else values
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{problem}: JSON must be a list of objects, or an object of objects.")
    return rows


def _profile(row: Mapping[str, Any], path: str, inference_flops: float | None) -> list[float]:
    """Return the values of a row in the order of `COLUMNS`.

    Raises:
      InputError: a value is missing or out of range.
    """
    if "computation" in row and "flops" not in row:
        row = _of_fedscale(row, path, inference_flops)
    given = {key: value for key, value in row.items() if value not in (None, "")}
    values = {"memory": math.inf, "availability": 1.0} | given
    if missing := sorted({*COLUMNS} - {*values}):
        raise InputError(
            f"Device profiles {path} have no {' and '.join(missing)}; the columns are "
            f"{', '.join(COLUMNS)}."
        )
    numbers = [_number(values[name], name, path) for name in COLUMNS]
    if not (min(numbers) > 0 and sum(numbers) > 0 and numbers[-1] <= 1):  # false for NaN
        raise InputError(
            f"Device profiles {path} need values above 0 and an availability of at most 1, got "
            f"{dict(zip(COLUMNS, numbers, strict=True))}."
        )
    return numbers


def _of_fedscale(row: Mapping[str, Any], path: str, flops: float | None) -> Mapping[str, Any]:
    if flops is None or "communication" not in row:
        raise InputError(
            f"Device profiles {path} hold the time of a prediction; give inference_flops, the "
            "operations of that prediction, and a column communication."
        )
    rate = _number(row["communication"], "communication", path) * 1e3 / 8
    seconds = _number(row["computation"], "computation", path) / 1e3
    return {"flops": flops / seconds if seconds > 0 else math.nan, "down": rate, "up": rate}


def _number(value: Any, name: str, path: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"Device profiles {path} hold {name} {value!r}, which is no number."
        ) from error
