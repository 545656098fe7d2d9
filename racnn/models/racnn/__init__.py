"""The first family: RA-CNN itself."""

from typing import Any

from racnn.errors import ConfigError, did_you_mean
from racnn.models.family import Family
from racnn.models.phase import Phase
from racnn.models.racnn.model import RACNN
from racnn.models.racnn.phases import PHASES
from racnn.models.racnn.schedules import SCHEDULES
from racnn.ops.crop import SAMPLERS
from racnn.sections import ModelConfig


def build(config: ModelConfig, *, num_classes: int, weights: bool) -> RACNN:
    """Return the network that the model section describes; without its weights where ``weights`` is False."""
    if config.sampler not in SAMPLERS:
        raise ConfigError(
            f"model.sampler: no sampler is called '{config.sampler}'{did_you_mean(config.sampler, SAMPLERS)}; "
            f"expected {', '.join(SAMPLERS)}"
        )
    options = config.model_dump(exclude={"family", "weights", "bounds"})
    return RACNN(
        num_classes=num_classes,
        weights=config.weights if weights else None,
        bounds=config.region_bounds(),
        **options,
    )


FAMILY = Family(config=ModelConfig, build=build, phases=PHASES, schedules=SCHEDULES, example="quick.yaml")


def make_phase(**values: Any) -> Phase:
    """Return a phase with its scales as they are given."""
    return PHASES[values["kind"]].model_validate(values)
