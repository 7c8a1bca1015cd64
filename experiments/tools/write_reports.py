"""Write the READMEs of all paper studies from their result files.

Run it with ``python -m experiments.tools.write_reports``.
"""

import collections

from experiments.papers.byun_lee.report import REPORT as BYUN_LEE
from experiments.papers.fed_plora.report import REPORT as FED_PLORA
from experiments.papers.fed_plora_vs_flexlora.differences import outcome
from experiments.papers.fed_plora_vs_flexlora.report import REPORT as FED_PLORA_VS_FLEXLORA
from experiments.papers.hlora.report import REPORT as HLORA
from experiments.tools.claims import NOT_REPRODUCED, NOT_RUN, REPRODUCED, UNTESTABLE
from experiments.tools.markdown import as_table, put
from experiments.tools.report import publish
from experiments.tools.study import distinct, results

REPORTS = (FED_PLORA_VS_FLEXLORA, BYUN_LEE, FED_PLORA, HLORA)
VERDICTS = (REPRODUCED, NOT_REPRODUCED, UNTESTABLE, NOT_RUN)


def overview() -> str:
    """Tabulate the small runs of every study and the verdicts on its paper's claims."""
    columns = [
        "study",
        "runs finished",
        "processor hours",
        *(f"claims {verdict}" for verdict in VERDICTS),
    ]
    lines = []
    for report in REPORTS:
        found = results(report.study, "small")
        cells = [cell.config for cell in distinct(found.parts.values())]
        finished = [found.records[config] for config in cells if config in found.records]
        hours = sum(record["summary"]["processor_seconds"] for record in finished) / 3600
        counted = collections.Counter(claim.find(found).verdict for claim in report.claims)
        name = report.study.name
        row = [f"[{name}](pages/{name}.md)", f"{len(finished)} of {len(cells)}"]
        row.append(f"{hours:.1f}")
        row += [str(counted[verdict]) if report.claims else "-" for verdict in VERDICTS]
        lines.append(row)
    return as_table(columns, lines)


def fed_plora_vs_flexlora() -> str:
    """Whether Fed-PLoRA is above FlexLoRA, from the small runs."""
    return outcome(results(FED_PLORA_VS_FLEXLORA.study, "small"))


if __name__ == "__main__":
    for report in REPORTS:
        publish(report)
    put("reruns", overview())
    put("fed_plora_vs_flexlora", fed_plora_vs_flexlora())
