"""What a phase changes and how: everything else is frozen, and the optimizer knows only this."""

from __future__ import annotations

import torch
from torch import nn

from racnn.models.phase import Phase


def train_only(model: nn.Module, phase: Phase) -> None:
    """Freeze the network but for what the phase trains: no gradients elsewhere, batch norm statistics still."""
    trunks, heads = phase.trained(model)
    model.requires_grad_(False)
    model.zero_grad(set_to_none=True)  # what the phase before left takes memory
    model.eval()
    model.training = True  # the flag of the root alone, which the steps read
    for module in (*trunks, *heads):
        module.requires_grad_(True)
        module.train()


def build_optimizer(model: nn.Module, phase: Phase) -> torch.optim.Optimizer:
    """Return a fresh optimizer over what the phase trains; each group remembers its base rate as ``base_lr``."""
    trunks, heads = phase.trained(model)
    groups = []
    for modules, factor in ((trunks, 1.0), (heads, phase.head_factor())):
        parameters = [p for module in modules for p in module.parameters()]
        if parameters:
            groups.append({"params": parameters, "base_lr": phase.lr * factor, "lr": phase.lr * factor})
    fused = next(model.parameters()).is_cuda  # one kernel for all parameters
    if phase.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=phase.weight_decay, fused=fused)
    nesterov = phase.momentum > 0
    return torch.optim.SGD(
        groups, momentum=phase.momentum, weight_decay=phase.weight_decay, nesterov=nesterov, fused=fused
    )
