"""What only a CUDA device can show. Skipped where there is none."""

import pytest
import torch

from racnn.config import load_config
from racnn.engine.checkpoint import load_checkpoint, save_checkpoint
from racnn.engine.trainer import fit
from racnn.models import RACNN
from racnn.ops.response import largest_component
from racnn.ops.zoom import zoom

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def regions():
    return torch.tensor([[0.1, -0.2, 0.43], [-0.3, 0.31, 0.61]])


@pytest.mark.parametrize("antialias", [True, False])
def test_zoom_and_its_gradients_equal_those_of_the_cpu(regions, antialias):
    results = []
    for device in ("cpu", "cuda"):
        image = (
            torch.rand(2, 3, 61, 83, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
        )
        region = regions.to(device, copy=True).requires_grad_()
        view = zoom(image, region, (20, 31), antialias=antialias, steepness=400.0)
        view.square().sum().backward()
        results.append([t.detach().cpu() for t in (view, image.grad, region.grad)])
    for on_cpu, on_cuda in zip(*results, strict=True):
        torch.testing.assert_close(on_cuda, on_cpu, rtol=2e-3, atol=2e-3)


def test_forward_does_not_wait_for_the_device(regions):
    model = RACNN(num_classes=4, backbone="tiny", view_sizes=(64, 64, 64)).cuda().eval()
    images = torch.rand(2, 3, 96, 96, device="cuda")
    model(images)
    torch.cuda.set_sync_debug_mode("error")
    try:
        output = model(images)
        largest_component(output.features[0].sum(dim=1) > 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert output.fused.shape == (2, 4)


def test_a_short_run_in_bf16_ends(tmp_path):
    settings = ["data.dataset=synthetic", "data.source_size=48", "data.synthetic.num_train=64"]
    settings += [
        "data.synthetic.num_test=16",
        "data.num_workers=0",
        "model.backbone=tiny",
        "model.view_sizes=[32,32]",
    ]
    settings += ["run.precision=bf16", f"run.out={tmp_path / 'run'}", "model.weights=null"]
    settings += [f"schedule.{i}.epochs=1" for i in (0, 1, 2, 4)]
    settings += [f"schedule.3.alternate.{i}.epochs=1" for i in (0, 1)]
    best, report = fit(load_config(None, settings), device=torch.device("cuda"))
    assert best.is_file()
    assert {"scale_1", "scale_2", "mean", "fused"} <= report["top1"].keys()


def test_a_checkpoint_may_be_of_tensors_on_the_device_and_is_read_onto_the_cpu(tmp_path):
    """The optimizer's state is there."""
    content = {"model": {}, "config": {}, "class_names": [], "optimizer": {0: torch.ones(3, device="cuda")}}
    save_checkpoint(tmp_path / "last.pt", content)
    (state,) = load_checkpoint(tmp_path / "last.pt")["optimizer"].values()
    assert state.device.type == "cpu"
    assert torch.equal(state, torch.ones(3))
