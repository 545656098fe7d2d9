"""Every kind of training step that behaves differently: kind of phase, its scales, what else is set."""

import torch

PHASES = [
    ("classification", (1, 2, 3), {}),
    ("classification", (2,), {}),
    ("cross_fit", (1,), {}),
    ("cross_fit", (2,), {"hold_norm": True}),
    ("apn_init", (1,), {}),
    ("apn_init", (2,), {"target": "peak"}),
    ("ranking", (1, 2), {"gradient": "exact"}),
    ("ranking", (1, 2), {"gradient": "mask"}),
    ("ranking", (1, 2), {"gradient": "energy"}),
    ("ranking", (1, 2), {"gradient": "smoothed", "compare": "log_prob"}),
    ("fusion", (), {}),
]


def give_heads(phase, model, num_photos):
    """Give a phase of the kind cross_fit some heads, as a run does before its first epoch."""
    if phase.kind != "cross_fit":
        return
    like = model.classifiers[0].weight
    weight = torch.rand((6, *like.shape), generator=torch.Generator().manual_seed(0)).to(like.device)
    folds = torch.zeros(num_photos, dtype=torch.int64, device=like.device)
    phase.take_up({"folds": folds, "weight": weight, "bias": weight[:, :, 0]})
