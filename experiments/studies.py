"""All reruns, in the order in which they are run: the open question first."""

from experiments.byun_lee import STUDY as BYUN_LEE
from experiments.fed_plora import STUDY as FED_PLORA
from experiments.hlora import STUDY as HLORA
from experiments.open_question import STUDY as OPEN_QUESTION

STUDIES = (OPEN_QUESTION, BYUN_LEE, FED_PLORA, HLORA)
