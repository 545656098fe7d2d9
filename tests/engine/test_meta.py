"""Every kind of step on the meta device, the nearest to a GPU that a CPU has: it goes the same way, and never waits.

A tensor left elsewhere raises there. What would make a GPU wait for the host, or the host for the GPU, is seen by its
operations, but for those of the optimizer and copies to the host: the device's own word is in tests/test_gpu.py.
"""

from contextlib import nullcontext

import pytest
import torch
from every_step import PHASES, stored_views
from torch.utils._python_dispatch import TorchDispatchMode

from racnn.engine.loop import train_only
from racnn.models import RACNN
from racnn.models.phase import GradientPhase
from racnn.models.racnn import make_phase, phases
from racnn.ops.crop import SAMPLERS

META = torch.device("meta")
MOVED = {"lift_fresh", "_local_scalar_dense", "is_nonzero", "equal", "allclose"}  # to the device, or from it
SIZED = {
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_consecutive",
    "unique_dim",
    "bincount",
}  # by contents
MASKED = {"index by a mask", "index_put_ by a mask"}
WAITING = MOVED | SIZED | MASKED


class Operations(TorchDispatchMode):
    """Note the name of every operation."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = [
                index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)
            ]
            name += " by a mask" * bool(masks)
        self.names.add(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x[:, [0, 2]],
        lambda x: x.sum().item(),
        lambda x: bool((x > 2).any()),
        lambda x: x[x > 0.5],
        lambda x: x.__setitem__(x > 0.5, torch.zeros(())),
        lambda x: x.unique(),
        lambda x: torch.tensor([1.0, 2.0, 3.0]) + x,
    ],
)
def test_what_waits_is_recognised(call):
    with Operations() as seen:
        call(torch.rand(2, 3))
    assert seen.names & WAITING


@pytest.mark.parametrize(("kind", "scales", "changes"), PHASES)
@pytest.mark.parametrize("zoom_from", ["source", "parent"])
def test_a_step_runs_forward_and_backward_where_its_tensors_are_and_never_waits(
    kind, scales, changes, zoom_from, monkeypatch
):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no such device
    phase = make_phase(kind=kind, scales=scales, lr=1e-3, epochs=1, **changes)
    model = RACNN(num_classes=3, backbone="tiny", view_sizes=(32, 32, 32), zoom_from=zoom_from).to(META)
    train_only(model, phase)
    stored = stored_views(phase, model, 4, 32)
    batch = {
        "image": torch.zeros(4, 3, 48, 48, dtype=torch.uint8, device=META),
        "label": torch.zeros(4, dtype=torch.int64, device=META),
        "index": torch.zeros(4, dtype=torch.int64, device=META),
        "pseudo_box": torch.zeros(4, 4, device=META),
        "noise": torch.zeros(4, phase.num_noise(), device=META),
    }
    batch |= {name: rows.to(META) for name, rows in stored.items()}
    if kind == "classification" and zoom_from == "parent":
        del batch["pseudo_box"]  # the views are then cut one from another
    weights = torch.ones(3, device=META)
    with Operations() as seen:
        losses = phase.losses(model, batch, weights)
        losses["loss"].backward()
    assert "convolution" in seen.names
    assert any("backward" in name for name in seen.names)
    assert not seen.names & WAITING
    assert all(value.device.type == "meta" for value in losses.values())
    trained = [p for group in phase.trained(model) for module in group for p in module.parameters()]
    assert trained
    assert all(p.grad is not None and p.grad.is_meta for p in trained if p.requires_grad)


def test_every_kind_of_phase_is_among_them():
    steps = {kind for kind, phase in phases.PHASES.items() if issubclass(phase, GradientPhase)}
    assert {kind for kind, _, _ in PHASES} == steps


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_sampler_waits(sampler, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    regions = torch.zeros(4, 3, device=META, requires_grad=True)
    images = torch.zeros(4, 3, 20, 30, device=META, requires_grad=True)
    with Operations() as seen:
        SAMPLERS[sampler](images, regions, (7, 8), steepness=9.0).sum().backward()
    assert not seen.names & WAITING


@pytest.mark.parametrize("view", [32, 96])
def test_looks_that_read_their_regions_never_wait(view, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    options = {"apn": "response", "descriptor": "root", "shared_backbone": True}
    model = RACNN(num_classes=3, backbone="tiny", view_sizes=(view,) * 3, **options).to(META).eval()
    with torch.no_grad(), Operations() as seen:
        output = model(torch.zeros(4, 3, 128, 128, dtype=torch.uint8, device=META))
    assert "max_pool2d_with_indices" in seen.names  # the connected part of region 1
    assert not seen.names & WAITING
    assert output.fused.is_meta
