"""Find what a configuration asks for in vain: keys and phases that are valid where they stand and would change nothing.

A user is told of them. A stored configuration may hold them, so that what one version wrote the next one reads.
"""

from __future__ import annotations

from racnn.config.schema import Config, PhaseConfig


def idle_requests(config: Config) -> list[str]:
    """Return one line for each key that was set, and each phase, that would do nothing, with its dotted path."""
    lines = []
    every = set(range(1, config.model.num_scales + 1))
    trained: set[int] = set()
    for path, phase in config.phases_by_key().items():
        if phase.kind == "classification":
            trained |= set(phase.scales) or every
        if phase.kind == "fusion" and trained != every:
            missing = ", ".join(map(str, sorted(every - trained)))
            lines.append(
                f"{path}: fusion joins all scales, and no classification phase before it trains {missing}"
            )
        reasons = phase.idle_keys() | _idle_on_scale_1(phase, config.model.num_scales)
        lines += [f"{path}: '{key}' belongs to {why}" for key, why in reasons.items() if _was_set(phase, key)]
    if config.data.held_out_fraction and not any(phase.photos == "held_out" for phase in config.phases()):
        lines.append("data.held_out_fraction: no phase of the schedule has photos held_out to use them")
    return lines


def _idle_on_scale_1(phase: PhaseConfig, num_scales: int) -> dict[str, str]:
    scales = phase.scales or tuple(range(1, num_scales + 1))
    if phase.kind != "classification" or len(scales) > 1:
        return {}
    idle = {}
    if scales == (1,):
        idle["jitter"] = "the finer scales and does nothing at scale 1, which sees the whole photo"
    if scales == (phase.init_from,):
        idle["init_from"] = f"other scales: scale {phase.init_from} would start from itself"
    return idle


def _was_set(phase: PhaseConfig, key: str) -> bool:
    return bool(getattr(phase, key) != PhaseConfig.model_fields[key].default)
