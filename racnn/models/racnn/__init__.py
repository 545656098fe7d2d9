"""The first family: RA-CNN itself."""

from racnn.models.family import Family
from racnn.models.racnn.model import build
from racnn.models.racnn.phases import PHASES
from racnn.models.racnn.schedules import SCHEDULES
from racnn.sections import ModelConfig

FAMILY = Family(config=ModelConfig, build=build, phases=PHASES, schedules=SCHEDULES)
