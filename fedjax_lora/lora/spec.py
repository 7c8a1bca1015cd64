"""Where adapters go: the layers of a model that are adapted, and their common scale."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError, raise_all, unknown
from fedjax_lora.core.types import Adapter, Array, LoRA

PRESETS: Mapping[str, str] = {
    "attention-qv": r"/(query|value|q_proj|v_proj)$",
    "attention": r"/(query|key|value|q_proj|k_proj|v_proj|o_proj)$|/attention/output$",
    "all-linear": r"(^|/)layers?/",
}
"""Friendly names for path patterns: query and value; all four of attention; every linear layer."""

SCALES: Mapping[str, Any] = {
    "alpha/R": lambda alpha, rank, most: alpha / most,
    "alpha/r": lambda alpha, rank, most: alpha / rank,
    "alpha/sqrt(R)": lambda alpha, rank, most: alpha / most**0.5,
    "alpha/sqrt(r)": lambda alpha, rank, most: alpha / rank**0.5,
}
"""What an adapter's product is multiplied by, from `alpha`, the client's rank and the maximum.

`alpha/R` (the default) is one number for the whole federation, so that a component means the same
on every client. `alpha/r` is PEFT's rule applied by each client for itself, `alpha/sqrt(R)` is
rsLoRA (arXiv 2312.03732), `alpha/sqrt(r)` is rsLoRA applied by each client for itself.
"""


@dataclasses.dataclass(frozen=True)
class LoraTarget:
    """One adapted kernel, or a stack of them."""

    path: str  # path of the layer, without "/kernel"
    inputs: int  # i
    outputs: int  # o
    layers: tuple[bool, ...] | None = None  # per stacked layer: adapted or not; None: no stack

    @property
    def stack(self) -> tuple[int, ...]:
        """The leading axes of the site's arrays: ``(L,)``, or ``()`` without a stack."""
        return () if self.layers is None else (len(self.layers),)

    @property
    def adapted(self) -> int:
        """How many kernels are adapted here."""
        return 1 if self.layers is None else sum(self.layers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """The sites of a model, the stored rank `R`, and the rule for the scale."""

    targets: tuple[LoraTarget, ...]
    rank: int
    alpha: float
    scale_rule: str = "alpha/R"

    def scale(self, rank: Any) -> Any:
        """The multiplier of an adapter of this rank (a number, or an array of ranks)."""
        if isinstance(rank, jax.Array):
            rank = rank.astype(jnp.float32)
        return SCALES[self.scale_rule](self.alpha, rank, self.rank)

    @property
    def server_scale(self) -> float:
        """The multiplier of the global adapter, which has all `R` components."""
        return float(self.scale(self.rank))

    @property
    def matrices(self) -> int:
        """How many kernels are adapted."""
        return sum(s.adapted for s in self.targets)

    @property
    def factor_sizes(self) -> LoRA:
        """Numbers in one component of each factor over all sites, the sums of ``layers * i, o``."""
        return LoRA(
            sum(s.adapted * s.inputs for s in self.targets),
            sum(s.adapted * s.outputs for s in self.targets),
        )

    @property
    def component_size(self) -> int:
        """Numbers in one component over all sites: the sum of ``layers * (i + o)``."""
        return sum(self.factor_sizes)

    def shapes(self) -> Adapter:
        """The adapter tree as `jax.ShapeDtypeStruct` leaves (float32)."""
        struct = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
        return {
            s.path: LoRA(
                struct(*s.stack, s.inputs, self.rank), struct(*s.stack, self.rank, s.outputs)
            )
            for s in self.targets
        }

    def layer_mask(self, target: LoraTarget) -> Array:
        """Which layers of a site are adapted, ``bool[L, 1]`` (``bool[1]`` without a stack)."""
        return jnp.asarray([True] if target.layers is None else np.array(target.layers)[:, None])


def make_spec(
    params: Mapping[str, Any],
    *,
    targets: str | Sequence[str] = "attention-qv",
    rank: int,
    alpha: float | None = None,
    scale: str = "alpha/R",
    layers: Sequence[int] | None = None,
    stacked: str = r"(^|/)layers(/|$)",
) -> LoraSpec:
    """Choose the kernels to adapt by path.

    Args:
      params: the base parameters; kernels are leaves named ``kernel``, ``[i, o]`` or ``[L, i, o]``.
      targets: a name of `PRESETS`, or a regular expression (or several) searched in the
        ``/``-joined path of the layer.
      rank: the stored rank `R`, the highest any client may have.
      alpha: numerator of the scale; `R` by default, hence a scale of 1 under ``alpha/R``.
      scale: a name of `SCALES`.
      layers: adapt only these layers of a stack (counted from 0); all by default.
      stacked: paths whose kernels carry a leading layer axis.

    Raises:
      InputError: nothing matches, a matched kernel is not a matrix, the rank is below 1 or above
        a matched kernel's smaller side, a layer index is out of range, no layer is left, alpha is
        not positive, an unknown scale.

    >>> params = {"mlp": {"kernel": jnp.zeros((6, 3)), "bias": jnp.zeros(3)}}
    >>> make_spec(params, targets="mlp", rank=2).targets
    (LoraTarget(path='mlp', inputs=6, outputs=3, layers=None),)
    """
    if scale not in SCALES:
        raise unknown("scale rule", scale, SCALES)
    kernels = {
        path.removesuffix("/kernel"): leaf.shape
        for path, leaf in trees.flat(params).items()
        if path.endswith("/kernel")
    }
    wanted = _patterns(targets)
    matched = {p: shape for p, shape in kernels.items() if any(w.search(p) for w in wanted)}
    if not matched:
        raise InputError(
            f"Targets {targets!r} match no layer; presets: {', '.join(PRESETS)}; "
            f"layers of this model: {', '.join(kernels)}."
        )
    found = tuple(_target(path, shape, stacked, layers) for path, shape in sorted(matched.items()))
    _check_rank(found, rank)
    if not any(target.adapted for target in found):
        raise InputError("LoRA layers=[] leaves no layer to adapt; leave it out to adapt all.")
    alpha = float(rank if alpha is None else alpha)
    if not alpha > 0:
        raise InputError(f"LoRA alpha must be above 0, got {alpha:g}.")
    return LoraSpec(targets=found, rank=rank, alpha=alpha, scale_rule=scale)


def _patterns(targets: str | Sequence[str]) -> list[re.Pattern[str]]:
    texts = [targets] if isinstance(targets, str) else list(targets)
    try:
        return [re.compile(PRESETS.get(text, text)) for text in texts]
    except re.error as error:
        raise InputError(f"Targets {targets!r} hold a bad regular expression: {error}.") from error


def _target(path: str, shape: tuple, stacked: str, layers: Sequence[int] | None) -> LoraTarget:
    has_stack = re.search(stacked, path) is not None and len(shape) == 3
    if len(shape) != 2 + has_stack:
        raise InputError(
            f"Target {path} has a kernel of shape {tuple(shape)}; adapters need a matrix [i, o], "
            "or [L, i, o] for stacked layers."
        )
    chosen = None
    if has_stack:
        depth = shape[0]
        picked = range(depth) if layers is None else layers
        if bad := [x for x in picked if not 0 <= x < depth]:
            raise InputError(
                f"Layers {bad} do not exist in {path}, which has layers 0..{depth - 1}."
            )
        chosen = tuple(x in picked for x in range(depth))
    return LoraTarget(path, int(shape[-2]), int(shape[-1]), chosen)


def _check_rank(targets: Sequence[LoraTarget], rank: int) -> None:
    if rank < 1:
        raise InputError(f"LoRA rank must be at least 1, got {rank}.")
    raise_all(
        f"LoRA rank {rank} exceeds what a layer can have",
        [
            f"{s.path} is {s.inputs} x {s.outputs}"
            for s in targets
            if rank > min(s.inputs, s.outputs)
        ],
    )


def parameter_count(spec: LoraSpec, rank: int) -> int:
    """Trainable numbers of an adapter of this rank.

    >>> target = LoraTarget("layers/query", 768, 768, (True,) * 18)  # Byun & Lee's DistilBERT
    >>> spec = LoraSpec(targets=(target,), rank=20, alpha=20.0)
    >>> [parameter_count(spec, r) for r in (5, 7, 20)]
    [138240, 193536, 552960]
    """
    return rank * spec.component_size
