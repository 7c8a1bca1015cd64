"""Write all generated blocks of the README and the documentation.

Run it with ``python -m experiments.tools.write_docs``.

Each block stands between two comments on one or more pages, see `experiments.tools.markdown`.
"""

from collections.abc import Callable, Mapping

import experiments.benchmarks.aggregation.report as aggregation
import experiments.benchmarks.cohort.report as cohort
import experiments.benchmarks.compilation.report as compilation
import experiments.benchmarks.cost_estimates.report as cost_estimates
import experiments.benchmarks.end_to_end.report as end_to_end
import experiments.benchmarks.quantized_base.report as quantized_base
import experiments.benchmarks.scaling.report as scaling
import experiments.benchmarks.targets.report as targets
import experiments.robustness.attacks.report as attacks
import experiments.robustness.deployment.report as deployment
import experiments.robustness.fuzz.report as fuzz
import experiments.robustness.huggingface_parity.report as huggingface_parity
import experiments.robustness.interruptions.report as interruptions
import experiments.robustness.malformed_input.report as malformed_input
import experiments.studies.ag_news.report as ag_news
import experiments.studies.instruction_tuning.report as instruction_tuning
import experiments.studies.noise.report as noise
from experiments.tools import (
    former_partitions,
    methods_table,
    option_tables,
    readme_demo,
    readme_own_model,
    write_reports,
)
from experiments.tools.markdown import put

BLOCKS: Mapping[str, Callable[[], str]] = {
    "ag_news": ag_news.table,
    "aggregation": aggregation.table,
    "attacks": attacks.table,
    "aggregation_sweep": aggregation.sweep_table,
    "checkpoint_cost": interruptions.cost,
    "cohort": cohort.table,
    "cohort_profile": cohort.profile_table,
    "compilation": compilation.table,
    "demo": readme_demo.block,
    "deployment": deployment.table,
    "cost_estimates": cost_estimates.table,
    "former_partitions": former_partitions.table,
    "fuzz": fuzz.table,
    "interruptions": interruptions.table,
    "instruction_tuning": instruction_tuning.table,
    "malformed_input": malformed_input.sentence,
    "methods": methods_table.table,
    "methods_short": methods_table.short_table,
    "noise": noise.table,
    "fed_plora_vs_flexlora": write_reports.fed_plora_vs_flexlora,
    "own_model": readme_own_model.sentence,
    "families": huggingface_parity.families_table,
    "huggingface_parity": huggingface_parity.table,
    "reruns": write_reports.overview,
    "scaling": scaling.table,
    "scaling_federation": scaling.federation_table,
    "targets": targets.block,
    "target_scaling": targets.table,
    "quantized_base": quantized_base.table,
    "end_to_end": end_to_end.table,
    "end_to_end_padding": end_to_end.padding,
    **option_tables.BLOCKS,
}
"""The text of every block by its name."""


def main() -> None:
    """Write all blocks from the result files and the registry."""
    for name, text in BLOCKS.items():
        put(name, text())


if __name__ == "__main__":
    main()
