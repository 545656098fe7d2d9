"""What would make a GPU wait for the host, or the host for the GPU, is no part of a step. Seen on a CPU, by its operations.

Copies to the host, which a CPU does not make, and the optimizer are not seen: the device's own word is in tests/test_gpu.py.
"""

import pytest
import torch
from every_step import PHASES
from torch.utils._python_dispatch import TorchDispatchMode

from racnn.engine.loop import train_only
from racnn.models import RACNN
from racnn.models.racnn import make_phase
from racnn.ops import crop as zoom

MOVED = {"lift_fresh", "_local_scalar_dense", "is_nonzero", "equal", "allclose"}  # to the device, or from it
SIZED = {
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_consecutive",
    "unique_dim",
    "bincount",
}  # by what tensors hold
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
def test_a_step_never_waits(kind, scales, changes, monkeypatch):
    monkeypatch.setattr(zoom, "_some_pixels", zoom._all_pixels)  # as on a GPU
    monkeypatch.setattr(zoom, "_gather", zoom._multiply)
    phase = make_phase(kind=kind, scales=scales, lr=1e-3, epochs=1, **changes)
    torch.manual_seed(0)
    model = RACNN(num_classes=3, backbone="tiny", view_sizes=(32, 32, 32))
    train_only(model, phase)
    batch = {
        "image": torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8),
        "label": torch.arange(4) % 3,
        "pseudo_box": torch.tensor([-0.6, -0.2, 0.3, 0.4]).repeat(4, 1),
        "noise": torch.rand(4, phase.num_noise()),
    }
    if kind == "classification" and len(scales) > 1:
        del batch["pseudo_box"]
    with Operations() as seen:
        phase.losses(model, batch)["loss"].backward()
    assert "convolution" in seen.names
    assert not seen.names & WAITING
