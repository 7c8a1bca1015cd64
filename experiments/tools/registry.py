"""The paper studies, in execution order."""

from experiments.papers.byun_lee import STUDY as BYUN_LEE
from experiments.papers.fed_plora import STUDY as FED_PLORA
from experiments.papers.fed_plora_vs_flexlora import STUDY as FED_PLORA_VS_FLEXLORA
from experiments.papers.hlora import STUDY as HLORA

STUDIES = (FED_PLORA_VS_FLEXLORA, BYUN_LEE, FED_PLORA, HLORA)
