"""Format what a run needs as text."""

from fedjax_lora.core.target import Target
from fedjax_lora.runs.cost.ahead import Compiled, TooLarge, Usage
from fedjax_lora.runs.cost.clients_per_step import ROOM, clients_that_fit
from fedjax_lora.runs.cost.estimate import Needs

WIDTH = 50
"""Of the names of the numbers, at least."""


def format(needs: Needs, rate: float | None = None) -> list[str]:
    """Return the needs of a run as lines for a terminal, in MB (a million bytes).

    Args:
      needs: from `fedjax_lora.runs.cost.needs`.
      rate: operations a second in matrix products
        (`fedjax_lora.runs.cost.round_flops.product_rate`), for the time of a round.
    """
    devices, size = needs.devices, needs.round_flops
    several = f", {devices.processes} processes" if devices.processes > 1 else ""
    lines = [
        f"{devices.clients * devices.model} x {devices.kind}{several}; mesh: clients "
        f"{devices.clients} x model {devices.model}",
        f"one program with {len(needs.shapes)} shapes of a step, texts x longest (tokens in all): "
        + ", ".join(f"{s.rows} x {s.length} ({s.tokens})" for s in needs.shapes),
        *_megabytes(_bytes_by_name(needs)),
        _line("matrix products in a step of a client", needs.flops / 1e9, "GFLOP"),
        _line("matrix products in a round, on a device", size / 1e9, "GFLOP"),
    ]
    if rate is not None:
        lines.append(
            _line("local training of a round, about", size / rate, "s")
            + f" at {rate / 1e9:.0f} GFLOP/s, which a large {needs.dtype} product reaches here "
            "just now and a step does not; server, evaluation and compilation come on top"
        )
    return lines


def _line(name: str, value: float, unit: str) -> str:
    return f"{name:<{WIDTH}}{value:12.1f} {unit}"


def _megabytes(sizes: dict[str, float]) -> list[str]:
    return [_line(name, size / 1e6, "MB") for name, size in sizes.items()]


def _bytes_by_name(needs: Needs) -> dict[str, float]:
    memory = needs.memory
    clients, group = f"{memory.cohort} clients", f"{memory.clients_per_step} at a time"
    return {
        "base model": memory.base,
        "server and what clients keep between rounds": memory.server,
        "training tokens": memory.data,
        f"{clients}: adapter and head, before and after": memory.cohort * memory.client,
        f"{group}: gradient, update and optimizer": memory.clients_per_step * memory.working,
        f"{group}: activations, at the longest texts": memory.clients_per_step * memory.activations,
        "layers, taken out of their stack": memory.layers,
        "device memory, about": memory.total,
        "sent in a round": needs.up,
        "received in a round": needs.down,
        f"both in {needs.rounds} rounds": needs.rounds * (needs.up + needs.down),
    }


def advice(needs: Needs, available: int | None) -> list[str]:
    """Advise against dividing a base that fits into a device, in a line if there is need.

    Args:
      needs: of the run.
      available: bytes of a device.
    """
    base, model = needs.memory.base * needs.devices.model, needs.devices.model
    if model == 1 or (available is not None and base > available / 2):
        return []
    return [
        f"the base is divided in {model} parts, which exchange activations in every layer; whole "
        f"it takes {base / 1e6:.1f} MB: if a device has room for it, give all devices to the axis "
        "clients first (--mesh -1 1)"
    ]


def format_compiled(found: Compiled | TooLarge, needs: Needs, target: Target) -> list[str]:
    """Return what a compiler says of a round as lines for a terminal.

    Args:
      found: what it says.
      needs: the estimate for the same round.
      target: what it was compiled for.
    """
    if isinstance(found, TooLarge):
        return _too_large(found.needed, found.available, found.seconds, needs)
    usage, available = found.usage, target.memory or 0
    if usage.total > available > 0:
        return _too_large(usage.total, available, found.seconds, needs)
    lines = [
        f"compiled for this target in {found.seconds:.0f} s; never run or timed on one",
        *_megabytes(
            {
                "memory of a device, by the compiler": usage.total,
                "  arguments": usage.arguments,
                "  outputs": usage.outputs,
                "  temporaries": usage.temporaries,
                "  outputs in the place of arguments": -usage.aliased,
                "  code": usage.code,
                "memory that a program can use": available,
            }
        ),
        f"{'clients at once that would fit, about':<{WIDTH}}"
        f"{_fitting(usage, available, needs):12d}",
        *_collectives(found),
    ]
    return lines + _times(found, needs, target)


def _fitting(usage: Usage, available: int, needs: Needs) -> int:
    """Return how many clients fit at once if each needs as much more as its estimate was off."""
    memory = needs.memory
    each = memory.per_client * (usage.total - usage.code) / memory.total
    return int((available - usage.total) // each) + memory.clients_per_step


def _collectives(found: Compiled) -> list[str]:
    if not found.collectives:
        return ["collectives in a round: none"]
    return [
        _line(f"{count} x {kind} in a round, on a device", size / 1e6, "MB")
        for kind, (count, size) in found.collectives.items()
    ]


def _times(found: Compiled, needs: Needs, target: Target) -> list[str]:
    peak = target.flops or 0.0
    least = needs.round_flops / peak
    if found.step_seconds is None or found.round_seconds is None:
        return [
            _line("local training of a round, at least", 1e3 * least, "ms")
            + f", at the peak of {peak / 1e12:.0f} TFLOP/s; this compiler estimates no times"
        ]
    loops = f", and {found.unknown_loops} loops of unknown length beyond one pass"
    return [
        _line(
            f"a step of {needs.memory.clients_per_step} clients, estimated",
            1e3 * found.step_seconds,
            "ms",
        ),
        _line("a round, estimated", 1e3 * found.round_seconds, "ms"),
        _line("  its share of the peak", 100 * least / found.round_seconds, "%")
        + f" of {peak / 1e12:.0f} TFLOP/s",
        "not estimated, and so not in these times: gathers, most copies, collectives"
        + (loops if found.unknown_loops else ""),
    ]


def _too_large(needed: int, available: int, seconds: float, needs: Needs) -> list[str]:
    """Say what does not fit, and what to lower."""
    memory = needs.memory
    scale = max(needed / memory.total, 1.0)
    at_once = clients_that_fit(memory, ROOM * available / scale)
    lower = (
        f"--clients-per-step {at_once}"
        if at_once < memory.clients_per_step
        else "--remat, a smaller --batch or --max-length, or --mesh with more parts of the base"
    )
    return [
        f"does not fit: the compiler needs {needed / 1e6:.1f} MB of a device for "
        f"{memory.clients_per_step} clients at once, and a program can use "
        f"{available / 1e6:.1f} MB (said after {seconds:.0f} s); try {lower}"
    ]
