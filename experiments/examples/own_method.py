"""An aggregation rule of your own in one file, compared with the masked mean.

Run it with ``python -m experiments.examples.own_method``.

The rule weighs each client by how far its training has moved its adapter, so that clients with
unusual data have more influence. A rule that averages components needs one function, the weights;
`fedjax_lora.methods.flora` is a short example of one that does something else.
"""

import jax
import jax.numpy as jnp

import fedjax_lora as fl
from experiments.examples import own_loop


def movement_weighted(spec: fl.lora.LoraSpec, *, power: float = 1.0) -> fl.methods.Method:
    """Components averaged over their owners, weighted by how far a client has moved.

    ``x[j] = sum_k w_k own[k, j] x_k[j] / sum_k w_k own[k, j]`` with ``w_k`` the norm of the change
    of client `k`'s factors, to a power.

    Args:
      spec: the adapted layers.
      power: of the norm; 0 is the masked mean with equal weights.

    Raises:
      InputError: a negative power.
    """
    if power < 0:
        raise fl.InputError(f"Method 'movement_weighted' needs power of at least 0, got {power}.")

    def weigh(
        cohort: fl.methods.Cohort, start: fl.methods.ClientInit, result: fl.lora.Adapter
    ) -> jax.Array:
        change = jax.tree.map(jnp.subtract, result, start.adapter)
        squares = [jnp.sum(x**2, axis=range(1, x.ndim)) for x in jax.tree.leaves(change)]
        moved = jnp.where(cohort.weight > 0, jnp.sqrt(sum(squares, jnp.zeros(()))) ** power, 0.0)
        owned = fl.methods.owners(cohort, spec.rank)  # bool[c, R]
        return fl.methods.owner_shares(moved, owned, "examples")  # sums to one over the owners

    return fl.methods.averaging(spec, weigh, name="movement_weighted")


def main(*, rounds: int = 30) -> dict[str, list[float]]:
    """The training losses of both rules in the loop of `own_loop`, round by round."""
    # Registered, a method has a name: in a loop, in a config and for ``--method``.
    fl.methods.METHODS["movement_weighted"] = movement_weighted
    names = ("masked_mean", "movement_weighted", "movement_weighted(power=0.0)")
    try:
        return {name: own_loop.federate(name, rounds=rounds)[2] for name in names}
    finally:
        del fl.methods.METHODS["movement_weighted"]


if __name__ == "__main__":
    for name, losses in main().items():
        print(f"{name:30} loss {losses[0]:.3f} -> {losses[-1]:.3f}")
