"""One step function per kind of phase: a batch in, named losses out. And what each kind may change.

That of ``ranking`` is in :mod:`racnn.engine.ranking`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from racnn.engine.phases import Phase
from racnn.engine.pseudo_boxes import target_region
from racnn.engine.ranking import Batch, ranking_step
from racnn.models import RACNN
from racnn.models.racnn import losses
from racnn.ops.regions import bounding_region, jitter


def classification_step(
    model: RACNN, batch: Batch, phase: Phase, class_weights: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the classification losses of the phase's scales, on views that were cut with jittered regions.

    A batch with ``pseudo_box`` brings along where its photos' views of the only scale that is trained lie, see
    :func:`racnn.engine.pseudo_boxes.read_places`; the coarser scales are then not run.
    """
    noise = None
    if model.training and phase.noise_per_photo():
        noise = phase.config.jitter * (2.0 * batch["noise"] - 1.0).unflatten(1, (-1, 3))
    if phase.looks_alone() and "pseudo_box" in batch:
        (scale,) = phase.scales
        source = model.normalise(batch["image"])
        place = bounding_region(batch["pseudo_box"])  # moved inside where a random crop cuts it off
        if noise is not None:
            place = jitter(place, noise[:, -1])
        logits = {scale: model.look_at(source, place, scale=scale)}
    else:
        output = model(batch["image"], scales=max(phase.scales), noise=noise)
        logits = dict(enumerate(output.logits, 1))
    return losses.classification_losses(
        logits,
        batch["label"],
        phase.scales,
        label_smoothing=phase.config.label_smoothing,
        class_weights=class_weights,
    )


def apn_init_step(
    model: RACNN, batch: Batch, phase: Phase, class_weights: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the loss of the phase's APN against the batch's ``pseudo_box``, see :mod:`racnn.engine.pseudo_boxes`."""
    (scale,) = phase.scales
    output = model(batch["image"], scales=scale, propose=True)
    taught = target_region(batch["pseudo_box"], output.places[scale - 1], phase.config.target)
    return losses.apn_init_losses(output.regions[-1], taught, scale, bounds=model.bounds[scale - 1])


def fusion_step(
    model: RACNN, batch: Batch, phase: Phase, class_weights: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the fusion layer's loss; everything before it is frozen."""
    output = model(batch["image"])
    assert output.fused is not None
    return losses.fusion_losses(output.fused, batch["label"], class_weights=class_weights)


# Each takes (model, batch, phase, class_weights [C] or None); those whose loss knows no classes leave the last alone.
STEPS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "classification": classification_step,
    "apn_init": apn_init_step,
    "ranking": ranking_step,
    "fusion": fusion_step,
}


def trained_modules(model: RACNN, phase: Phase) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the trunks and the heads that a phase trains; heads learn ``head_lr_factor`` times faster."""
    if phase.config.kind == "classification":
        backbones = dict.fromkeys(model.backbone(scale) for scale in phase.scales)
        return [backbone.trainable() for backbone in backbones], [
            model.classifiers[scale - 1] for scale in phase.scales
        ]
    if phase.config.kind == "fusion":
        return [model.fusion], []
    return [model.apns[scale - 1] for scale in phase.scales], []


def train_only(model: RACNN, phase: Phase) -> None:
    """Freeze the network but for what the phase trains: no gradients elsewhere, batch norm statistics still."""
    trunks, heads = trained_modules(model, phase)
    model.requires_grad_(False)
    model.zero_grad(set_to_none=True)  # what the phase before left takes memory
    model.eval()
    model.training = True  # the flag of the root alone, which the steps read
    for module in (*trunks, *heads):
        module.requires_grad_(True)
        module.train()


def build_optimizer(model: RACNN, phase: Phase) -> torch.optim.Optimizer:
    """Return a fresh optimizer over what the phase trains; each group remembers its base rate as ``base_lr``."""
    config = phase.config
    trunks, heads = trained_modules(model, phase)
    groups = []
    for modules, factor in ((trunks, 1.0), (heads, config.head_lr_factor)):
        parameters = [p for module in modules for p in module.parameters()]
        if parameters:
            groups.append({"params": parameters, "base_lr": config.lr * factor, "lr": config.lr * factor})
    fused = next(model.parameters()).is_cuda  # one kernel for all parameters
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=fused)
    nesterov = config.momentum > 0
    return torch.optim.SGD(
        groups, momentum=config.momentum, weight_decay=config.weight_decay, nesterov=nesterov, fused=fused
    )
