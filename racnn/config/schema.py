"""A configuration as a whole: its sections, and the schedule of a model family's phases."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from racnn.models.phase import Phase
from racnn.models.racnn.phases import AnyPhase
from racnn.sections import DataConfig, ModelConfig, RunConfig, Section


class AlternationConfig(Section):
    """Phases repeated in turn until none of them is kept or ``rounds`` are over."""

    alternate: tuple[AnyPhase, ...] = Field(..., min_length=1)
    rounds: int = Field(1, ge=1)


def _tag(entry: Any) -> str:
    alternation = "alternate" in entry if isinstance(entry, dict) else isinstance(entry, AlternationConfig)
    return "alternation" if alternation else "phase"


ScheduleEntry = Annotated[
    Annotated[AnyPhase, Tag("phase")] | Annotated[AlternationConfig, Tag("alternation")], Discriminator(_tag)
]


class Config(Section):
    """Everything a run depends on."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    schedule: tuple[ScheduleEntry, ...] = Field(..., min_length=1)

    @model_validator(mode="after")
    def _held_out_photos_are_there(self) -> Config:
        asked = any(phase.photos == "held_out" for phase in self.phases())
        if asked and not self.data.held_out_fraction:
            raise ValueError("schedule: a phase with photos held_out needs data.held_out_fraction above 0")
        return self

    @model_validator(mode="after")
    def _phases_fit_the_network(self) -> Config:
        for phase in self.phases():
            for problem in phase.misfits(self.model):
                raise ValueError(f"schedule: {problem}")
        return self

    def phases(self) -> list[Phase]:
        """Return every phase once, in the order of the schedule."""
        return list(self.phases_by_key().values())

    def phases_by_key(self) -> dict[str, Phase]:
        """Return every phase once, by its dotted key, such as ``schedule.5.alternate.0``."""
        phases: dict[str, Phase] = {}
        for number, entry in enumerate(self.schedule):
            key = f"schedule.{number}"
            if isinstance(entry, AlternationConfig):
                phases |= {f"{key}.alternate.{i}": phase for i, phase in enumerate(entry.alternate)}
            else:
                phases[key] = entry
        return phases
