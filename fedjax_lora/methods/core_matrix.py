"""Methods that train a core between fixed factors: RAVAN and Fed-SB.

``W + s a H b`` with `a` and `b` common to all clients and never trained: ``sum_k p_k a H_k b =
a (sum_k p_k H_k) b``, so that averaging the cores is averaging the models. `a` has orthonormal
columns, `b` orthonormal rows. The server's adapter is ``(a H, b)``, an ordinary one that everything
else evaluates, measures and exports; its state is `a`.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora
from fedjax_lora.core import linalg
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import Adapter, Array, Gain, Kernels, Key, LoRA
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.averaging import Weights
from fedjax_lora.methods.base import (
    FLOAT_BYTES,
    INDEX_BYTES,
    AggregateResult,
    ClientInit,
    Cohort,
    Method,
    ServerState,
    Traffic,
    need_equal_ranks,
    whole_start,
)
from fedjax_lora.methods.fed_plora import Selection, chosen_modules, mean_of_trained
from fedjax_lora.methods.svd import only_adapted

HEADS = 4
"""Heads of RAVAN's core, where the rank can be divided by it."""

Bases = Literal["kernel", "random"]


@checked_options
def ravan(
    spec: LoraSpec,
    *,
    heads: int = 0,
    selection: Literal["random", "norm"] = "random",
    weights: Weights = "examples",
) -> Method:
    """RAVAN: several heads ``a_h H_h b_h`` with fixed `a`, `b`; clients train a few of the `H_h`.

    ``W + s sum_h a_h H_h b_h`` with `h` heads of rank ``m = R / h``. All heads act on every client;
    one of rank `r` trains the cores `H` of ``ceil(h r / R)`` heads in each layer and sends them.
    Each core becomes the mean over those who trained it, and keeps its value bit for bit if none
    did. A client of the highest rank sends ``h m^2 = R m`` numbers for a layer, in place of
    ``R (i + o)``. `H` begins at zero, `a` and `b` as random orthonormal directions.

    Args:
      spec: the adapted layers; `R` is the rank of all heads together.
      heads: how many there are; `R` must be divisible by it. 0: the largest number up to 4 that
        divides `R`.
      selection: the heads that a client trains, per layer: ``random``, or those of the largest
        ``||H_h||`` at the server. The paper's third rule, by the norm of gradients, needs another
        pass over the data and is left out.
      weights: of the mean.

    The paper also trains a number beside each core, ``s_h H_h``, which is multiplied into the core
    before it is sent and begins at 1 again in every round. It changes the steps of local training
    and not what can be learnt; here it stays 1.

    Raje et al., "Ravan: Multi-Head Low-Rank Adaptation for Federated Fine-Tuning",
    arXiv 2506.05568.

    Raises:
      InputError: a rank that cannot be divided by the heads.
    """
    count = heads or next(n for n in range(min(HEADS, spec.rank), 0, -1) if spec.rank % n == 0)
    if count < 0 or spec.rank % count:
        raise InputError(
            f"Method 'ravan' needs a number of heads that divides the rank {spec.rank}, got "
            f"{heads}; choose another one, or a rank that it divides."
        )
    rule = _Core(spec, count, "importance" if selection == "norm" else "random", weights, "random")
    return rule.method("ravan", paper="arXiv 2506.05568")


@checked_options
def fed_sb(spec: LoraSpec, *, bases: Bases = "kernel", weights: Weights = "uniform") -> Method:
    """Fed-SB: clients train and send an ``R x R`` core between two fixed factors.

    ``W + s a H b``: `H` is averaged, which is exact, and `R^2` numbers of a layer travel each way,
    whatever the size of the layer. All clients have one rank.

    Args:
      spec: the adapted layers.
      bases: `a` and `b` are the `R` leading singular vectors of the pretrained kernel (LoRA-XS), or
        random. In the paper they are those of the mean gradient of the full kernel on some 100
        examples, with its singular values as the first `H` (LoRA-SB); the server here has no
        examples, and begins with ``H = 0``.
      weights: of the mean. The released code weighs all clients alike.

    Singhal et al., "Fed-SB: A Silver Bullet for Extreme Communication Efficiency and Performance in
    (Private) Federated LoRA Fine-Tuning", arXiv 2502.15436.
    """
    method = _Core(spec, 1, "prefix", weights, bases).method("fed_sb", paper="arXiv 2502.15436")
    check = need_equal_ranks("fed_sb", "the heterogeneous method 'ravan'")
    return dataclasses.replace(method, check=check)


@dataclasses.dataclass(frozen=True)
class _Core:
    """The functions of both methods; the server's state is the fixed `a`, ``[(L,) i, R]``."""

    spec: LoraSpec
    heads: int
    selection: Selection
    weights: Weights
    bases: Bases

    @property
    def width(self) -> int:
        """The rank of a head."""
        return self.spec.rank // self.heads

    def method(self, name: str, *, paper: str) -> Method:
        """The method of these functions."""
        return Method(
            name=name,
            paper=paper,
            spec=self.spec,
            init=self.init,
            broadcast=self.broadcast,
            aggregate=self.aggregate,
            traffic=self.traffic,
            sends=LoRA(False, False),
        )

    def init(self, adapter: Adapter, kernels: Kernels) -> ServerState:
        """Fixed factors: singular vectors of an adapter that has been trained, or fresh ones.

        A core with the singular values on its diagonal is the product of a trained adapter.
        """
        fixed, begun = {}, {}
        for n, (path, pair) in enumerate(adapter.items()):
            a, b = (jnp.asarray(x) for x in pair)
            is_trained = jnp.any(b != 0)
            drawn = jax.random.normal(jax.random.fold_in(_key_of(a), n), b.shape)
            u, s, vt = linalg.svd(LoRA(a, jnp.where(is_trained, b, drawn)), self.spec.rank)
            if self.bases == "kernel":
                left, _, right = linalg.svd(linalg.as_product(kernels[path]), self.spec.rank)
                u, vt = jnp.where(is_trained, u, left), jnp.where(is_trained, vt, right)
            fixed[path] = LoRA(u, vt)
            begun[path] = LoRA(u * jnp.where(is_trained, s, 0.0)[..., None, :], vt)
        state = {path: pair.a for path, pair in only_adapted(self.spec, fixed).items()}
        return ServerState(only_adapted(self.spec, begun), {}, state)

    def broadcast(self, server: ServerState, clients: Any, cohort: Cohort) -> ClientInit:
        """All heads act, with the server's cores; each client trains some of the cores."""
        nothing = lora.spread(self.spec, jnp.zeros((cohort.rank.shape[0], self.spec.rank), bool))
        start = whole_start(self.spec, server, cohort, lora.factor_mask(nothing))
        factors, cores = {}, {}
        for path, (a, b) in start.adapter.items():
            factors[path] = LoRA(jnp.broadcast_to(server.state[path], a.shape), b)
            core = self._cores(server.state[path], server.adapter[path].a)
            cores[path] = jnp.broadcast_to(core, (a.shape[0], *core.shape))
        rows = self._trained(server, cohort)
        masks = rows if self.width == 1 else {path: x[..., None] for path, x in rows.items()}
        return start._replace(adapter=factors, coefficients=cores, trained_coefficients=masks)

    def _cores(self, fixed: Array, product: Array) -> Array:
        """The cores `H` of ``a H`` from both, ``[(L,) R, m]``; ``[(L,) R]`` of rank 1."""
        if self.width == 1:
            return jnp.sum(fixed * product, axis=-2)
        in_heads = lambda x: x.reshape(*x.shape[:-1], self.heads, self.width).swapaxes(-2, -3)  # noqa: E731
        blocks = linalg.matmul(in_heads(fixed).mT, in_heads(product))  # [(L,) h, m, m]
        return blocks.reshape(*blocks.shape[:-3], self.spec.rank, self.width)

    def _trained(self, server: ServerState, cohort: Cohort) -> Gain:
        """The components whose heads each client trains, ``bool[c, (L,) R]`` per path."""
        size = {
            path: jnp.linalg.norm(a.reshape(*a.shape[:-1], self.heads, self.width), axis=(-3, -1))
            for path, (a, _) in server.adapter.items()
        }
        few = cohort._replace(rank=-(-cohort.rank * self.heads // self.spec.rank))
        chosen = chosen_modules(self.spec, size, few, selection=self.selection, indices="layer")
        return {path: jnp.repeat(mask, self.width, axis=-1) for path, mask in chosen.items()}

    def aggregate(
        self, server: ServerState, clients: Any, cohort: Cohort, start: ClientInit, result: Adapter
    ) -> AggregateResult:
        """The mean of ``a H`` over those who trained a head, which is ``a`` times the mean core."""
        rows = {path: self._rows(mask) for path, mask in dict(start.trained_coefficients).items()}
        mean = mean_of_trained(server, cohort, rows, result, self.weights)
        adapter = {path: LoRA(pair.a, server.adapter[path].b) for path, pair in mean.items()}
        return AggregateResult(server._replace(adapter=adapter), clients, cohort.rank)

    def _rows(self, mask: Array) -> Array:
        return mask if self.width == 1 else mask[..., 0]

    def traffic(self, server: ServerState, rank: np.ndarray, round: int) -> Traffic:
        """The trained cores up, all cores down; `a` and `b` follow from the seed and the base."""
        count = -(-rank.astype(np.int64) * self.heads // self.spec.rank)
        head = self.width**2 * self.spec.matrices * FLOAT_BYTES
        index = count * (self.spec.matrices * INDEX_BYTES if self.selection == "random" else 0)
        if self.heads == 1:
            index = np.zeros_like(count)
        down = np.full_like(count, self.heads * head)
        return Traffic(up=count * head + index, down=down, exact=index, factors=1)


def _key_of(a: Array) -> Key:
    """A random key from an adapter that was drawn from a run's own key."""
    bits = jax.lax.bitcast_convert_type(jnp.max(jnp.abs(a)).astype(jnp.float32), jnp.uint32)
    return jax.random.key(bits)
