"""What phases that train the backbones of scales have in common."""

from __future__ import annotations

from pydantic import Field

from racnn.models.phase import GradientPhase, PhaseContext


class ScalePhase(GradientPhase):
    """Train the backbones of scales; the finer ones on views whose regions are jittered, as a region is never perfect."""

    init_from: int | None = Field(None, ge=1, description="start from this scale's backbone and classifier")
    label_smoothing: float = Field(0.1, ge=0.0, lt=1.0)
    jitter: float = Field(1.0, ge=0.0, description="strength of the random shifts of the regions; 0: none")
    hold_norm: bool = Field(False, description="leave the statistics of batch norm as they were loaded")

    def begin(self, context: PhaseContext) -> None:
        for scale in self.scales if self.init_from is not None else ():
            if scale != self.init_from:
                context.model.copy_scale(self.init_from, scale)

    def score_names(self, num_scales: int) -> list[str]:
        return [f"scale_{scale}" for scale in self.scales]

    def holds_norm(self) -> bool:
        return self.hold_norm

    def last_trained_scale(self) -> int:
        return max(self.scales)

    def idle_keys(self, num_scales: int) -> dict[str, str]:
        idle = super().idle_keys(num_scales)
        scales = self.scales or tuple(range(1, num_scales + 1))
        if scales == (1,):
            idle["jitter"] = "the finer scales and does nothing at scale 1, which sees the whole photo"
        if scales == (self.init_from,):
            idle["init_from"] = f"other scales: scale {self.init_from} would start from itself"
        return idle

    def named_scales(self) -> tuple[int, ...]:
        return (*self.scales, self.init_from or 1)
