"""Checkpoints on the command line: what they are is told, they are handed on, and no wrong one does harm."""

import json
import pickle
import runpy
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from evil import Evil
from PIL import Image

from racnn.config import dump_config
from racnn.engine.checkpoint import FORMAT, load_checkpoint
from racnn.engine.predictor import load
from racnn.errors import UserError

ROOT = Path(__file__).parent.parent
COMMANDS = [
    "evaluate",
    "visualize",
    "predict",
    "inspect",
    "export-weights",
    "train",
    "demo",
    "teacher",
    "slopes",
]


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def run_copy(finished, tmp_path):
    """A copy of a finished run's folder, to be damaged."""
    shutil.copytree(finished.folder, tmp_path / "my run")
    return tmp_path / "my run"


@pytest.fixture
def use(racnn, photo, tmp_path, capsys, tiny_file):
    """Run a command on a checkpoint, which for those that resume is put where they look for it."""

    def run(command, checkpoint):
        if command in ("teacher", "slopes"):
            main = runpy.run_path(str(ROOT / "tools" / f"{command}.py"))["main"]
            with pytest.raises(UserError) as caught:
                main(checkpoint, device="cpu")
            return 2, str(caught.value)
        folder = tmp_path / "resumed"
        folder.mkdir(exist_ok=True)
        if command in ("train", "demo"):
            shutil.copy(checkpoint, folder / "last.pt")
        words = {
            "evaluate": [checkpoint],
            "visualize": [checkpoint, photo, "--out", tmp_path / "pictures"],
            "predict": [checkpoint, photo, "--workers", "0"],
            "inspect": [checkpoint],
            "export-weights": [checkpoint, "--out", tmp_path / "new.safetensors"],
            "train": ["--config", tiny_file(tmp_path / "c.yaml"), "--out", folder, "--resume"],
            "demo": ["--out", folder, "--resume"],
        }[command]
        result = racnn(command, *words)
        assert "Traceback" not in result.out + result.err
        return result.code, result.err

    return run


# --- inspect ----------------------------------------------------------------------------------------------------------


def test_inspect_tells_what_a_checkpoint_is(finished, racnn):
    best = finished.folder / "best.pt"
    result = racnn("inspect", best, "--json")
    assert result.code == 0
    found, stored = json.loads(result.out), load_checkpoint(best)
    model = load(best).model
    assert found["parameters"] == {
        part: sum(p.numel() for p in getattr(model, part).parameters())
        for part in ("backbones", "classifiers", "apns", "fusion")
    }
    assert sum(found["parameters"].values()) == sum(p.numel() for p in model.parameters())
    assert found["digest"] == torch.load(best, weights_only=True)["digest"]
    assert found["file_size"] == best.stat().st_size
    assert (found["format"], found["dataset"], found["step"]) == (FORMAT, "synthetic", stored["step"])
    assert (found["num_classes"], found["class_names"]) == (8, stored["class_names"])
    assert (found["num_train"], found["num_val"]) == (56, 8)
    assert (found["backbone"], found["view_sizes"]) == ("tiny", [32, 32, 32])
    assert (found["trained_scales"], found["fusion_trained"]) == (3, True)
    assert found["val_top1"] == stored["val_report"]["top1"]
    assert found["position"] == "end of phase 08-fusion"
    assert found["provenance"] == stored["provenance"]


def test_inspect_tells_it_in_words(finished, racnn):
    said = racnn("inspect", finished.folder / "last.pt").out
    names = load_checkpoint(finished.folder / "last.pt")["class_names"]
    for text in (
        *names[:5],
        "3 of 3 scales, fusion trained",
        "36, end of the schedule",
        "torch 2",
        f"checkpoint format {FORMAT}",
    ):
        assert text in said
    assert names[5] not in said
    assert "top-1 % scale_1" in racnn("inspect", finished.folder / "best.pt").out


def test_inspect_tells_where_a_run_was_stopped(short, racnn, tmp_path, monkeypatch):
    from racnn.engine import trainer
    from racnn.engine.logger import Logger

    phase = {"kind": "classification", "scales": [1], "epochs": 3, "lr": 0.01}
    plain, validations = Logger.scalars, []

    def stop(self, kind, *given, **rest):
        validations.extend([kind] * (kind == "val"))
        if len(validations) == 2:
            raise KeyError
        plain(self, kind, *given, **rest)

    monkeypatch.setattr(Logger, "scalars", stop)
    with pytest.raises(KeyError):
        trainer.fit(short(tmp_path, schedule=[phase]), device=torch.device("cpu"))
    assert (
        "step          2, in phase 01-classification_1, 1 of 3 epochs done, and 1 batches of the next, which is not yet measured\n"
        in racnn("inspect", tmp_path / "last.pt").out
    )


# --- export -----------------------------------------------------------------------------------------------------------


def test_exported_weights_are_used_like_the_checkpoint(finished, racnn, photo, tmp_path):
    best, out = finished.folder / "best.pt", tmp_path / "deep" / "birds.safetensors"
    result = racnn("export-weights", best, "--out", out)
    assert result.code == 0
    assert str(out) in result.out
    assert racnn("evaluate", out).out == racnn("evaluate", best).out
    for checkpoint, folder in ((best, "a"), (out, "b")):
        assert racnn("visualize", checkpoint, photo, "--out", tmp_path / folder).code == 0
    assert (tmp_path / "a" / "regions.json").read_text() == (tmp_path / "b" / "regions.json").read_text()
    assert (tmp_path / "a" / "photo.png").read_bytes() == (tmp_path / "b" / "photo.png").read_bytes()
    left, right = (json.loads(racnn("inspect", path, "--json").out) for path in (best, out))
    own = ("path", "file_size", "digest")
    assert {k: v for k, v in left.items() if k not in own} == {k: v for k, v in right.items() if k not in own}


def test_a_file_is_exported_over_only_when_asked(finished, racnn, tmp_path):
    out = tmp_path / "birds.safetensors"
    out.write_text("mine")
    again = ("export-weights", finished.folder / "best.pt", "--out", out)
    result = racnn(*again)
    assert (result.code, out.read_text()) == (2, "mine")
    assert "--overwrite" in result.err
    result = racnn(*again, "--overwrite")  # it is no export
    assert (result.code, out.read_text()) == (2, "mine")
    assert "nothing says that racnn wrote it" in result.err
    out.unlink()
    assert racnn(*again).code == 0
    assert racnn(*again).code == 2
    (tmp_path / ".racnn-written").unlink()  # as an earlier version exported it
    (tmp_path / "birds.safetensors.md").unlink()
    assert racnn(*again, "--overwrite").code == 0
    assert load(out).scales == 3


@pytest.mark.parametrize("name", ["birds.pt", "birds", "folder.safetensors"])
def test_a_place_that_cannot_be_exported_to_is_told(name, finished, racnn, tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    result = racnn("export-weights", finished.folder / "best.pt", "--out", tmp_path / name, "--overwrite")
    assert result.code == 2
    assert f"--out {tmp_path / name}" in result.err


# --- what should not be trusted ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["torch", "pickle", "safetensors"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_checkpoint_with_code_in_it_is_refused_and_not_executed(command, how, finished, use, tmp_path):
    victim = tmp_path / "executed"
    pickle.loads(pickle.dumps(Evil(victim)))
    assert victim.exists()  # it does what it should in careless hands
    victim.unlink()
    path = tmp_path / ("evil.safetensors" if how == "safetensors" else "evil.pt")
    content = {**load_checkpoint(finished.folder / "last.pt"), "digest": "", "evil": Evil(victim)}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(Evil(victim)))
    code, said = use(command, path)
    assert code == 2
    assert "cannot be read as a checkpoint" in said
    assert "weights_only" not in said  # torch's advice to trust the file
    assert not victim.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_with_code_in_them_are_refused_and_not_executed(suffix, racnn, tiny_file, tmp_path):
    victim = tmp_path / "executed"
    torch.save({"features.0.weight": Evil(victim)}, tmp_path / f"evil{suffix}")
    config = tiny_file(
        tmp_path / "c.yaml", out=tmp_path / "run", model__weights=str(tmp_path / f"evil{suffix}")
    )
    result = racnn("train", "--config", config)
    assert result.code == 2
    assert f"evil{suffix}: cannot be read as weights" in result.err
    assert not victim.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_checkpoint_with_a_flipped_byte_is_refused(command, run_copy, use):
    best = run_copy / "best.pt"
    data = bytearray(best.read_bytes())
    data[len(data) // 2] ^= 1
    best.write_bytes(data)
    code, said = use(command, best)
    assert code == 2
    assert "does not match its digest" in said
    if command not in ("train", "demo"):
        assert f"whole in the same folder: {run_copy / 'last.pt'}, {run_copy / 'previous.pt'}" in said


# --- going on from the one before -------------------------------------------------------------------------------------


@pytest.fixture
def resume(racnn, run_copy, finished):
    """Go on with the copied run, some keys of the configuration changed."""

    def call(**changes):
        values = dump_config(finished.config)
        values["model"] |= changes.pop("model", {})
        config = run_copy.parent / "c.yaml"
        config.write_text(yaml.safe_dump(values | changes), encoding="utf-8")
        return racnn("train", "--config", config, "--out", run_copy, "--resume")

    return call


def test_where_the_last_checkpoint_is_damaged_the_way_to_the_one_before_is_told(run_copy, resume, finished):
    last, previous = run_copy / "last.pt", run_copy / "previous.pt"
    last.write_bytes(last.read_bytes()[:-1000])
    result = resume()
    assert result.code == 2
    (command,) = [line for line in result.err.splitlines() if line.startswith("  mv ")]
    assert shlex.split(command) == ["mv", str(previous), str(last)]
    subprocess.run(command, shell=True, check=True)
    assert resume().code == 0
    assert torch.equal(load(last).model.fusion.weight, load(finished.folder / "last.pt").model.fusion.weight)


def test_a_last_checkpoint_that_is_gone_is_treated_alike(run_copy, resume):
    (run_copy / "last.pt").unlink()
    result = resume()
    assert result.code == 2
    assert "holds no last.pt" in result.err
    assert f"mv '{run_copy}/previous.pt' '{run_copy}/last.pt'" in result.err


@pytest.mark.parametrize("previous", ["damaged", "missing"])
def test_where_both_are_damaged_there_is_no_way_on(previous, run_copy, resume):
    (run_copy / "last.pt").write_bytes(b"junk")
    (run_copy / "previous.pt").write_bytes(b"junk")
    if previous == "missing":
        (run_copy / "previous.pt").unlink()
    result = resume()
    assert result.code == 2
    assert "  mv " not in result.err
    assert "--overwrite" in result.err


def test_other_numbers_of_scales_and_classes_are_told(resume):
    result = resume(model={"view_sizes": [32, 32, 32, 32]}, schedule="recipe")
    assert result.code == 2
    assert "model.view_sizes: 3 scales in the run, 4 now" in result.err
