"""What a run needs, before anything is compiled: devices, memory, traffic, products and time.

Sizes come from shapes alone: of the parameters, of what the method sends and stores, and of what
the gradient of a batch keeps between its two passes, as JAX traces it. The compiler may need less,
and adds scratch space of its own; how close the sum is to what XLA reports is tested.
"""

from fedjax_lora.runs.cost.estimate import Devices, Needs, needs
from fedjax_lora.runs.cost.memory import Memory
from fedjax_lora.runs.cost.text import format

__all__ = ["Devices", "Memory", "Needs", "format", "needs"]
