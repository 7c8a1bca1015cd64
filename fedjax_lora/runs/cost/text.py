"""What a run needs, in words."""

from fedjax_lora.runs.cost.estimate import Needs


def told(found: Needs, rate: float | None = None) -> list[str]:
    """The needs as lines for a terminal, in MB (a million bytes).

    Args:
      found: the needs.
      rate: operations a second in matrix products
        (`fedjax_lora.runs.cost.round_flops.product_rate`), for the time of a round.
    """
    devices, size = found.devices, found.round_flops
    memory, amount = found.memory, lambda size: f"{size / 1e6:12.1f} MB"
    clients, clients_per_step = f"{memory.cohort} clients", f"{memory.clients_per_step} at a time"
    rows = [
        ("base model", memory.base),
        ("server and what clients keep between rounds", memory.server),
        ("training tokens", memory.data),
        (f"{clients}: adapter and head, before and after", memory.cohort * memory.client),
        (
            f"{clients_per_step}: gradient, update and optimizer",
            memory.clients_per_step * memory.working,
        ),
        (
            f"{clients_per_step}: activations, at the longest texts",
            memory.clients_per_step * memory.activations,
        ),
        ("layers, taken out of their stack", memory.layers),
        ("device memory, about", memory.total),
        ("sent in a round", found.up),
        ("received in a round", found.down),
        (f"both in {found.rounds} rounds", found.rounds * (found.up + found.down)),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}{amount(size)}" for name, size in rows]
    several = f", {devices.processes} processes" if devices.processes > 1 else ""
    told = [
        f"{devices.clients * devices.model} x {devices.kind}{several}; mesh: clients "
        f"{devices.clients} x model {devices.model}",
        f"one program with {len(found.shapes)} shapes of a step, texts x longest (tokens in all): "
        + ", ".join(f"{s.rows} x {s.length} ({s.tokens})" for s in found.shapes),
        *lines,
        f"{'matrix products in a step of a client':<{width}}{found.flops / 1e9:12.1f} GFLOP",
        f"{'matrix products in a round, on a device':<{width}}{size / 1e9:12.1f} GFLOP",
    ]
    if rate is not None:
        told += [
            f"{'local training of a round, about':<{width}}{size / rate:12.1f} s at "
            f"{rate / 1e9:.0f} GFLOP/s, which a large {found.dtype} product reaches here just now "
            "and a step does not; server, evaluation and compilation come on top",
        ]
    return told
