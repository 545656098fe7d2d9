"""Fine-tuning by heads that have not seen the photo: that they have not, what moves, and that a crash changes no bit."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_values

from racnn.config import parse_config
from racnn.engine import trainer
from racnn.engine.checkpoint import load_checkpoint, save_checkpoint
from racnn.engine.loop import train_only
from racnn.engine.trainer import fit
from racnn.errors import CheckpointError, ConfigError
from racnn.models import RACNN
from racnn.models.racnn import make_phase
from racnn.models.racnn.heads import NUM_FOLDS

CPU = torch.device("cpu")
SCHEDULE = [
    {"kind": "cross_fit", "scales": [1], "epochs": 2, "lr": 0.05},
    {"kind": "apn_init", "scales": [1], "epochs": 1, "optimizer": "adamw", "lr": 0.001, "response": "ddt"},
    {"kind": "cross_fit", "scales": [2], "epochs": 2, "lr": 0.05, "init_from": 1, "keep": "if_better"},
]


def config_of(out, schedule=SCHEDULE, **changes):
    found = tiny_values(out, schedule=schedule, **changes)
    found["model"] |= {"view_sizes": [32, 32], "descriptor": "root"}
    return parse_config(found, origin="test")


def heads_of(descriptors, labels, num_classes=3):
    """Return what a phase makes of descriptors before its first epoch, the phase and the network."""
    model = RACNN(num_classes=num_classes, backbone="tiny", view_sizes=(32, 32), descriptor="root")
    phase = make_phase(kind="cross_fit", scales=(1,), lr=0.1, epochs=1)
    context = SimpleNamespace(
        model=model, read=lambda *_, **__: {"descriptors": descriptors, "labels": labels}
    )
    return phase.between_epochs(context, {}), phase, model


@pytest.fixture(scope="module")
def descriptors():
    generator = torch.Generator().manual_seed(0)
    width = RACNN(num_classes=3, backbone="tiny", view_sizes=(32, 32)).classifiers[0].in_features
    labels = torch.arange(30) % 3
    centres = torch.rand(3, width, generator=generator)
    return F.normalize(centres[labels] + 0.2 * torch.rand(30, width, generator=generator), dim=1), labels


def test_a_photo_has_no_say_in_the_head_that_judges_it(descriptors):
    found, labels = descriptors
    state, phase, _ = heads_of(found, labels)
    # at the same strength and temperature, which all photos choose together
    fixed = {name: state[name] for name in ("strength", "slope")}
    changed = found.clone()
    changed[7] = changed[7].flip(0)
    context = SimpleNamespace(
        model=RACNN(num_classes=3, backbone="tiny", view_sizes=(32, 32)),
        read=lambda *_, **__: {"descriptors": changed, "labels": labels},
    )
    before = phase.between_epochs(
        SimpleNamespace(model=context.model, read=lambda *_, **__: {"descriptors": found, "labels": labels}),
        fixed,
    )
    after = phase.between_epochs(context, fixed)
    own = int(state["folds"][7])
    torch.testing.assert_close(after["weight"][own], before["weight"][own])
    for other in set(range(NUM_FOLDS + 1)) - {own}:
        assert (after["weight"][other] - before["weight"][other]).abs().max() > 1e-3


def test_a_photo_that_is_alone_in_its_class_is_judged_by_the_head_of_all(descriptors):
    found, labels = descriptors
    labels = labels.clone()
    labels[labels == 2] = 1
    labels[4] = 2
    state, _, model = heads_of(found, labels)
    assert state["folds"][4] == NUM_FOLDS
    assert (state["folds"] == NUM_FOLDS).sum() == 1
    torch.testing.assert_close(state["weight"][NUM_FOLDS], model.classifiers[0].weight.detach())


def test_the_loss_is_that_of_each_photo_s_own_head(descriptors):
    state, phase, model = heads_of(*descriptors)
    phase.take_up(state)
    train_only(model, phase)
    image = torch.randint(
        0, 256, (4, 3, 48, 48), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    batch = {"image": image, "label": torch.tensor([0, 1, 2, 0]), "index": torch.tensor([3, 29, 11, 0])}
    loss = phase.losses(model, batch)["loss"]
    view = model(image, num_scales=1).scales[0]
    terms = []
    for row, (label, index) in enumerate(zip(batch["label"], batch["index"], strict=True)):
        fold = state["folds"][index]
        logits = state["weight"][fold] @ view.descriptor[row] + state["bias"][fold]
        terms.append(-logits.log_softmax(dim=0)[label])
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    loss.backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert moved
    assert all(name.startswith("backbones.0.") for name in moved)


def test_batch_norm_can_be_held():
    model = RACNN(num_classes=3, backbone="tiny", view_sizes=(32, 32))
    for held in (False, True):
        train_only(model, make_phase(kind="cross_fit", scales=(1,), lr=0.1, epochs=1, hold_norm=held))
        norms = [m for m in model.backbones[0].modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert {norm.training for norm in norms} == {not held}


class Crash(Exception):
    pass


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cross_fit") / "run"
    fit(config_of(folder), device=CPU)
    return folder


def test_only_the_trunk_and_the_classifier_of_its_scale_change(finished, tmp_path):
    after = load_checkpoint(finished / "last.pt")["model"]
    fit(config_of(tmp_path / "first", schedule=SCHEDULE[:2]), device=CPU)
    before = load_checkpoint(tmp_path / "first" / "last.pt")["model"]
    changed = {
        name.rpartition(".features.")[0] or name
        for name in after
        if not torch.equal(after[name], before[name])
    }
    assert changed == {"backbones.1", "classifiers.1.weight", "classifiers.1.bias"}


@pytest.mark.parametrize("step", [1, 3, 4, 7, 9, 12, 15])
def test_a_run_that_crashed_ends_with_the_same_bits(step, finished, tmp_path, monkeypatch):
    config = config_of(tmp_path / "run", run__save_every=1)
    real, taken = trainer.train_one_epoch, []

    def crash_at(*args):
        for metrics in real(*args):
            taken.append(metrics)
            yield metrics
            if len(taken) == step:
                raise Crash

    monkeypatch.setattr(trainer, "train_one_epoch", crash_at)
    with pytest.raises(Crash):
        fit(config, device=CPU)
    monkeypatch.setattr(trainer, "train_one_epoch", real)
    saved = (tmp_path / "run" / "last.pt").exists()
    fit(config, device=CPU, resume=saved, overwrite=not saved)
    left, right = (load_checkpoint(folder / "last.pt") for folder in (tmp_path / "run", finished))
    assert [
        name for name in left["model"] if not torch.equal(left["model"][name], right["model"][name])
    ] == []


@pytest.mark.parametrize("damage", ["missing", "shape", "fold", "type"])
def test_heads_that_do_not_fit_are_refused(damage, tmp_path, monkeypatch):
    config = config_of(tmp_path / "run", schedule=SCHEDULE[:1], run__save_every=1)
    real = trainer.train_one_epoch

    def crash(*args):
        for number, metrics in enumerate(real(*args)):
            yield metrics
            if number == 1:
                raise Crash

    monkeypatch.setattr(trainer, "train_one_epoch", crash)
    with pytest.raises(Crash):
        fit(config, device=CPU)
    content = load_checkpoint(tmp_path / "run" / "last.pt")
    state = content["progress"]["state"]
    if damage == "missing":
        del state["bias"]
    elif damage == "shape":
        state["weight"] = state["weight"][:, :1]
    elif damage == "fold":
        state["folds"][0] = NUM_FOLDS + 1
    else:
        state["folds"] = state["folds"].float()
    save_checkpoint(tmp_path / "run" / "last.pt", content)
    with pytest.raises(
        CheckpointError, match=r"progress\.state does not hold the heads of phase 01-cross_fit_1"
    ):
        fit(config, device=CPU, resume=True)


@pytest.mark.parametrize(
    ("model", "phase", "said"),
    [
        ({}, {}, "a cross_fit phase trains one scale; name it"),
        ({"shared_backbone": True}, {"scales": [1]}, "trains one scale's own backbone"),
        ({"zoom_from": "parent"}, {"scales": [2]}, "needs model.zoom_from source"),
        ({}, {"scales": [1], "jitter": 0.5}, "'jitter' belongs to the finer scales"),
        ({}, {"scales": [1], "init_from": 1}, "scale 1 would start from itself"),
        ({}, {"scales": [3]}, "names scale 3"),
    ],
)
def test_what_cannot_be_is_refused(model, phase, said):
    found = tiny_values("unused", schedule=[{"kind": "cross_fit", "epochs": 1, "lr": 0.1, **phase}])
    found["model"] |= {"view_sizes": [32, 32], **model}
    with pytest.raises(ConfigError, match=said):
        parse_config(found, origin="test")
