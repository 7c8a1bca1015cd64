"""What a run needs, before anything is compiled: devices, memory, traffic, products and time.

Sizes come from shapes alone: of the parameters, of what the method sends and stores, and of what
the gradient of a batch keeps between its two passes, as JAX traces it. The compiler may need less,
and adds scratch space of its own; how close the sum is to what XLA reports is tested.
`compile_round` asks the compiler itself, for this machine or for one that is not at hand.
"""

from fedjax_lora.runs.cost.ahead import Compiled, TooLarge, Usage, compile_round
from fedjax_lora.runs.cost.estimate import Needs, needs, needs_of, outline_run
from fedjax_lora.runs.cost.memory import Memory
from fedjax_lora.runs.cost.outline import Devices, Outline
from fedjax_lora.runs.cost.text import advice, format, format_compiled

__all__ = [
    "Compiled",
    "Devices",
    "Memory",
    "Needs",
    "Outline",
    "TooLarge",
    "Usage",
    "advice",
    "compile_round",
    "format",
    "format_compiled",
    "needs",
    "needs_of",
    "outline_run",
]
