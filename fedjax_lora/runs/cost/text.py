"""Format what a run needs as text."""

from fedjax_lora.runs.cost.estimate import Needs


def format(needs: Needs, rate: float | None = None) -> list[str]:
    """Return the needs of a run as lines for a terminal, in MB (a million bytes).

    Args:
      needs: from `fedjax_lora.runs.cost.needs`.
      rate: operations a second in matrix products
        (`fedjax_lora.runs.cost.round_flops.product_rate`), for the time of a round.
    """
    devices, size = needs.devices, needs.round_flops
    bytes_by_name = _bytes_by_name(needs)
    width = max(map(len, bytes_by_name))
    several = f", {devices.processes} processes" if devices.processes > 1 else ""
    lines = [
        f"{devices.clients * devices.model} x {devices.kind}{several}; mesh: clients "
        f"{devices.clients} x model {devices.model}",
        f"one program with {len(needs.shapes)} shapes of a step, texts x longest (tokens in all): "
        + ", ".join(f"{s.rows} x {s.length} ({s.tokens})" for s in needs.shapes),
        *(f"{name:<{width}}{size / 1e6:12.1f} MB" for name, size in bytes_by_name.items()),
        f"{'matrix products in a step of a client':<{width}}{needs.flops / 1e9:12.1f} GFLOP",
        f"{'matrix products in a round, on a device':<{width}}{size / 1e9:12.1f} GFLOP",
    ]
    if rate is not None:
        lines.append(
            f"{'local training of a round, about':<{width}}{size / rate:12.1f} s at "
            f"{rate / 1e9:.0f} GFLOP/s, which a large {needs.dtype} product reaches here just now "
            "and a step does not; server, evaluation and compilation come on top"
        )
    return lines


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
