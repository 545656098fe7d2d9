"""The order of training: phases are data, the alternation is a generator. No torch here."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from racnn.config import AlternationConfig, Config, PhaseConfig


@dataclass(frozen=True)
class Phase:
    """One phase about to run.

    Attributes:
        position: How many phases ran before.
        config: What it does.
        scales: The scales, or regions, it trains, counted from 1; never empty but for ``fusion``.
    """

    position: int
    config: PhaseConfig
    scales: tuple[int, ...]

    @property
    def name(self) -> str:
        """Return a short name for logs, such as ``03-classification_2``."""
        return "_".join([f"{self.position + 1:02d}-{self.config.kind}", *map(str, self.scales)])

    def scales_to_run(self, num_scales: int) -> int:
        """Return how many scales a training step of this phase has to run."""
        if self.config.kind == "fusion":
            return num_scales
        return max(self.scales) + (self.config.kind == "ranking")

    def looks_alone(self) -> bool:
        """Return whether a finer scale learns alone, so that all that decides where it looks is frozen."""
        return self.config.kind == "classification" and len(self.scales) == 1 and self.scales[0] > 1

    def noise_per_photo(self) -> int:
        """Return how many random numbers a training step of this phase needs of each photo, three a region at a time."""
        config = self.config
        if config.kind == "classification" and config.jitter > 0:
            return 3 * (max(self.scales) - 1)
        if config.kind == "ranking" and config.gradient == "smoothed":
            return 3 * config.pairs * len(self.scales)
        return 0


def walk(config: Config) -> Generator[Phase, bool, None]:
    """Yield the phases in order; send back whether the phase just run changed the network.

    An alternation goes round until a whole round changed nothing, the paper's "until neither changes", or its rounds
    are over.
    """
    position = 0
    for entry in config.schedule:
        rounds, phases = (
            (entry.rounds, entry.alternate) if isinstance(entry, AlternationConfig) else (1, (entry,))
        )
        for _ in range(rounds):
            changed = False
            for phase in phases:
                changed |= yield Phase(position, phase, _resolve(phase, config.model.num_scales))
                position += 1
            if not changed:
                break


def upcoming(config: Config, outcomes: Sequence[bool]) -> Phase | None:
    """Return the phase that follows after phases with these outcomes, or None when training is over."""
    generator = walk(config)
    try:
        phase = next(generator)
        for changed in outcomes:
            phase = generator.send(changed)
    except StopIteration:
        return None
    return phase


def _resolve(phase: PhaseConfig, num_scales: int) -> tuple[int, ...]:
    if phase.scales or phase.kind == "fusion":
        return phase.scales
    last = num_scales if phase.kind == "classification" else num_scales - 1
    return tuple(range(1, last + 1))
