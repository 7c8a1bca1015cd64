"""What server and site send each other in a round, at each client's true rank.

Down go the components that act at the client, both factors, and which of them it trains; up go the
entries that it has trained and that the method sends. Both sides store adapters at the rank `R` of
the federation and fill up with zeros, so that a site computes what a simulated client does. Arrays
are NumPy's; nothing is computed with here.
"""

from fedjax_lora.deploy.wire.contents import Header, Rules, Start, Update, most_bytes
from fedjax_lora.deploy.wire.down import pack_down, unpack_down
from fedjax_lora.deploy.wire.up import pack_up, unpack_up

__all__ = [
    "Header",
    "Rules",
    "Start",
    "Update",
    "most_bytes",
    "pack_down",
    "pack_up",
    "unpack_down",
    "unpack_up",
]
