"""The READMEs of all reruns from their result files: ``python -m experiments.reports``."""

from experiments.byun_lee.report import REPORT as BYUN_LEE
from experiments.fed_plora.report import REPORT as FED_PLORA
from experiments.hlora.report import REPORT as HLORA
from experiments.open_question.report import REPORT as OPEN_QUESTION
from experiments.telling import publish

REPORTS = (OPEN_QUESTION, BYUN_LEE, FED_PLORA, HLORA)

if __name__ == "__main__":
    for report in REPORTS:
        publish(report)
