"""What one client begins a round with and what it sends, and what decides which of it travels."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_lora.core.trees import flat
from fedjax_lora.core.types import ClientParams, Gain, LoRA
from fedjax_lora.deploy.encodings import Encoding
from fedjax_lora.deploy.wire.kernels import KernelChange, kernel_bytes
from fedjax_lora.lora import LoraSpec


class Start(NamedTuple):
    """One client's start of a round: its part of `fedjax_lora.federated.Clients`, in NumPy."""

    params: ClientParams
    gain: Gain
    trainable: ClientParams
    rank: int
    key: np.ndarray  # uint32, data of the client's random key
    kernels: KernelChange | None = None  # how its kernels become the server's


class Update(NamedTuple):
    """What a client sends."""

    params: ClientParams  # of entries that are not sent: as at the start
    trainable: ClientParams  # what it has trained
    rank: int  # components beyond it were trimmed
    loss: float  # mean training loss
    examples: float  # examples processed


class Rules(NamedTuple):
    """What of the method and the federation decides what is sent.

    Attributes:
      spec: the adapted layers.
      head: shapes of the head that is sent each way, or ``{}``.
      sends: which factors a client sends.
      selects: whether a client chooses what it trains.
      trims: whether it may send fewer components than it has.
      adds: whether the method changes the kernels that clients train on.
      encoding: how a client writes its numbers.
    """

    spec: LoraSpec
    head: Mapping[str, Any]
    sends: LoRA = LoRA(True, True)
    selects: bool = False
    trims: bool = False
    adds: bool = False
    encoding: Encoding = "float32"


Header = Mapping[str, object]
"""JSON values that both sides know: version, digest of the federation, round and client."""


def trains_head(start: Start) -> bool:
    """Whether a client trains its head."""
    leaves = flat(start.trainable.head).values()
    return bool(leaves) and all(np.all(np.asarray(x)) for x in leaves)


def sends_head(rules: Rules, start: Start) -> bool:
    """Whether a client sends its head."""
    return bool(rules.head) and trains_head(start)


def most_bytes(rules: Rules) -> int:
    """Bytes that the arrays of any message of a round may take."""
    most = rules.spec.rank + 16  # coefficients of a component, indices and masks
    numbers = sum(
        int(np.prod(target.stack)) * rules.spec.rank * (target.inputs + target.outputs + most)
        for target in rules.spec.targets
    )
    numbers += sum(int(np.prod(x.shape)) for x in flat(rules.head).values())
    kernels = sum(map(kernel_bytes, rules.spec.targets)) if rules.adds else 0
    # With the bits of many small products.
    return 4 * numbers + 2 * kernels + (1 << 16)
