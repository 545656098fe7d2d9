"""Its only kind of phase: everything learns at once."""

from typing import Literal

from torch.nn import functional as F

from racnn.models.phase import GradientPhase


class Together(GradientPhase):
    """Minimise the sum of the two cross entropies."""

    kind: Literal["together"]

    def trained(self, model):
        return [model], []

    def losses(self, model, batch, class_weights=None):
        output = model(batch["image"])
        each = {f"look_{i}": F.cross_entropy(x, batch["label"]) for i, x in enumerate(output.logits, start=1)}
        return {**each, "loss": sum(each.values())}

    def score_names(self, num_scales):
        return [f"scale_{scale}" for scale in range(1, num_scales + 1)]

    def last_trained_scale(self):
        return max(self.scales)


PHASES = {"together": Together}
SCHEDULES = {"recipe": lambda sizes: [{"kind": "together", "epochs": 2, "lr": 0.01}]}
