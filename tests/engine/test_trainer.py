"""A run goes through its phases, leaves what it promises, and goes on exactly where it was stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from racnn.config import load_config, parse_config
from racnn.data import build_data, eval_loader
from racnn.engine import trainer
from racnn.engine.checkpoint import digest, load_checkpoint, temporary_of
from racnn.engine.distributed import ProcessGroup
from racnn.engine.evaluator import data_of, predict
from racnn.engine.logger import Logger
from racnn.engine.predictor import load
from racnn.engine.run_dir import fingerprint, refuse_other_photos
from racnn.engine.trainer import Trainer, fit
from racnn.errors import CheckpointError, ConfigError, DataError, TrainingError
from racnn.models.backbone import BACKBONES
from racnn.models.racnn import phases
from racnn.models.racnn.phases import Classification

CPU = torch.device("cpu")
RUN_FILES = {
    "last.pt",
    "previous.pt",
    "best.pt",
    "config.yaml",
    "run.json",
    "metrics.jsonl",
    "results.csv",
    "tensorboard",
}
CURVES = {"curves.svg"}  # where the network was measured twice
STEPS_IN_ALL = 36
HELD_OUT = [
    {"kind": "classification", "epochs": 1, "lr": 0.01},
    {"kind": "ranking", "epochs": 2, "lr": 0.001, "photos": "held_out", "gradient": "smoothed"},
]


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def without_config(path):
    """Return the digest of a checkpoint but for what names the run's folder and tells how it was started."""
    told = ("config", "provenance")
    return digest({key: value for key, value in load_checkpoint(path).items() if key not in told})


class Crash(Exception):
    """As if the machine had gone down."""


def stop_at(monkeypatch, at, action, *, validating=False):
    """Let an action happen right after an optimizer step, or when the validation after it is written down."""

    class Stopping(Logger):
        def __init__(self, folder, *, step=0, **rest):
            super().__init__(folder, step=step, **rest)
            self.count = step

        def advance_bar(self, losses):
            super().advance_bar(losses)
            self.count += 1
            if self.count == at and not validating:
                action()

        def scalars(self, kind, values, **rest):
            super().scalars(kind, values, **rest)
            if self.count == at and validating and kind == "val":
                action()

    monkeypatch.setattr("racnn.engine.trainer.Logger", Stopping)


def terminate(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def crash():
    raise Crash


# --- a whole run ------------------------------------------------------------------------------------------------------


def test_a_run_takes_every_step_of_its_schedule(finished):
    assert sorted(finished.digests) == list(range(1, STEPS_IN_ALL + 1))
    assert len(set(finished.digests.values())) > STEPS_IN_ALL - 3  # nearly each one moved something


def test_a_scale_that_is_not_trained_is_not_measured(finished):
    """While APN 1 learns there is no scale 2 yet, but region 1."""
    val = [row for row in rows_of(finished.folder) if row["kind"] == "val"]
    learning = [row for row in val if row["phase"] == "02-apn_init_1"]
    assert learning
    for row in learning:
        assert {name for name in row if name.startswith("top1")} == {"top1_scale_1", "top1_mean"}
        assert "region_1_iou" in row
        assert row["judged_loss"] < 0


def test_a_run_folder_holds_what_it_promises_and_nothing_else(finished):
    assert {path.name for path in finished.folder.iterdir()} == RUN_FILES | CURVES


def test_the_stored_configuration_is_the_run_s(finished):
    assert load_config(finished.folder / "config.yaml") == finished.config


def test_phases_run_in_the_order_of_the_schedule(finished):
    assert list(dict.fromkeys(row["phase"] for row in rows_of(finished.folder))) == [
        "01-classification_1",
        "02-apn_init_1",
        "03-classification_2",
        "04-apn_init_2",
        "05-classification_3",
        "06-ranking_1_2",
        "07-classification_1_2_3",
        "08-fusion",
    ]


def test_every_row_of_the_metrics_tells_kind_step_and_phase(finished):
    rows = rows_of(finished.folder)
    for row in rows:
        assert row["kind"] in ("train", "val")
        assert 0 <= row["step"] <= STEPS_IN_ALL
        assert all(isinstance(v, float) for k, v in row.items() if k not in ("kind", "step", "phase"))
    train = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in train] == list(range(1, STEPS_IN_ALL + 1))
    assert all({"loss", "grad_norm", "lr"} <= row.keys() for row in train)


def test_every_epoch_is_validated_on_all_scales_trained_so_far(finished):
    val = [row for row in rows_of(finished.folder) if row["kind"] == "val"]
    per_phase = {row["phase"]: [r["step"] for r in val if r["phase"] == row["phase"]] for row in val}
    assert per_phase["01-classification_1"] == [4, 8]
    assert per_phase["06-ranking_1_2"] == [24, 28]  # before it begins too, to be better than
    assert all("top1_scale_3" in row for row in val if row["step"] > 20)
    assert not any("top1_scale_2" in row for row in val if row["step"] <= 8)
    assert [row["phase"] for row in val if "top1_fused" in row] == ["08-fusion"] * 2


def events_of(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_tensorboard_shows_scalars_the_configuration_and_the_regions(finished):
    events = events_of(finished.folder)
    tags = events.Tags()
    assert {"train/loss", "train/lr", "val/top1_mean", "val/region_1_tl_mean"} <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, STEPS_IN_ALL + 1))
    assert tags["images"] == ["val/regions"]
    assert "config/text_summary" in tags["tensors"]
    (text,) = events.Tensors("config/text_summary")[0].tensor_proto.string_val
    assert yaml.safe_load(text.decode().strip("`\n").removeprefix("yaml"))["data"]["source_size"] == 48


def test_the_last_checkpoint_holds_the_network_at_the_end(finished):
    last = load_checkpoint(finished.folder / "last.pt")
    assert last["step"] == STEPS_IN_ALL
    assert last["trained_scales"] == 3
    assert last["fusion_trained"] is True
    assert len(last["val_names"]) == 8
    assert len(last["progress"]["outcomes"]) == 8


def test_a_phase_that_made_nothing_better_leaves_the_network_as_it_was(finished, tmp_path, monkeypatch):
    """The alternation's phases run on, with the weights of before where they were not kept."""
    outcomes = load_checkpoint(finished.folder / "last.pt")["progress"]["outcomes"]
    monkeypatch.setattr(trainer, "better", lambda *_, **__: False)
    changes = {"run__num_preview": 0, "data__synthetic__num_train": 16}
    config = tiny_if_better(tmp_path / "run", finished, **changes)
    run = Trainer(config, device=CPU)
    before = digest(run.model.state_dict())
    run.train()
    run.logger.close()
    assert run.progress.outcomes == [False]
    assert digest(run.model.state_dict()) == before
    assert outcomes[:5] == [True] * 5  # these keep what they learnt whatever it is worth


def tiny_if_better(out, finished, **changes):
    from racnn.config import dump_config, parse_config

    values = dump_config(finished.config)
    values["run"] |= {"out": str(out), "num_preview": 0}
    values["data"]["synthetic"]["num_train"] = changes["data__synthetic__num_train"]
    values["schedule"] = [
        {"kind": "classification", "scales": [1], "epochs": 1, "lr": 0.1, "keep": "if_better"},
    ]
    return parse_config(values, origin="test")


@pytest.mark.parametrize("keep", ["last", "best", "if_better"])
@pytest.mark.parametrize("kind", ["classification", "apn_init", "ranking", "fusion"])
def test_every_kind_of_phase_can_keep_what_it_learns_in_every_way(kind, keep, tiny, tmp_path):
    phase = {"kind": kind, "epochs": 1, "lr": 0.001, "keep": keep}
    phase |= {"scales": [1]} if kind in ("apn_init", "ranking") else {}
    schedule = [{"kind": "classification", "epochs": 1, "lr": 0.01}, phase]
    settings = {"data__num_workers": 0, "run__num_preview": 0, "model__view_sizes": [32, 32]}
    fit(tiny(tmp_path / "run", schedule=schedule, **settings), device=CPU)
    outcomes = load_checkpoint(tmp_path / "run" / "last.pt")["progress"]["outcomes"]
    assert len(outcomes) == 2
    assert outcomes[1] or keep == "if_better"


def test_a_scale_starts_from_the_one_it_is_told_to(short, tmp_path, monkeypatch):
    phase = {"kind": "classification", "scales": [2], "init_from": 1, "epochs": 1, "lr": 0.1}
    run = Trainer(short(tmp_path / "run", schedule=[phase]), device=CPU)
    starts = []

    def no_steps(model, *_):
        starts.append({k: v.clone() for k, v in model.state_dict().items()})
        return iter(())

    monkeypatch.setattr(trainer, "train_one_epoch", no_steps)
    torch.nn.init.normal_(run.model.classifiers[0].weight)
    run.train()
    run.logger.close()
    (state,) = starts
    for key in ("backbones.{}.features.0.weight", "classifiers.{}.weight", "classifiers.{}.bias"):
        assert torch.equal(state[key.format(1)], state[key.format(0)])
        assert not torch.equal(state["classifiers.2.weight"], state["classifiers.0.weight"])


# --- stopping and going on --------------------------------------------------------------------------------------------

# in the middle of an epoch, at its end, between epochs, first and last of a phase, in every kind of phase
SIGNALS = (2, 4, 5, 8, 10, 15, 17, 26, 29, 34, 36)
WITH_WORKERS_FROM = 29


@pytest.fixture(scope="module")
def interrupted(tiny, tmp_path_factory):
    """One run that is stopped by SIGTERM again and again, and what its last.pt held each time."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    config = tiny(folder)
    stops, copy = {}, folder.parent / "copy"
    for step in SIGNALS:
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, step, terminate)
            with pytest.raises(SystemExit) as caught:
                fit(config, device=CPU, resume=bool(stops))
        stored = load_checkpoint(folder / "last.pt")
        stops[step] = (caught.value.code, stored["step"], digest(stored["model"]))
        if step == WITH_WORKERS_FROM:
            shutil.copytree(folder, copy)
    fit(config, device=CPU, resume=True)
    return SimpleNamespace(folder=folder, stops=stops, copy=copy)


def test_sigterm_saves_right_after_the_step_and_exits_with_143(interrupted, finished):
    assert interrupted.stops == {step: (143, step, finished.digests[step]) for step in SIGNALS}


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_a_run_stopped_by_signals_ends_bit_for_bit_like_one_that_was_not(interrupted, finished, name):
    left, right = (load_checkpoint(run.folder / name) for run in (interrupted, finished))
    assert left["model"].keys() == right["model"].keys()
    assert [k for k in left["model"] if not torch.equal(left["model"][k], right["model"][k])] == []
    assert without_config(interrupted.folder / name) == without_config(finished.folder / name)


def test_a_run_stopped_by_signals_leaves_the_same_rows(interrupted, finished):
    assert rows_of(interrupted.folder) == rows_of(finished.folder)


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(interrupted, tiny):
    before = without_config(interrupted.folder / "last.pt")
    path, report = fit(tiny(interrupted.folder), device=CPU, resume=True)
    assert without_config(interrupted.folder / "last.pt") == before
    assert report == load_checkpoint(path)["val_report"]


def test_a_run_goes_on_with_another_number_of_workers(interrupted, finished, tiny):
    fit(tiny(interrupted.copy, data__num_workers=1, run__num_preview=0), device=CPU, resume=True)
    assert without_config(interrupted.copy / "last.pt") == without_config(finished.folder / "last.pt")


CRASHES = ((5, False), (8, True), (14, False), (25, False), (28, True), (35, False))


def test_a_run_that_crashed_ends_bit_for_bit_like_one_that_did_not(finished, tiny, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    config = tiny(folder, run__save_every=3, run__num_preview=0)
    saved = []
    for step, validating in CRASHES:
        stop_at(monkeypatch, step, crash, validating=validating)
        with pytest.raises(Crash):
            fit(config, device=CPU, resume=bool(saved))
        saved.append(load_checkpoint(folder / "last.pt")["step"])
        assert step - 3 <= saved[-1] <= step
    monkeypatch.undo()
    assert any(
        step != crashed for step, (crashed, _) in zip(saved, CRASHES, strict=True)
    )  # some steps were lost
    fit(config, device=CPU, resume=True)
    for name in ("last.pt", "best.pt"):
        assert without_config(folder / name) == without_config(finished.folder / name)
    assert {path.name for path in folder.iterdir()} == RUN_FILES | CURVES


def test_a_run_goes_on_exactly_from_the_checkpoint_before_its_last(finished, tiny, tmp_path, monkeypatch):
    """Even from the middle of a phase whose end is in best.pt already; and half-written files are swept."""
    folder = tmp_path / "run"
    config = tiny(folder, run__num_preview=0)
    with monkeypatch.context() as patch:
        stop_at(patch, 25, crash)
        with pytest.raises(Crash):
            fit(config, device=CPU)
    last, previous = (load_checkpoint(folder / name)["progress"] for name in ("last.pt", "previous.pt"))
    assert len(last["outcomes"]) == len(previous["outcomes"]) + 1
    (folder / "previous.pt").replace(folder / "last.pt")
    for name in ("last.pt", "best.pt", "previous.pt", "config.yaml"):
        temporary_of(folder / name).write_bytes(b"half of it")
    fit(config, device=CPU, resume=True)
    for name in ("last.pt", "best.pt"):
        assert without_config(folder / name) == without_config(finished.folder / name)
    assert rows_of(folder) == rows_of(finished.folder)
    for name in ("results.csv", "curves.svg"):
        assert (folder / name).read_bytes() == (finished.folder / name).read_bytes()
    assert {path.name for path in folder.iterdir()} == RUN_FILES | CURVES


@pytest.fixture(scope="module")
def crashed_and_whole(short, tmp_path_factory):
    """The folders of a run that crashed one step after a checkpoint and was resumed, and of one that did not."""
    folder = tmp_path_factory.mktemp("rows")
    changes = {"data__synthetic__num_train": 64, "run__save_every": 2}
    fit(short(folder / "whole", **changes), device=CPU)
    config = short(folder / "crashed", **changes)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 3, crash)
        with pytest.raises(Crash):
            fit(config, device=CPU)
    time.sleep(1.1)  # TensorBoard orders its files by the second
    fit(config, device=CPU, resume=True)
    return folder / "crashed", folder / "whole"


def test_rows_after_a_crash_are_those_of_a_run_without_one(crashed_and_whole):
    """The rows since the last checkpoint are written anew, and once."""
    crashed, whole = crashed_and_whole
    assert rows_of(crashed) == rows_of(whole)


def test_curves_after_a_crash_are_those_of_a_run_without_one(crashed_and_whole):
    left, right = (events_of(folder) for folder in crashed_and_whole)
    for tag in ("train/loss", "val/log_prob_scale_1"):
        assert [(e.step, e.value) for e in left.Scalars(tag)] == [
            (e.step, e.value) for e in right.Scalars(tag)
        ]


def test_no_two_epochs_of_a_run_see_the_same_order(short, tmp_path, monkeypatch):
    plain, orders = trainer.train_loader, []

    def watched(*args, **rest):
        loader = plain(*args, **rest)
        orders.append([key.position for batch in loader.batch_sampler for key in batch])
        return loader

    phase = {"kind": "classification", "scales": [1], "epochs": 2, "lr": 0.01}
    monkeypatch.setattr(trainer, "train_loader", watched)
    fit(short(tmp_path / "run", schedule=[phase, phase]), device=CPU)
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(8)) for order in orders)


def test_held_out_photos_are_for_the_phases_that_ask_for_them(tiny, tmp_path, monkeypatch):
    plain, seen = trainer.train_loader, {}

    def watched(data, *args, photos, **rest):
        names = {record.name for record in data.splits[photos].records}
        seen.setdefault(photos, set()).update(names)
        return plain(data, *args, photos=photos, **rest)

    monkeypatch.setattr(trainer, "train_loader", watched)
    fit(tiny(tmp_path / "run", schedule=HELD_OUT, data__held_out_fraction=0.3), device=CPU)
    assert seen["train"]
    assert seen["held_out"]
    assert not seen["train"] & seen["held_out"]
    content = load_checkpoint(tmp_path / "run" / "last.pt")
    assert set(content["train_names"]) == seen["train"] | seen["held_out"]


def test_a_run_with_held_out_photos_goes_on_exactly(tiny, tmp_path, monkeypatch):
    changes = {"schedule": HELD_OUT, "data__held_out_fraction": 0.3, "run__num_preview": 0}
    fit(tiny(tmp_path / "whole", **changes), device=CPU)
    config = tiny(tmp_path / "stopped", **changes)
    with monkeypatch.context() as patch:
        stop_at(patch, 4, lambda: terminate(signal.SIGTERM))
        with pytest.raises(SystemExit):
            fit(config, device=CPU)
    fit(config, device=CPU, resume=True)
    assert without_config(tmp_path / "stopped" / "last.pt") == without_config(tmp_path / "whole" / "last.pt")


def test_held_out_photos_count_as_photos_of_the_run(tiny, tmp_path):
    data = build_data(tiny(tmp_path, schedule=HELD_OUT, data__held_out_fraction=0.3).data, seed=0)
    names = data.training_names()
    begun = SimpleNamespace(train_names=names, provenance=[], val_names=data.val_names)
    refuse_other_photos(begun, data)
    lost = data.splits["held_out"].records[0].name
    with pytest.raises(DataError, match=f"1 training photos were added or removed.*{lost}"):
        refuse_other_photos(SimpleNamespace(train_names=[n for n in names if n != lost], provenance=[]), data)


def test_photos_in_another_order_or_of_other_classes_are_refused(tiny, tmp_path):
    data = build_data(tiny(tmp_path).data, seed=0)
    names = data.training_names()
    begun = [{"photos": fingerprint(data)}]

    def content(names=names, provenance=begun, val_names=data.val_names):
        return SimpleNamespace(train_names=names, provenance=provenance, val_names=val_names)

    refuse_other_photos(content(), data)
    refuse_other_photos(content(provenance=[{"photos": 7}]), data)  # it says nothing that can be compared
    with pytest.raises(DataError, match="another order"):
        refuse_other_photos(content(names=names[::-1]), data)
    for split, refused in (("train", True), ("val", True), ("test", False)):
        changed = [{"photos": begun[0]["photos"] | {split: {"num": 8, "sha256": "of other classes"}}}]
        with pytest.raises(DataError, match=f"'{split}' have other classes") if refused else nullcontext():
            refuse_other_photos(content(provenance=changed), data)
    # one that cannot be read any more is left out, where the configuration says so
    fewer = [{"photos": begun[0]["photos"] | {"val": {"num": 9, "sha256": "with it"}}}]
    refuse_other_photos(content(provenance=fewer, val_names=[*data.val_names, "lost"]), data)


def test_fusion_starts_from_what_the_validation_photos_say(finished, tmp_path, monkeypatch):
    asked, plain = [], phases.pool_weights

    def watched(logits, labels):
        asked.append((logits, labels))
        return plain(logits, labels)

    monkeypatch.setattr(phases, "pool_weights", watched)
    config = finished.config.model_copy(
        update={"run": finished.config.run.model_copy(update={"out": str(tmp_path / "run")})}
    )
    fit(config, device=CPU)
    ((logits, labels),) = asked
    trained = load(tmp_path / "run" / "last.pt", CPU)
    batches = eval_loader(data_of(trained).splits["val"], config.data)
    expected = predict(trained.model, batches, device=CPU)
    assert torch.equal(labels, expected.labels)
    for ours, theirs in zip(logits, expected.logits, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_phase_whose_patience_is_over_is_not_gone_on_with(short, tmp_path, monkeypatch):
    """A crash between the last epoch of a phase and the next phase: the phase ends, it takes no further epoch."""
    phase = {"kind": "classification", "scales": [1], "epochs": 4, "lr": 0.01, "patience": 1}
    monkeypatch.setattr(trainer, "better", lambda *_, **__: False)  # the first epoch is the best
    fit(short(tmp_path / "whole", schedule=[phase]), device=CPU)
    config = short(tmp_path / "crashed", schedule=[phase])
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "outcome_of", lambda *_: crash())
        with pytest.raises(Crash):
            fit(config, device=CPU)
    fit(config, device=CPU, resume=True)
    assert load_checkpoint(tmp_path / "whole" / "last.pt")["step"] == 2
    assert without_config(tmp_path / "crashed" / "last.pt") == without_config(tmp_path / "whole" / "last.pt")


def test_sigint_exits_with_130_and_gives_the_handlers_back(short, tmp_path, monkeypatch):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop_at(monkeypatch, 1, lambda: terminate(signal.SIGINT))
    with pytest.raises(SystemExit) as caught:
        fit(short(tmp_path / "run"), device=CPU)
    assert caught.value.code == 130
    assert (tmp_path / "run" / "last.pt").exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_second_signal_ends_at_once_even_while_a_checkpoint_is_written(short, tmp_path, monkeypatch):
    """The checkpoint of the step before it stays whole, and is gone on from."""
    changes = {
        "run__save_every": 1,
        "schedule": [{"kind": "classification", "scales": [1], "epochs": 3, "lr": 0.01}],
    }
    plain, config = torch.save, short(tmp_path / "run", **changes)

    class Impatient:
        def __init__(self, file):
            self.file, self.writes = file, 0

        def write(self, data):
            self.writes += 1
            if self.writes == 3:
                terminate(signal.SIGINT)
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

    with monkeypatch.context() as patch:
        patch.setattr("racnn.engine.signals.SAME", 0.0)
        stop_at(patch, 2, lambda: (patch.setattr(torch, "save", slow), terminate()))
        slow = lambda content, file: plain(content, Impatient(file))  # noqa: E731
        with pytest.raises(SystemExit) as caught:
            fit(config, device=CPU)
    assert caught.value.code == 130
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 1
    assert not temporary_of(tmp_path / "run" / "last.pt").exists()
    fit(config, device=CPU, resume=True)
    fit(short(tmp_path / "whole", **changes), device=CPU)
    assert without_config(tmp_path / "run" / "last.pt") == without_config(tmp_path / "whole" / "last.pt")


def test_the_seed_decides_the_weights(short, tmp_path):
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(name) + len(digests))  # the caller's random state does not matter
        fit(short(tmp_path / name, run__seed=seed), device=CPU)
        digests.append(digest(load_checkpoint(tmp_path / name / "last.pt")["model"]))
    assert digests[0] == digests[1] != digests[2]


# --- numbers that are not ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda loss, weight: loss * float("nan"), "loss = nan"),
        (lambda loss, weight: loss + float("inf"), "loss = inf"),
        (lambda loss, weight: loss + (weight * 0.0).sum().sqrt(), "grad_norm = nan"),  # a finite loss
    ],
    ids=["nan", "inf", "gradient"],
)
def test_a_number_that_is_not_finite_stops_before_the_step(short, tmp_path, monkeypatch, spoil, named):
    plain, before = Classification.losses, []

    def spoilt(phase, model, batch, class_weights):
        losses = plain(phase, model, batch)
        before.append({name: p.detach().clone() for name, p in model.named_parameters()})
        if len(before) == 3:
            losses["loss"] = spoil(losses["loss"], model.classifiers[0].weight)
        return losses

    monkeypatch.setattr(Classification, "losses", spoilt)
    config = short(tmp_path / "run", data__synthetic__num_train=64, run__save_every=1)
    run = Trainer(config, device=CPU)
    with pytest.raises(TrainingError, match=rf"phase 01-classification_1: .*{named}"):
        run.train()
    run.logger.close()
    after = dict(run.model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before[2].items())
    assert not all(torch.equal(before[1][name], value) for name, value in before[2].items())
    dumped = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert dumped["step"] == 2
    assert any(named == f"{name} = {value}" for name, value in dumped["values"].items())
    assert len(dumped["photos"]) == config.data.batch_size
    assert set(dumped["photos"]) <= set(run.data.training_names())
    stored = load_checkpoint(tmp_path / "run" / "last.pt")
    assert stored["step"] == 2
    assert all(torch.equal(stored["model"][name], value) for name, value in before[2].items())


# --- the folder -------------------------------------------------------------------------------------------------------


@pytest.fixture
def old_run(short, tmp_path):
    """A folder with a finished run and a file of the user's own."""
    fit(short(tmp_path / "run"), device=CPU)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    return tmp_path / "run"


def test_an_occupied_folder_is_refused_and_left_alone(old_run, short):
    before = (old_run / "last.pt").read_bytes()
    with pytest.raises(ConfigError, match=r"already holds a run \(last\.pt.*--resume.*--overwrite.*--out"):
        fit(short(old_run), device=CPU)
    assert (old_run / "last.pt").read_bytes() == before


@pytest.mark.parametrize("left", sorted(RUN_FILES))
def test_any_file_of_a_run_makes_a_folder_occupied(left, short, tmp_path):
    (tmp_path / left).mkdir() if left == "tensorboard" else (tmp_path / left).write_text("x")
    with pytest.raises(ConfigError, match="already holds a run"):
        fit(short(tmp_path), device=CPU)


def test_a_folder_with_other_files_is_free(short, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    fit(short(tmp_path), device=CPU)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_overwrite_replaces_the_run_and_nothing_else(old_run, short):
    old = digest(load_checkpoint(old_run / "last.pt")["model"])
    events = {path.name for path in (old_run / "tensorboard").iterdir()}
    fit(short(old_run, run__seed=5), device=CPU, overwrite=True)
    assert (old_run / "notes.txt").read_text() == "mine"
    assert {path.name for path in old_run.iterdir()} == RUN_FILES | {"notes.txt"}
    assert digest(load_checkpoint(old_run / "last.pt")["model"]) != old
    assert [row["step"] for row in rows_of(old_run)] == [
        1,
        1,
    ]  # one step and its validation: no rows of the old run
    assert events.isdisjoint(path.name for path in (old_run / "tensorboard").iterdir())


def test_overwrite_deletes_nothing_where_the_new_run_cannot_begin(old_run, short):
    wrong = short(old_run, data__dataset="folder", data__root="/nowhere")
    with pytest.raises(DataError, match="nowhere"):
        fit(wrong, device=CPU, overwrite=True)
    assert {path.name for path in old_run.iterdir()} >= RUN_FILES


@pytest.mark.parametrize("name", ["results.csv", "curves.svg"])
def test_results_of_somebody_else_are_not_replaced(name, short, tmp_path):
    folder = tmp_path / "run"
    fit(short(folder), device=CPU)
    (folder / name).write_text("my own notes")
    for options in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(ConfigError, match=rf"{name}: is where a run keeps its {name}"):
            fit(short(folder), device=CPU, **options)
    assert (folder / name).read_text() == "my own notes"


def test_there_must_be_something_to_resume(short, tmp_path):
    with pytest.raises(CheckpointError, match=r"--resume.*last\.pt"):
        fit(short(tmp_path / "run"), device=CPU, resume=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model__steepness": 3.0}, r"model\.steepness: 10\.0 in the run, 3\.0 now"),
        ({"run__seed": 9}, r"run\.seed: 0 in the run, 9 now"),
        ({"data__batch_size": 4}, r"data\.batch_size: 16 in the run, 4 now"),
        (
            {"schedule": [{"kind": "classification", "scales": [1], "epochs": 1, "lr": 0.5}]},
            r"schedule\.0\.lr: 0\.01 in the run, 0\.5 now",
        ),
        (
            {"schedule": [{"kind": "classification", "epochs": 1, "lr": 0.01}]},
            r"schedule\.0\.scales\.0: 1 in the run",
        ),
        ({"data__classes": "1-4"}, r"data\.classes: None in the run, 1-4 now"),
    ],
)
def test_another_configuration_is_refused_by_the_key_that_differs(old_run, short, changes, key):
    before = (old_run / "last.pt").read_bytes()
    with pytest.raises(ConfigError, match=key) as caught:
        fit(short(old_run, **changes), device=CPU, resume=True)
    assert "run.out" not in str(caught.value)
    assert (old_run / "last.pt").read_bytes() == before


def test_what_does_not_touch_the_numbers_may_differ(old_run, short, tmp_path):
    moved = tmp_path / "moved"
    shutil.move(old_run, moved)
    free = {"run__save_every": 7, "run__log_every": 3, "run__num_preview": 1, "data__num_workers": 1}
    free |= {"data__root": str(tmp_path)}  # drawn photos have none
    fit(short(moved, **free), device=CPU, resume=True)
    assert load_config(moved / "config.yaml").run.save_every == 7


def test_a_run_whose_last_checkpoint_is_damaged_is_not_resumed(old_run, short):
    data = bytearray((old_run / "last.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (old_run / "last.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"last\.pt"):
        fit(short(old_run), device=CPU, resume=True)


@pytest.mark.parametrize("left", [b"junk", None])
def test_a_run_that_goes_on_replaces_a_best_checkpoint_that_cannot_be_read(
    left, short, tmp_path, capsys, monkeypatch
):
    phase = {"kind": "classification", "scales": [1], "epochs": 1, "lr": 0.01}
    config = short(tmp_path, schedule=[phase, {**phase, "lr": 1e-9}])
    with monkeypatch.context() as patch:
        stop_at(patch, 2, crash)
        with pytest.raises(Crash):
            fit(config, device=CPU)
    best = tmp_path / "best.pt"
    assert load_checkpoint(best)["step"] == 1
    best.unlink() if left is None else best.write_bytes(left)
    _, report = fit(config, device=CPU, resume=True)
    assert "warning: best.pt cannot be read" in capsys.readouterr().out
    assert load_checkpoint(best)["step"] == 2
    assert report["num_images"] == 8


@pytest.mark.parametrize("balance", ["none", "weights"])
def test_class_weights_reach_the_steps(balance, short, tmp_path, monkeypatch):
    seen, plain = [], trainer.train_one_epoch

    def watched(*args):
        seen.append(args[-1].class_weights)
        return plain(*args)

    monkeypatch.setattr(trainer, "train_one_epoch", watched)
    fit(short(tmp_path / "run", data__balance=balance), device=CPU)
    (weights,) = seen
    if balance == "none":
        assert weights is None
    else:
        torch.testing.assert_close(weights, torch.ones(8))  # the drawn birds are balanced


def test_an_imbalanced_folder_is_told(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for split, name, count in (
        ("train", "auk", 36),
        ("train", "wren", 3),
        ("test", "auk", 1),
        ("test", "wren", 1),
    ):
        for i in range(count):
            path = tmp_path / "birds" / split / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    values = {
        "run": {"out": str(tmp_path / "run"), "num_preview": 0},
        "data": {"dataset": "folder", "root": str(tmp_path / "birds"), "source_size": 16, "num_workers": 0},
        "model": {"backbone": "tiny", "view_sizes": [16]},
        "schedule": [{"kind": "classification", "epochs": 1, "lr": 0.01}],
    }
    fit(parse_config(values, origin="test"), device=CPU)
    assert "warning: class 'auk' has 32 training photos and 'wren' has 2" in "".join(capsys.readouterr())


# --- reading once a phase what frozen scales show of each photo -------------------------------------------------------------------


def test_a_run_can_be_stopped_while_it_reads_boxes(tiny, finished, tmp_path, monkeypatch):
    from racnn.engine.logger import Logger

    ticks = []

    def stop_at_the_third(logger):
        ticks.append(0)
        if len(ticks) == 3:
            terminate()

    config = tiny(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Logger, "tick", stop_at_the_third)
        with pytest.raises(SystemExit) as caught:
            fit(config, device=CPU)
    assert caught.value.code == 143
    assert load_checkpoint(tmp_path / "run" / "last.pt")["progress"]["outcomes"] == [True]
    fit(config, device=CPU, resume=True)
    assert without_config(tmp_path / "run" / "last.pt") == without_config(finished.folder / "last.pt")


def test_a_run_that_starts_with_reading_boxes_can_be_stopped_there_too(tiny, tmp_path, monkeypatch):
    from racnn.engine.logger import Logger

    phase = {"kind": "apn_init", "scales": [1], "epochs": 1, "lr": 0.01}
    config = tiny(tmp_path / "run", schedule=[phase])
    with monkeypatch.context() as patch:
        patch.setattr(Logger, "tick", lambda _: terminate())
        with pytest.raises(SystemExit):
            fit(config, device=CPU)
    _, report = fit(config, device=CPU, resume=True)
    assert set(report["top1"])


@pytest.mark.parametrize("known", [False, True])
def test_that_only_the_last_map_can_be_read_is_said(known, tiny, tmp_path, monkeypatch, capsys):
    def build(plain=BACKBONES["tiny"]):
        backbone = plain()
        backbone.inner *= known
        return backbone

    monkeypatch.setitem(BACKBONES, "tiny", build)
    phase = {"kind": "apn_init", "scales": [1], "epochs": 1, "lr": 0.01, "response": "ddt"}
    fit(tiny(tmp_path / "run", schedule=[phase]), device=CPU)
    assert ("response: ddt reads the last map" in capsys.readouterr().out) == (not known)


@pytest.mark.parametrize("zoom_from", ["source", "parent"])
def test_photos_carry_pseudo_boxes_only_where_a_phase_needs_them(zoom_from, tiny, tmp_path, monkeypatch):
    config = tiny(tmp_path / "run", model__zoom_from=zoom_from)
    run = Trainer(config, device=CPU)
    seen, plain = {}, trainer.train_one_epoch

    def look(model, batches, phase, *more):
        seen[phase.name] = {
            split: run.data.splits[split].pseudo_boxes is not None for split in ("train", "val")
        }
        return plain(model, batches, phase, *more)

    monkeypatch.setattr(trainer, "train_one_epoch", look)
    run.train()
    run.logger.close()
    assert {"02-apn_init_1", "03-classification_2", "07-classification_1_2_3"} <= seen.keys()
    for name, carried in seen.items():
        taught = "apn_init" in name
        placed = zoom_from == "source" and name.endswith(("classification_2", "classification_3"))
        assert carried == {"train": taught or placed, "val": taught}, name


def test_deterministic_algorithms_do_all_phases_on_a_cpu_and_change_no_bit(tiny, finished, tmp_path):
    fit(tiny(tmp_path / "run", run__deterministic=True, run__num_preview=0), device=CPU)
    left, right = (
        load_checkpoint(folder / "last.pt")["model"] for folder in (tmp_path / "run", finished.folder)
    )
    assert digest(left) == digest(right)


def test_the_dump_of_a_first_step_that_is_not_finite_stays_and_is_in_no_one_s_way(
    short, tmp_path, monkeypatch
):
    plain = Classification.losses

    def spoilt(*args):
        return {name: value * float("nan") for name, value in plain(*args).items()}

    with monkeypatch.context() as patch:
        patch.setattr(Classification, "losses", spoilt)
        with pytest.raises(TrainingError, match=r"nonfinite\.json"):
            fit(short(tmp_path / "run"), device=CPU)
    assert json.loads((tmp_path / "run" / "nonfinite.json").read_text())["step"] == 0
    fit(short(tmp_path / "run"), device=CPU)
    assert not (tmp_path / "run" / "nonfinite.json").exists()


class TestStartedAgainByTorchrun:
    """The command is that of the beginning, without --resume and perhaps with --overwrite."""

    @pytest.fixture
    def launched(self, monkeypatch):
        """Start as one of a launch's processes, as often as it is started again."""

        def start(launch, config, **flags):
            monkeypatch.setattr(trainer, "join", lambda _: ProcessGroup(launch=launch))
            return fit(config, device=CPU, **flags)

        return start

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_its_own_run_goes_on(self, launched, tiny, finished, tmp_path, monkeypatch, overwrite):
        config = tiny(tmp_path / "run", run__num_preview=0)
        with monkeypatch.context() as patch:
            stop_at(patch, 25, crash)
            with pytest.raises(Crash):
                launched("a", config, overwrite=overwrite)
        before = load_checkpoint(tmp_path / "run" / "last.pt")["step"]
        assert before > 10
        launched("a", config, overwrite=overwrite)
        assert min(row["step"] for row in rows_of(tmp_path / "run")) == 1
        assert (
            digest(load_checkpoint(tmp_path / "run" / "last.pt")["model"]) == finished.digests[STEPS_IN_ALL]
        )

    def test_a_start_that_died_before_its_first_checkpoint_begins_anew(self, launched, short, tmp_path):
        launched("a", short(tmp_path / "run"))
        for name in ("last.pt", "previous.pt", "best.pt", "metrics.jsonl"):
            (tmp_path / "run" / name).unlink()
        path, _ = launched("a", short(tmp_path / "run"))
        assert path.exists()

    def test_the_run_of_an_earlier_launch_is_neither_deleted_nor_gone_on_with(
        self, launched, short, tmp_path
    ):
        launched("a", short(tmp_path / "run"))
        before = without_config(tmp_path / "run" / "last.pt")
        with pytest.raises(ConfigError, match="already holds a run"):
            launched("b", short(tmp_path / "run"))
        assert without_config(tmp_path / "run" / "last.pt") == before

    def test_the_run_of_an_earlier_launch_is_replaced_where_that_was_asked(self, launched, short, tmp_path):
        launched("a", short(tmp_path / "run"))
        before = digest(load_checkpoint(tmp_path / "run" / "last.pt")["model"])
        launched("b", short(tmp_path / "run", run__seed=5), overwrite=True)
        assert digest(load_checkpoint(tmp_path / "run" / "last.pt")["model"]) != before

    def test_it_replaces_nothing_where_torchrun_forgot_whose_the_run_is(
        self, launched, short, tmp_path, monkeypatch
    ):
        launched("a", short(tmp_path / "run"), overwrite=True)
        before = without_config(tmp_path / "run" / "last.pt")
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        with pytest.raises(ConfigError, match=r"--overwrite.*go on with --resume"):
            launched("b", short(tmp_path / "run"), overwrite=True)
        assert without_config(tmp_path / "run" / "last.pt") == before


class TestSignalInAValidation:
    """The steps are saved before it; what has been measured is measured again."""

    @pytest.fixture
    def told(self, monkeypatch):
        """Be told to stop while the photos of the n-th validation are looked at."""

        def at(number):
            plain, seen, ended = Trainer.predict, [], []

            def watched(self, *args, **rest):
                seen.append(None)
                if len(seen) == number:
                    terminate()
                answers = plain(self, *args, **rest)
                ended.append(None)
                return answers

            monkeypatch.setattr(Trainer, "predict", watched)
            return ended

        return at

    @pytest.mark.parametrize("number", [2, 9, 13])  # after an epoch, before a phase, at the end of one
    def test_it_ends_at_once_and_the_run_goes_on_to_the_same_end(
        self, tiny, finished, told, tmp_path, monkeypatch, number
    ):
        config = tiny(tmp_path / "run", run__num_preview=0)
        ended = told(number)
        with pytest.raises(SystemExit) as caught:
            fit(config, device=CPU)
        assert caught.value.code == 143
        assert len(ended) == number - 1
        monkeypatch.undo()
        assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] > 0
        fit(config, device=CPU, resume=True)
        for name in ("last.pt", "best.pt"):
            assert without_config(tmp_path / "run" / name) == without_config(finished.folder / name)
        assert rows_of(tmp_path / "run") == rows_of(finished.folder)

    def test_the_last_one_is_not_swallowed(self, short, told, tmp_path, monkeypatch):
        told(2)  # of best.pt
        with pytest.raises(SystemExit):
            fit(short(tmp_path / "run"), device=CPU)
        monkeypatch.undo()
        path, _ = fit(short(tmp_path / "run"), device=CPU, resume=True)
        assert path.exists()


class TestTwoProcessesInOneFolder:
    HOLD = (
        "import sys, pathlib; from racnn.engine.run_dir import FolderLock\n"
        "lock = FolderLock(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )

    @pytest.fixture
    def other(self, tmp_path):
        """Another process that trains there."""
        command = [sys.executable, "-c", self.HOLD, str(tmp_path / "run")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "held\n"
            yield process
            process.kill()

    @pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
    def test_the_second_is_refused_and_changes_nothing(self, other, short, tmp_path, flags):
        (tmp_path / "run" / "last.pt").write_bytes(b"of the other")
        with pytest.raises(ConfigError, match="another process is training there"):
            fit(short(tmp_path / "run"), device=CPU, **flags)
        assert (tmp_path / "run" / "last.pt").read_bytes() == b"of the other"
        assert {path.name for path in (tmp_path / "run").iterdir()} == {"last.pt", ".racnn.lock"}

    def test_one_that_was_killed_is_in_no_one_s_way(self, other, short, tmp_path):
        other.kill()
        other.wait()
        fit(short(tmp_path / "run"), device=CPU)
        assert {path.name for path in (tmp_path / "run").iterdir()} == RUN_FILES
