"""A run whose losses are read a step late, as on a GPU, is the same run. Here with the fused optimizers of a CPU."""

import json
import os
import signal

import pytest
import torch

from racnn.engine import loop, trainer
from racnn.engine.checkpoint import digest, load_checkpoint
from racnn.engine.steps import STEPS, build_optimizer
from racnn.engine.trainer import fit
from racnn.errors import TrainingError

CPU = torch.device("cpu")


def run(config, *, read_late=True, **options):
    """Train with fused optimizers; the losses are read late or at once."""
    plain = loop.Readings

    def fused(model, phase):
        optimizer = build_optimizer(model, phase)
        for group in optimizer.param_groups:
            group["fused"] = True
        return optimizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "build_optimizer", fused)
        patch.setattr(loop, "Readings", lambda phase, late: plain(phase, late=read_late))
        return fit(config, device=CPU, **options)


@pytest.fixture(scope="module")
def config_of(tiny):
    """Return a factory of two epochs of classification and one of ranking, with a row in the log for every step."""
    schedule = [
        {"kind": "classification", "epochs": 2, "lr": 0.05},
        {"kind": "ranking", "epochs": 1, "lr": 0.001, "optimizer": "adamw", "margin": 1.0},
    ]

    def make(folder, **changes):
        return tiny(folder, schedule=schedule, run__log_every=1, run__num_preview=0, **changes)

    return make


@pytest.fixture(scope="module")
def at_once(config_of, tmp_path_factory):
    folder = tmp_path_factory.mktemp("at_once") / "run"
    run(config_of(folder), read_late=False)
    return left_by(folder)


def left_by(folder):
    """Return the rows of a run's log and its last weights."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return rows, digest(load_checkpoint(folder / "last.pt")["model"])


@pytest.mark.parametrize("save_every", [0, 1, 3])
def test_rows_and_weights_are_the_same(save_every, config_of, at_once, tmp_path):
    run(config_of(tmp_path / "late", run__save_every=save_every))
    rows, _ = left_by(tmp_path / "late")
    assert sum(row["kind"] == "train" for row in rows) > 6
    assert left_by(tmp_path / "late") == at_once


@pytest.mark.parametrize("steps", [1, 5])
def test_a_run_that_is_stopped_again_and_again_is_the_same(steps, config_of, at_once, tmp_path, monkeypatch):
    plain, left = trainer.train_one_epoch, []

    def told(*args, after_step, **rest):
        def after(readings):
            left.append(0)
            if len(left) % steps == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            after_step(readings)

        return plain(*args, after_step=after, **rest)

    monkeypatch.setattr(trainer, "train_one_epoch", told)
    starts = 0
    while True:
        starts += 1
        try:
            run(config_of(tmp_path / "late"), resume=starts > 1)
            break
        except SystemExit as stopped:
            if stopped.code != 143:
                raise
    assert starts > 2
    assert left_by(tmp_path / "late") == at_once


@pytest.mark.parametrize(("spoilt", "save_every"), [(0, 0), (0, 1), (1, 0), (2, 1)])
def test_a_step_that_is_not_finite_is_named_and_what_was_before_it_is_left(
    spoilt, save_every, config_of, tmp_path, monkeypatch
):
    plain, seen = STEPS["classification"], []

    def step(*args):
        seen.append(0)
        factor = float("nan") if len(seen) == spoilt + 1 else 1.0
        return {name: value * factor for name, value in plain(*args).items()}

    monkeypatch.setitem(STEPS, "classification", step)
    config = config_of(tmp_path / "run", run__save_every=save_every)
    with pytest.raises(TrainingError, match=r"is not finite.*nonfinite\.json"):
        run(config)
    assert json.loads((tmp_path / "run" / "nonfinite.json").read_text())["step"] == spoilt
    if save_every and spoilt:
        assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == spoilt
    else:
        assert not (tmp_path / "run" / "last.pt").exists()
    if not spoilt:
        run(config)  # nothing is in its way
