"""Fine-tuning by heads that have not seen the photo: that they have not, what moves, and that a crash changes no bit."""

import errno
import os
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_values
from safetensors.torch import load_file

from racnn.config import parse_config
from racnn.data import eval_loader
from racnn.engine import trainer
from racnn.engine.checkpoint import load_checkpoint, save_checkpoint
from racnn.engine.evaluator import data_of, evaluate_trained, predict
from racnn.engine.loop import train_only
from racnn.engine.predictor import load
from racnn.engine.stored import StoredRows
from racnn.engine.trainer import fit
from racnn.errors import CheckpointError, ConfigError, TrainingError
from racnn.models import RACNN
from racnn.models.backbone import tiny
from racnn.models.calibration import pool_weights
from racnn.models.early_exit import format_early_exit
from racnn.models.racnn import make_phase
from racnn.models.racnn.heads import NUM_FOLDS, best_slope, fit_head
from racnn.ops.regions import whole

CPU = torch.device("cpu")
STEPS = {"kind": "cross_fit", "epochs": 2, "lr": 0.05, "mirrored": True}
CROSS_FIT = STEPS | {"keep": "if_better"}
SCHEDULE = [{"kind": "looks"}, STEPS]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Some weights, that blocks can be frozen."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save({f"features.{name}": value for name, value in tiny().features.state_dict().items()}, path)
    return path


def config_of(out, weights, schedule=SCHEDULE, **changes):
    found = tiny_values(out, schedule=schedule, **changes)
    found["model"] |= {"view_sizes": [32, 32, 32], "descriptor": "root", "apn": "response"}
    steps = any(entry["kind"] == "cross_fit" for entry in schedule)
    found["model"] |= {"shared_backbone": True, "frozen_stages": int(steps), "weights": str(weights)}
    return parse_config(found, origin="test")


def network(**options):
    return RACNN(num_classes=3, backbone="tiny", view_sizes=(32,), descriptor="root", **options)


class Photos:
    """A context of one look whose descriptors are given, before the first epoch and after it."""

    def __init__(self, model, descriptors, labels):
        self.model = model
        self.rows = {"descriptors": descriptors, "labels": labels}

    def remember(self, *_):
        return self.rows

    def store(self, *_, **__):
        return torch.zeros(len(self.rows["labels"]), 3, 32, 32)

    def read_stored(self, *_):
        return self.rows


def heads_of(descriptors, labels):
    """Return what a phase makes of descriptors before its first epoch, the phase and its context."""
    context = Photos(network(), descriptors, labels)
    phase = make_phase(kind="cross_fit", scales=(1,), lr=0.1, epochs=1)
    return phase.between_epochs(context, {}), phase, context


@pytest.fixture(scope="module")
def descriptors():
    generator = torch.Generator().manual_seed(0)
    width = network().classifiers[0].in_features
    labels = torch.arange(30) % 3
    centres = torch.rand(3, width, generator=generator)
    return F.normalize(centres[labels] + 0.2 * torch.rand(30, width, generator=generator), dim=1), labels


def test_a_photo_has_no_say_in_the_head_that_judges_it(descriptors):
    found, labels = descriptors
    first, phase, context = heads_of(found, labels)
    phase.take_up(context, first)
    before = phase.between_epochs(
        context, first
    )  # at the strength and temperature that all photos chose together
    changed = found.clone()
    changed[7] = changed[7].flip(0)
    context.rows = {"descriptors": changed, "labels": labels}
    after = phase.between_epochs(context, first)
    own = int(first["folds"][7])
    slope = [
        fit_head(each, labels, 3, strengths=(float(first["strength"]),)).slope for each in (found, changed)
    ]
    torch.testing.assert_close(after["weight"][0, own], before["weight"][0, own])
    assert slope[0] != slope[1]
    for other in set(range(NUM_FOLDS + 1)) - {own}:
        assert (after["weight"][0, other] - before["weight"][0, other]).abs().max() > 1e-3


def test_a_photo_that_is_alone_in_its_class_is_judged_by_the_head_of_all(descriptors):
    found, labels = descriptors
    labels = labels.clone()
    labels[labels == 2] = 1
    labels[4] = 2
    state, _, context = heads_of(found, labels)
    assert state["folds"][4] == NUM_FOLDS
    assert (state["folds"] == NUM_FOLDS).sum() == 1
    torch.testing.assert_close(state["weight"][0, NUM_FOLDS], context.model.classifiers[0].weight.detach())


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_loss_is_that_of_each_photo_s_own_head(descriptors, mirrored):
    state, _, context = heads_of(*descriptors)
    model = context.model
    phase = make_phase(kind="cross_fit", scales=(1,), lr=0.1, epochs=1, mirrored=mirrored)
    phase.take_up(context, state)
    train_only(model, phase)
    views = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    batch = {"views_1": views, "label": torch.tensor([0, 1, 2, 0]), "index": torch.tensor([3, 29, 11, 0])}
    if mirrored:
        batch |= {"views_1_mirrored": views.flip(3), "noise": torch.tensor([[0.1], [0.9], [0.6], [0.4]])}
        views = torch.stack([view.flip(2) if row in (0, 3) else view for row, view in enumerate(views)])
    loss = phase.losses(model, batch)["loss"]
    found = model.forward_scale(1, views, whole(4)).descriptor
    terms = []
    for row, (label, index) in enumerate(zip(batch["label"], batch["index"], strict=True)):
        fold = state["folds"][index]
        logits = state["weight"][0, fold] @ found[row] + state["bias"][0, fold]
        terms.append(-logits.log_softmax(dim=0)[label])
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    loss.backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert moved
    assert all(name.startswith("backbones.0.") for name in moved)


def test_what_the_frozen_blocks_make_of_a_view_goes_on_to_the_same_features():
    model = network(frozen_stages=1).eval()
    view = torch.rand(2, 3, 32, 32)
    maps = model.extract_frozen(1, view)
    assert maps.shape == (2, 16, 16, 16)
    torch.testing.assert_close(model.extract_rest(1, maps), model.extract(1, view))
    torch.testing.assert_close(network().extract_frozen(1, view), view)


def test_batch_norm_can_be_held():
    model = network()
    for held in (False, True):
        train_only(model, make_phase(kind="cross_fit", scales=(1,), lr=0.1, epochs=1, hold_norm=held))
        norms = [m for m in model.backbones[0].modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert {norm.training for norm in norms} == {not held}


class Crash(Exception):
    pass


def crash_after(monkeypatch, step):
    """Let a run crash after so many steps, as if it was killed."""
    real, taken = trainer.train_one_epoch, []

    def crash(*args):
        for metrics in real(*args):
            taken.append(metrics)
            yield metrics
            if len(taken) == step:
                raise Crash

    monkeypatch.setattr(trainer, "train_one_epoch", crash)
    return lambda: monkeypatch.setattr(trainer, "train_one_epoch", real)


@pytest.fixture(scope="module")
def kept(tmp_path_factory, weights):
    folder = tmp_path_factory.mktemp("cross_fit") / "run"
    fit(config_of(folder, weights), device=CPU)
    return folder


def test_the_trunk_moves_but_for_its_frozen_blocks(kept, tmp_path, weights):
    fit(config_of(tmp_path / "first", weights, schedule=SCHEDULE[:1]), device=CPU)
    before, after = (load_checkpoint(folder / "last.pt")["model"] for folder in (tmp_path / "first", kept))
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    frozen = [
        name for name in after if name.startswith("backbones.0.features.") and int(name.split(".")[3]) < 7
    ]
    assert frozen
    assert changed.isdisjoint(frozen)
    assert {name.split(".")[0] for name in changed} == {"backbones", "classifiers", "fusion", "apns"}
    assert not any("running" in name for name in changed)


def test_what_is_kept_is_calibrated(kept):
    """Its answers to the validation photos can be made no more probable by a factor, nor by other weights of the looks."""
    trained = load(kept / "last.pt")
    found = predict(
        trained.model, eval_loader(data_of(trained).splits["val"], trained.config.data), device=CPU
    )
    for logits in found.logits:
        assert best_slope(logits, found.labels)[0] == pytest.approx(1.0, abs=0.01)
    weights = pool_weights(found.logits, found.labels)
    fused = torch.stack([w * x for w, x in zip(weights, found.logits, strict=True)]).sum(dim=0)
    torch.testing.assert_close(found.fused, fused, atol=1e-3, rtol=1e-3)


def test_what_is_kept_is_the_best_and_brings_its_early_exit(kept):
    best, last = (load_checkpoint(kept / name) for name in ("best.pt", "last.pt"))
    assert best["phase"] == "02-cross_fit"
    assert all(torch.equal(value, last["model"][name]) for name, value in best["model"].items())
    trained = load(kept / "best.pt")
    assert trained.early_exit is not None, "it belongs to this network"
    assert trained.early_exit.on_validation
    measured = evaluate_trained(trained, split="val", early_exit=True)
    assert "chosen in training by validation photos" in format_early_exit(measured)


@pytest.mark.parametrize("descriptor", ["root", "mean"])
def test_what_is_refused_leaves_the_network_as_it_was(descriptor, tmp_path, weights, monkeypatch):
    monkeypatch.setattr(trainer, "better", lambda *_, **__: False)
    for name, schedule in (
        ("quick", SCHEDULE[:1]),
        ("refused", [SCHEDULE[0], CROSS_FIT | {"epochs": 1, "lr": 1e-4}]),
    ):
        config = config_of(tmp_path / name, weights, schedule=schedule)
        model = config.model.model_copy(update={"descriptor": descriptor})
        fit(config.model_copy(update={"model": model}), device=CPU)
    quick, refused = (load_checkpoint(tmp_path / name / "last.pt") for name in ("quick", "refused"))
    assert refused["progress"]["outcomes"] == [True, False]
    assert [
        name for name, value in quick["model"].items() if not torch.equal(value, refused["model"][name])
    ] == []
    assert quick["progress"]["early_exit"] == refused["progress"]["early_exit"]
    assert load(tmp_path / "refused" / "best.pt").early_exit is not None


def test_no_file_of_views_is_left(kept):
    assert not (kept / "views").exists()
    assert sorted(path.name for path in (kept / "descriptors").iterdir()) == [
        "evidence_2.safetensors",
        "look_1.safetensors",
        "look_2.safetensors",
        "look_3.safetensors",
    ]


@pytest.mark.parametrize("step", [1, 4, 5, 8])
def test_a_run_that_crashed_ends_with_the_same_bits(step, kept, tmp_path, monkeypatch, weights):
    config = config_of(tmp_path / "run", weights, run__save_every=1)
    mend = crash_after(monkeypatch, step)
    with pytest.raises(Crash):
        fit(config, device=CPU)
    mend()
    assert (tmp_path / "run" / "views").exists()
    fit(config, device=CPU, resume=True)
    left, right = (load_checkpoint(folder / "last.pt") for folder in (tmp_path / "run", kept))
    assert [
        name for name in right["model"] if not torch.equal(left["model"][name], right["model"][name])
    ] == []
    assert left["progress"]["outcomes"] == right["progress"]["outcomes"]


def test_views_are_read_again_only_where_they_are_missing(tmp_path, monkeypatch, weights):
    config = config_of(tmp_path / "run", weights, run__save_every=1)
    mend = crash_after(monkeypatch, 3)
    with pytest.raises(Crash):
        fit(config, device=CPU)
    mend()
    path = tmp_path / "run" / "views" / "views_2.bin"
    path.write_bytes(path.read_bytes()[:-1])
    read = []
    finish = StoredRows.finish

    def finished(self):
        read.append(self.path.name)
        return finish(self)

    monkeypatch.setattr(StoredRows, "finish", finished)
    fit(config, device=CPU, resume=True)
    assert read == ["views_2.bin"]


@pytest.mark.parametrize("damage", ["missing", "shape", "fold", "label", "type"])
def test_heads_that_do_not_fit_are_refused(damage, tmp_path, monkeypatch, weights):
    config = config_of(tmp_path / "run", weights, run__save_every=1)
    crash_after(monkeypatch, 1)
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
    elif damage == "label":
        state["labels"][0] = -1
    else:
        state["folds"] = state["folds"].float()
    save_checkpoint(tmp_path / "run" / "last.pt", content)
    with pytest.raises(
        CheckpointError, match=r"progress\.state does not hold the heads of phase 02-cross_fit"
    ):
        fit(config, device=CPU, resume=True)


@pytest.mark.parametrize(
    ("model", "phase", "said"),
    [
        ({}, {"scales": [1]}, "'scales' belongs to other kinds"),
        ({"zoom_from": "parent"}, {}, "needs model.zoom_from source"),
    ],
)
def test_what_cannot_be_is_refused(model, phase, said):
    steps = {"epochs": 1, "lr": 0.1} if "kind" not in phase else {}
    found = tiny_values("unused", schedule=[{"kind": "cross_fit", **steps, **phase}])
    found["model"] |= {"view_sizes": [32, 32], **model}
    with pytest.raises(ConfigError, match=said):
        parse_config(found, origin="test")


@pytest.mark.parametrize(
    "schedule",
    [
        [STEPS, STEPS],
        [{"alternate": [STEPS], "rounds": 2}],
        [{"kind": "classification", "epochs": 1, "lr": 0.1}, STEPS],
    ],
)
def test_photos_that_the_trunk_has_learnt_tell_nothing(schedule):
    with pytest.raises(ConfigError, match="a cross_fit phase judges heads by photos that they have not seen"):
        parse_config(tiny_values("unused", schedule=schedule), origin="test")


def test_without_looks_before_it_the_object_is_found_first(tmp_path, weights):
    found = []

    class Seen(trainer.Trainer):
        def _run_epoch(self, *args):
            found.append((self.model.apns[0].direction.clone(), self.progress.state["region"][1]))
            super()._run_epoch(*args)

    Seen(config_of(tmp_path / "run", weights, schedule=[STEPS]), device=CPU).train()
    direction, region = found[0]
    assert direction.any()
    assert len(region.unique(dim=0)) > 1


def test_several_processes_are_refused(tmp_path, weights):
    processes = SimpleNamespace(size=2, from_main_process=lambda call: call(), restarted=lambda: False)
    with pytest.raises(ConfigError, match=r"^schedule\.1: a cross_fit phase runs in one process"):
        trainer.Trainer(config_of(tmp_path / "run", weights), device=CPU, processes=processes)


class TestStoredRows:
    def test_rows_are_found_again_when_all_are_there(self, tmp_path):
        rows = torch.rand(5, 2, 3).bfloat16()
        stored = StoredRows(tmp_path / "views" / "views_1.bin", "key", 5)
        assert stored.read() is None
        stored.keep(torch.tensor([3, 0]), rows[[3, 0]])
        assert StoredRows(stored.path, "key", 5).read() is None
        stored.keep(torch.tensor([1, 2, 4]), rows[[1, 2, 4]])
        assert torch.equal(stored.finish(), rows)
        assert torch.equal(StoredRows(stored.path, "key", 5).read(), rows)
        assert StoredRows(stored.path, "other", 5).read() is None
        assert StoredRows(stored.path, "key", 4).read() is None

    def test_a_full_disk_is_told(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)
        stored = StoredRows(tmp_path / "views" / "views_1.bin", "key", 5)
        with pytest.raises(TrainingError, match=r"views_1\.bin: no room for 0\.0 GB .*No space left"):
            stored.keep(torch.tensor([0]), torch.zeros(1, 2))
        assert not stored.path.exists()


def test_regions_of_training_photos_are_those_of_heads_that_had_not_seen_them(tmp_path, weights):
    """A photo's own head knows its class, and would look where that shows; in use nobody knows."""
    fit(config_of(tmp_path / "run", weights, schedule=SCHEDULE[:1]), device=CPU)
    seen = []

    class Seen(trainer.Trainer):
        def _run_epoch(self, *args):
            seen.append(self.progress.state["region"])
            super()._run_epoch(*args)

    Seen(config_of(tmp_path / "two", weights), device=CPU).train()
    stored = load_file(tmp_path / "run" / "descriptors" / "evidence_2.safetensors")["next_region"]
    assert torch.equal(seen[0][2], stored)
    assert seen[0][0].unique(dim=0).tolist() == [[0.0, 0.0, 1.0]]
