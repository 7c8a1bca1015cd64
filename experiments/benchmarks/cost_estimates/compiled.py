"""XLA's memory analysis of a compiled round, from shapes only."""

from typing import Any

import jax

from fedjax_lora import federated, models
from fedjax_lora.core import trees
from fedjax_lora.runs import build, compilation
from fedjax_lora.runs.choices import resolve
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.loading import Assets, execution_of
from fedjax_lora.runs.setup import set_up


def compiled_bytes(config: RunConfig, assets: Assets) -> int:
    """Peak bytes of the compiled round of a run.

    Args:
      config: the run; heads are averaged.
      assets: its data and model, whose parameters may be shapes alone.
    """
    setup = set_up(config, resolve(config), assets, execution_of(config))
    federation = build.make_federation(config, assets, setup)
    round_spec, spec = build.make_round_spec(config, assets, setup), setup.method.spec
    kernels = trees.flat(assets.model.params)
    state = jax.eval_shape(
        lambda *given: federated.init_state(
            setup.method, *given, clients=config.federation.clients, heads="average"
        ),
        spec.shapes(),
        {s.path: kernels[f"{s.path}/kernel"] for s in spec.targets},
        assets.model.params["head"],
    )
    plan = federation.plan(0, setup.allocation.ranks, 1e-3)
    base = frozen_shapes(assets.model)
    lowered = compilation.build_round(round_spec).lower(
        base, assets.train, state, plan, jax.random.key(0)
    )
    found: Any = lowered.compile().memory_analysis()
    return (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        + found.temp_size_in_bytes
        - found.alias_size_in_bytes
    )


def frozen_shapes(model: models.Pretrained) -> dict[str, Any]:
    """`fedjax_lora.models.frozen_base` of a model whose parameters are shapes."""
    base = {name: part for name, part in model.params.items() if name != "head"}
    if not models.has_split_layers(model.config):
        return base

    def parts(path: str, x: Any) -> Any:
        if not models.is_stacked(model.config, path):
            return x
        return tuple(jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for _ in range(x.shape[0]))

    return trees.nested({path: parts(path, x) for path, x in trees.flat(base).items()})
