"""Find what a configuration asks for in vain: keys and phases that are valid where they stand and would change nothing.

A user is told of them. A stored configuration may hold them, so that what one version wrote the next one reads.
"""

from __future__ import annotations

from racnn.config.schema import Config
from racnn.models.phase import Phase


def idle_requests(config: Config) -> list[str]:
    """Return one line for each key that was set, and each phase, that would do nothing, with its dotted path."""
    lines = []
    num_scales = config.model.num_scales
    trained_scales: set[int] = set()
    for path, phase in config.phases_by_key().items():
        run = phase.resolved(num_scales)
        if run.last_trained_scale():
            trained_scales |= set(run.scales)
        missing = sorted(set(range(1, num_scales + 1)) - trained_scales)
        if phase.trains_fusion and missing:
            named = ", ".join(map(str, missing))
            lines.append(
                f"{path}: fusion joins all scales, and no classification phase before it trains {named}"
            )
        reasons = phase.idle_keys(num_scales)
        lines += [f"{path}: '{key}' belongs to {why}" for key, why in reasons.items() if _was_set(phase, key)]
    if config.data.held_out_fraction and not any(phase.photos == "held_out" for phase in config.phases()):
        lines.append("data.held_out_fraction: no phase of the schedule has photos held_out to use them")
    return lines


def _was_set(phase: Phase, key: str) -> bool:
    return bool(getattr(phase, key) != type(phase).model_fields[key].default)
