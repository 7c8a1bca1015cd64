"""XLA's memory analysis of a compiled round, from shapes only."""

from fedjax_lora.runs import cost
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.cost.ahead import lower_round, usage_of
from fedjax_lora.runs.loading import Assets


def compiled_bytes(config: RunConfig, assets: Assets) -> int:
    """Peak bytes of the compiled round of a run, its code left out.

    Args:
      config: the run.
      assets: its data and model, whose parameters may be shapes alone.
    """
    usage = usage_of(lower_round(cost.outline_run(config, assets)).compile())
    return usage.total - usage.code
