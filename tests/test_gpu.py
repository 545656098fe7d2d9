"""What only a CUDA device can show. Skipped where there is none."""

import math

import pytest
import torch
from every_step import PHASES, stored_views

from racnn.config import load_config
from racnn.engine.checkpoint import load_checkpoint, save_checkpoint
from racnn.engine.device import determinism, prepare
from racnn.engine.loop import (
    EpochState,
    NonFiniteError,
    Step,
    build_optimizer,
    train_one_epoch,
    train_only,
)
from racnn.engine.trainer import fit
from racnn.models import RACNN
from racnn.models.racnn import make_phase
from racnn.ops.crop import zoom
from racnn.ops.heatmap import largest_component
from racnn.recipes import recipe_config

CUDA = torch.device("cuda", 0)
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


def batch(phase, stored=None):
    generator = torch.Generator().manual_seed(1)
    num = 4
    made = {
        "image": torch.randint(0, 256, (num, 3, 96, 96), generator=generator, dtype=torch.uint8),
        "label": torch.arange(num) % 3,
        "index": torch.arange(num),
        "share": torch.full((num,), 1.0 / num, dtype=torch.float64),
        "pseudo_box": torch.tensor([-0.6, -0.2, 0.3, 0.4]).repeat(num, 1),
        "noise": torch.rand(num, phase.num_noise(), generator=generator),
        **(stored or {}),
    }
    return {key: value.pin_memory() for key, value in made.items()}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("kind", "scales", "changes"), PHASES)
def test_a_step_never_waits_for_the_device(kind, scales, changes, optimizer):
    phase = make_phase(kind=kind, scales=scales, optimizer=optimizer, lr=1e-3, epochs=1, **changes)
    model = RACNN(num_classes=3, backbone="tiny", view_sizes=(64, 64, 64))
    prepare(model, load_config(None, ["run.precision=bf16", "model.weights=null"]), CUDA)
    train_only(model, phase)
    stored = stored_views(phase, model, 4, 64)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    state = EpochState(CUDA, length=3, class_weights=torch.ones(3, device=CUDA))
    optimizer, step = build_optimizer(model, phase), Step(model, phase, state.class_weights)
    with determinism(False, CUDA):
        taken = list(train_one_epoch(model, [batch(phase, stored)] * 3, phase, optimizer, state))
        on_device = {key: value.to(CUDA) for key, value in batch(phase, stored).items()}
        torch.cuda.set_sync_debug_mode("error")  # only the loop reads the losses, once a step
        try:
            step(on_device)["loss"].backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(taken) == state.step == 3
    assert all(math.isfinite(value) for metrics in taken for value in metrics.losses.values())
    if kind != "ranking":  # whose hinge may be slack
        assert not all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)


def test_a_step_that_is_not_finite_changes_nothing():
    phase = make_phase(kind="classification", scales=(1,), lr=1e-3, epochs=1)
    model = RACNN(num_classes=3, backbone="tiny", view_sizes=(64, 64)).to(CUDA)
    train_only(model, phase)
    good = batch(phase)
    bad = good | {"share": torch.full((4,), float("inf"), dtype=torch.float64)}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(NonFiniteError) as caught:
        list(
            train_one_epoch(model, [bad, good, good], phase, build_optimizer(model, phase), EpochState(CUDA))
        )
    assert not math.isfinite(caught.value.values["loss"])
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_largest_part_is_that_of_the_cpu():
    mask = torch.rand(8, 28, 28, generator=torch.Generator().manual_seed(0)) > 0.4
    assert torch.equal(largest_component(mask.to(CUDA)).cpu(), largest_component(mask))


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


def test_frozen_looks_are_those_of_the_cpu(tmp_path):
    """Heads are fitted on the CPU of descriptors that differ by rounding."""
    settings = ["data.source_size=48", "data.synthetic.num_train=64", "data.synthetic.num_test=16"]
    settings += ["model.backbone=tiny", "model.weights=null", "model.view_sizes=[32,32,32]"]
    settings += ["data.num_workers=0", "run.precision=fp32"]
    networks = []
    for device in ("cpu", "cuda"):
        config = recipe_config("synthetic", "quick", [*settings, f"run.out={tmp_path / device}"])
        best, _ = fit(config, device=torch.device(device))
        networks.append(load_checkpoint(best)["model"])
    on_cpu, on_cuda = (network["classifiers.0.weight"] for network in networks)
    torch.testing.assert_close(on_cuda, on_cpu, rtol=0.05, atol=0.05 * float(on_cpu.abs().max()))


def test_a_checkpoint_may_be_of_tensors_on_the_device_and_is_read_onto_the_cpu(tmp_path):
    """The optimizer's state is there."""
    content = {"model": {}, "config": {}, "class_names": [], "optimizer": {0: torch.ones(3, device="cuda")}}
    save_checkpoint(tmp_path / "last.pt", content)
    (state,) = load_checkpoint(tmp_path / "last.pt")["optimizer"].values()
    assert state.device.type == "cpu"
    assert torch.equal(state, torch.ones(3))
