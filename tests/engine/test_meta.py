"""Every kind of step runs on the meta device, the nearest to a GPU that a CPU has: a tensor left elsewhere raises."""

from contextlib import nullcontext

import pytest
import torch
from every_step import PHASES

from racnn.engine.loop import train_only
from racnn.models import RACNN
from racnn.models.racnn import make_phase, phases

META = torch.device("meta")


def batch(phase, num=4):
    return {
        "image": torch.zeros(num, 3, 48, 48, dtype=torch.uint8, device=META),
        "label": torch.zeros(num, dtype=torch.int64, device=META),
        "pseudo_box": torch.zeros(num, 4, device=META),
        "noise": torch.zeros(num, phase.num_noise(), device=META),
    }


@pytest.mark.parametrize(("kind", "scales", "changes"), PHASES)
@pytest.mark.parametrize("zoom_from", ["source", "parent"])
def test_a_step_runs_forward_and_backward_where_its_tensors_are(
    kind, scales, changes, zoom_from, monkeypatch
):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no such device
    phase = make_phase(kind=kind, scales=scales, lr=1e-3, epochs=1, **changes)
    model = RACNN(num_classes=3, backbone="tiny", view_sizes=(32, 32, 32), zoom_from=zoom_from).to(META)
    train_only(model, phase)
    given = batch(phase)
    if kind == "classification" and zoom_from == "parent":
        del given["pseudo_box"]  # the views are then cut one from another
    losses = phase.losses(model, given, torch.ones(3, device=META))
    losses["loss"].backward()
    assert all(value.device.type == "meta" for value in losses.values())
    trained = [p for group in phase.trained(model) for module in group for p in module.parameters()]
    assert trained
    assert all(p.grad is not None and p.grad.is_meta for p in trained if p.requires_grad)


def test_every_kind_of_phase_is_among_them():
    assert {kind for kind, _, _ in PHASES} == phases.PHASES.keys()
