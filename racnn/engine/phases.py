"""The order of training: phases are data, the alternation is a generator."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from racnn.config import AlternationConfig, Config
from racnn.models.phase import Phase


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
                changed |= yield phase.resolved(config.model.num_scales, position)
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
