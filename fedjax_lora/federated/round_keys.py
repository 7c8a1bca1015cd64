"""The random keys of a round: one for each use, all from the run's root key."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fedjax_lora.core.types import Key

METHOD, TRAINING, TRANSFORMS, SERVER_NOISE = range(4)
"""Uses of randomness in a round. Clients and transforms fold their own numbers into these keys."""


def round_key(key: Key, round: ArrayLike, use: int) -> Key:
    """Return the key of a round for one use.

    Args:
      key: the run's root key.
      round: ``int32[]``, counted from 0.
      use: one of the uses above.
    """
    return jax.random.fold_in(jax.random.fold_in(key, jnp.asarray(round)), use)
