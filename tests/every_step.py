"""Every kind of training step that behaves differently: kind of phase, its scales, what else is set."""

import torch

PHASES = [
    ("classification", (1, 2, 3), {}),
    ("classification", (2,), {}),
    ("cross_fit", (1, 2, 3), {}),
    ("cross_fit", (1, 2, 3), {"hold_norm": False, "mirrored": True}),
    ("apn_init", (1,), {}),
    ("apn_init", (2,), {"target": "peak"}),
    ("ranking", (1, 2), {"gradient": "exact"}),
    ("ranking", (1, 2), {"gradient": "mask"}),
    ("ranking", (1, 2), {"gradient": "energy"}),
    ("ranking", (1, 2), {"gradient": "smoothed", "compare": "log_prob"}),
    ("localise", (1, 2), {}),
    ("fusion", (), {}),
]


class HeadsAndViews:
    """What a cross_fit phase asks for before its first epoch, made up."""

    def __init__(self, model, num_photos, side):
        self.model = model
        generator = torch.Generator().manual_seed(0)
        like = model.classifiers[0].weight
        weight = torch.rand((model.num_scales, 6, *like.shape), generator=generator).to(like.device)
        self.state = {
            "folds": torch.zeros(num_photos, dtype=torch.int64, device=like.device),
            "weight": weight,
            "bias": weight[..., 0],
            "region": torch.zeros(model.num_scales, num_photos, 3),
        }
        self.views = torch.rand(num_photos, 3, side, side, generator=generator)
        self.stored = {}

    def store(self, name, *_, **__):
        self.stored[name] = self.views
        return self.views


def stored_views(phase, model, num_photos, side):
    """Give a phase of the kind cross_fit some heads, as a run does before its first epoch; return what batches then hold."""
    if phase.kind != "cross_fit":
        return {}
    context = HeadsAndViews(model, num_photos, side)
    phase.take_up(context, context.state)
    return context.stored
