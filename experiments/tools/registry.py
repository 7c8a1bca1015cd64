"""All reruns, in the order in which they are run: the open question first."""

from experiments.papers.byun_lee import STUDY as BYUN_LEE
from experiments.papers.fed_plora import STUDY as FED_PLORA
from experiments.papers.fed_plora_vs_flexlora import STUDY as OPEN_QUESTION
from experiments.papers.hlora import STUDY as HLORA

STUDIES = (OPEN_QUESTION, BYUN_LEE, FED_PLORA, HLORA)
