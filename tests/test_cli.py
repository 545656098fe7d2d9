"""The command line: what newcomers type works, and what they mistype is told in one message."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from racnn import __version__
from racnn.config import load_config
from racnn.data.listing import find_photos
from racnn.engine.checkpoint import load_checkpoint
from racnn.recipes import packaged

SUBPROCESS = {**os.environ, "OMP_NUM_THREADS": "1"}
PHOTO_SIZES = {"wide.png": (300, 17), "tall.jpg": (15, 120), "square.png": (40, 40)}  # (w, h)


def noise(path, *shape):
    """Write a photo of noise, no two of one class or of one name the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = list(f"{path.parent.name}/{path.name}".encode())
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Photos of odd shapes and kinds in a folder of folders."""
    folder = tmp_path_factory.mktemp("photos")
    for name, (w, h) in PHOTO_SIZES.items():
        noise(folder / name, h, w, 3)
    noise(folder / "deeper" / "square.png", 30, 50)  # grey
    noise(folder / "line.png", 1, 33, 3)
    (folder / "readme.txt").write_text("no photo")
    return folder


def write_folder_dataset(root, classes=("auk", "tit"), num=8):
    for name in classes:
        for j in range(num):
            noise(root / name / f"{j}.png", 30 + j, 40, 3)
    return root


def assert_refused(result, *told, code=2):
    """Check that a mistake ended with an exit code and one message on stderr that names it."""
    assert result.code == code
    assert "Traceback" not in result.out + result.err
    for text in told:
        assert text in result.err


# --- help -------------------------------------------------------------------------------------------------------------


def test_help_comes_without_torch():
    """``python -m racnn --help`` names the commands, and what it imports is light."""
    code = (
        "import sys; sys.argv[1:] = ['--help']; import runpy\n"
        "try: runpy.run_module('racnn', run_name='__main__')\n"
        "finally: print('HEAVY', [m for m in ('torch', 'torchvision', 'cv2', 'albumentations') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=SUBPROCESS, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stdout
    for command in ("train", "evaluate", "visualize", "predict", "demo"):
        assert command in done.stdout


@pytest.mark.parametrize("command", ["train", "evaluate", "visualize", "predict", "demo"])
def test_every_command_explains_itself(racnn, command):
    result = racnn(command, "--help")
    assert result.code == 0
    assert "--device" in result.out
    assert racnn("--version").out.strip() == f"racnn {__version__}"


# --- train ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder_run(racnn, tiny_file, tmp_path):
    """Two steps on a folder of photos, through the command line."""
    root = write_folder_dataset(tmp_path / "birds")
    config = tiny_file(
        tmp_path / "birds.yaml",
        data__dataset="folder",
        data__root=str(root),
        data__batch_size=5,
        schedule=[{"kind": "classification", "scales": [1, 2], "epochs": 1, "lr": 0.01}],
    )
    result = racnn("train", "--config", config, "--out", tmp_path / "run", "--set", "run.seed=3")
    return SimpleNamespace(result=result, config=config, root=root, folder=tmp_path / "run")


def test_a_folder_of_photos_trains_and_evaluates(folder_run, racnn, tmp_path):
    assert folder_run.result.code == 0
    best = folder_run.folder / "best.pt"
    stored = load_checkpoint(best)
    assert stored["step"] == 2
    assert stored["class_names"] == ["auk", "tit"]
    assert stored["config"]["run"]["seed"] == 3  # of --set
    assert f"racnn evaluate {best}" in folder_run.result.out
    moved = shutil.move(folder_run.root, tmp_path / "elsewhere")
    assert_refused(racnn("evaluate", best), "data.root", str(folder_run.root))
    result = racnn("evaluate", best, "--data", moved, "--json", tmp_path / "deep" / "evaluation.json")
    assert result.code == 0
    report = json.loads((tmp_path / "deep" / "evaluation.json").read_text())
    assert report["num_classes"] == 2
    assert set(report["top1"]) == {"scale_1", "scale_2", "scale_1+2", "mean"}  # scale 3 was not trained
    assert report["localisation"] == {"region_1": None}  # these photos have no boxes


def test_a_run_is_refused_twice_and_can_be_resumed(folder_run, racnn):
    again = ("train", "--config", folder_run.config, "--out", folder_run.folder, "--set", "run.seed=3")
    assert_refused(racnn(*again), str(folder_run.folder), "--resume", "--overwrite")
    assert racnn(*again, "--resume").code == 0
    assert_refused(racnn(*again, "--set", "schedule.0.lr=0.5", "--resume"), "schedule.0.lr", "0.01", "0.5")
    own = ("train", "--config", folder_run.folder / "config.yaml", "--out", folder_run.folder, "--resume")
    assert " ".join(map(str, own[1:])) in racnn(*again, "--set", "schedule.0.lr=0.5", "--resume").err
    assert racnn(*own).code == 0
    assert_refused(racnn(*again, "--resume", "--overwrite"), "--resume", "--overwrite", "exclude")
    assert racnn(*again, "--overwrite").code == 0


def test_a_start_that_failed_leaves_the_folder_free(racnn, tiny_file, tmp_path):
    root = write_folder_dataset(tmp_path / "birds")
    whole = {path: path.read_bytes() for path in root.rglob("*.png")}
    for path, content in whole.items():
        path.write_bytes(content[:60])
    changes = {"data__dataset": "folder", "data__root": str(root), "data__batch_size": 5}
    schedule = [{"kind": "classification", "scales": [1], "epochs": 1, "lr": 0.01}]
    config = tiny_file(tmp_path / "c.yaml", out=tmp_path / "run", schedule=schedule, **changes)
    assert_refused(racnn("train", "--config", config), ".png", "data verify", "data.exclude")
    for path, content in whole.items():
        path.write_bytes(content)
    assert racnn("train", "--config", config).code == 0


def test_a_damaged_test_photo_is_named_and_can_be_left_out(folder_run, racnn, tmp_path):
    best = folder_run.folder / "best.pt"
    stored = load_checkpoint(best)
    known = {*stored["train_names"], *stored["val_names"]}
    test = sorted(
        path for path in folder_run.root.rglob("*.png") if f"{path.parent.name}/{path.name}" not in known
    )
    test[0].write_bytes(test[0].read_bytes()[:60])
    assert_refused(racnn("evaluate", best), str(test[0]), "--skip-damaged")
    result = racnn("evaluate", best, "--skip-damaged", "--json", tmp_path / "report.json")
    assert result.code == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["num_images"], report["num_skipped"]) == (len(test) - 1, 1)
    assert "1 damaged photos of the data set were left out" in result.out
    held_out = folder_run.root / stored["val_names"][0]
    held_out.write_bytes(held_out.read_bytes()[:60])
    assert_refused(racnn("evaluate", best, "--split", "val"), str(held_out), "--skip-damaged")
    for split, num in (("val", len(stored["val_names"]) - 1), ("test", len(test) - 1)):
        result = racnn(
            "evaluate", best, "--split", split, "--skip-damaged", "--json", tmp_path / "report.json"
        )
        assert result.code == 0, result.err
        assert json.loads((tmp_path / "report.json").read_text())["num_images"] == num


def test_a_run_ends_with_its_verdict(racnn, tiny_file, tmp_path, monkeypatch):
    from racnn.evaluation import diagnostics

    seen = []
    monkeypatch.setattr(diagnostics, "diagnose", lambda *given: seen.append(given) or ["look at this"])
    schedule = [{"kind": "classification", "scales": [1], "epochs": 1, "lr": 0.01}]
    result = racnn(
        "train", "--config", tiny_file(tmp_path / "c.yaml", out=tmp_path / "run", schedule=schedule)
    )
    assert result.code == 0
    assert "note: look at this" in result.out
    ((report, config),) = seen
    assert report == load_checkpoint(tmp_path / "run" / "best.pt")["val_report"]
    assert config.run.out == str(tmp_path / "run")


def test_other_classes_than_the_network_s_are_refused(folder_run, racnn, tmp_path):
    other = write_folder_dataset(tmp_path / "other", classes=("auk", "wren", "tit"))
    result = racnn("evaluate", folder_run.folder / "best.pt", "--data", other)
    assert_refused(result, "3 classes here, 2 in the checkpoint", "'wren' is new")
    again = ("train", "--config", folder_run.folder / "config.yaml", "--out", folder_run.folder, "--resume")
    assert_refused(racnn(*again, "--set", f"data.root={other}"), "3 classes here, 2 in the checkpoint")
    shutil.rmtree(folder_run.root / "tit")
    shutil.copytree(folder_run.root / "auk", folder_run.root / "owl")
    assert_refused(racnn(*again), "2 classes here, 2 in the checkpoint", "'owl' is new, 'tit' is missing")


def test_a_damaged_photo_is_named_by_a_worker_and_the_program_ends(tiny_file, tmp_path):
    """In a process of its own: a worker that is still there at the end must not keep the program from ending."""
    root = write_folder_dataset(tmp_path / "birds")
    for path in root.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    changes = {"data__dataset": "folder", "data__root": str(root), "data__num_workers": 1}
    config = tiny_file(tmp_path / "c.yaml", out=tmp_path / "run", **changes)
    command = [sys.executable, "-m", "racnn", "train", "--config", str(config), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, env=SUBPROCESS, timeout=60)
    assert_refused(SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr), str(root), ".png")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("where", "error", "lines", "told"),
    [
        (
            "train_one_epoch",
            RuntimeError("DataLoader worker (pid 77) is killed by signal: Bus error."),
            2,
            ["pid 77", "data.num_workers=0"],
        ),
        (
            "prepare",
            torch.OutOfMemoryError("CUDA out of memory. Tried"),
            1,
            ["CUDA out of memory", "--device"],
        ),
    ],
    ids=["a worker that died", "a full GPU"],
)
def test_what_the_machine_did_is_told_with_advice(
    where, error, lines, told, tiny_file, racnn, tmp_path, monkeypatch
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(f"racnn.engine.trainer.{where}", fail)
    result = racnn("train", "--config", tiny_file(tmp_path / "c.yaml"), "--out", tmp_path / "run")
    assert_refused(result, *told, code=1)
    assert len(result.err.strip().splitlines()) == lines


def test_sigterm_ends_with_143(tiny_file, racnn, tmp_path, monkeypatch):
    from racnn.engine.logger import Logger

    plain = Logger.advance_bar
    stop = lambda self, losses: (plain(self, losses), os.kill(os.getpid(), signal.SIGTERM))  # noqa: E731
    monkeypatch.setattr(Logger, "advance_bar", stop)
    result = racnn("train", "--config", tiny_file(tmp_path / "c.yaml", out=tmp_path / "run"))
    assert result.code == 143
    assert "--resume" in result.out
    assert (tmp_path / "run" / "last.pt").exists()


def test_a_loss_that_is_not_finite_ends_with_1(tiny_file, racnn, tmp_path, monkeypatch):

    spoilt = lambda phase, model, *_: {"loss": model.classifiers[0].weight.sum() * float("nan")}  # noqa: E731
    monkeypatch.setattr("racnn.models.racnn.phases.Classification.losses", spoilt)
    result = racnn("train", "--config", tiny_file(tmp_path / "c.yaml", out=tmp_path / "run"))
    assert result.code == 1
    assert "01-classification_1" in result.err
    assert "Traceback" not in result.err


# --- evaluate ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def best(finished):
    return finished.folder / "best.pt"


def test_the_report_has_the_keys_that_are_promised(best, racnn, tmp_path):
    result = racnn("evaluate", best, "--json", tmp_path / "evaluation.json")
    assert result.code == 0
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert (report["dataset"], report["split"], report["num_images"], report["num_classes"]) == (
        "synthetic",
        "test",
        16,
        8,
    )
    assert report.keys() == load_checkpoint(best)["val_report"].keys()
    assert f"{100 * report['top1']['fused']:.1f}" in result.out


def test_the_validation_photos_are_those_the_run_held_out_and_the_training_photos_the_rest(
    best, racnn, tmp_path
):
    reports = {}
    for split in ("val", "train"):
        assert racnn("evaluate", best, "--split", split, "--json", tmp_path / split).code == 0
        reports[split] = json.loads((tmp_path / split).read_text())
    assert reports["val"] == json.loads(json.dumps(load_checkpoint(best)["val_report"]))
    assert reports["train"]["num_images"] == 56


# --- visualize --------------------------------------------------------------------------------------------------------


def test_photos_of_any_shape_get_a_picture_and_boxes_inside_them(best, racnn, photos, tmp_path):
    result = racnn("visualize", best, photos, "--out", tmp_path / "out")
    assert result.code == 0
    rows = json.loads((tmp_path / "out" / "regions.json").read_text())
    assert {row["photo"] for row in rows} == {str(path) for path in photos.rglob("*.[pj][np]g")}
    assert len(rows) == 5
    for row in rows:
        with Image.open(row["photo"]) as photo:
            width, height = photo.size
        assert len(row["boxes_xyxy"]) == 2
        for x_low, y_low, x_high, y_high in row["boxes_xyxy"]:
            assert 0 <= x_low < x_high <= width
            assert 0 <= y_low < y_high <= height
        assert set(row["looks"]) == {"scale_1", "scale_2", "scale_3", "fused"}
        for top in row["looks"].values():
            probabilities = [answer["probability"] for answer in top]
            assert len(top) == 3
            assert probabilities == sorted(probabilities, reverse=True)
            assert 0 < sum(probabilities) <= 1.00001


def test_photos_of_the_same_name_do_not_overwrite_each_other(best, racnn, photos, tmp_path):
    places = [photos / "square.png", photos / "deeper" / "square.png"]
    assert racnn("visualize", best, *places, "--out", tmp_path / "out").code == 0
    rows = json.loads((tmp_path / "out" / "regions.json").read_text())
    pictures = [row["picture"] for row in rows]
    assert len(set(pictures)) == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *pictures,
        "regions.json",
        ".racnn-written",
    }
    assert [row["photo"] for row in rows] == [str(place) for place in places]
    assert rows[0]["boxes_xyxy"] != rows[1]["boxes_xyxy"]
    assert pictures == [
        f"{place.parent.name}_square.png" for place in places
    ]  # the class, where folders are classes


def test_pictures_of_an_earlier_call_are_counted(best, racnn, photos, tmp_path):
    assert racnn("visualize", best, photos, "--out", tmp_path / "out").out.count("\n") == 1
    result = racnn("visualize", best, photos / "wide.png", "--out", tmp_path / "out")
    assert "1 pictures and regions.json" in result.out
    assert "5 other pictures were there before" in result.out  # then named by their folders too


def test_config_prints_what_a_run_would_have_and_trains_nothing(racnn, tmp_path):
    folder = Path(__file__).parent.parent / "configs"
    result = racnn("config", folder / "cub200_vgg16.yaml", "--set", "schedule.2.epochs=7")
    assert result.code == 0
    (tmp_path / "again.yaml").write_text(result.out)
    assert load_config(tmp_path / "again.yaml") == load_config(
        folder / "cub200_vgg16.yaml", ["schedule.2.epochs=7"]
    )
    assert "# schedule.2: classification of scale 2, 7 epochs" in result.out.splitlines()
    assert "# schedule.5.alternate.0: ranking, 2 epochs" in result.out.splitlines()


@pytest.mark.parametrize(("limit", "drawn"), [(2, [0, 2]), (3, [0, 1, 3]), (5, range(5)), (99, range(5))])
def test_a_limit_takes_photos_from_everywhere(best, racnn, photos, limit, drawn, tmp_path):
    every = find_photos([photos])
    assert len(every) == 5
    assert racnn("visualize", best, photos, "--limit", limit, "--out", tmp_path / "out").code == 0
    rows = json.loads((tmp_path / "out" / "regions.json").read_text())
    assert [row["photo"] for row in rows] == [str(every[i]) for i in drawn]


# --- predict ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(finished, tmp_path_factory):
    """Return a copy of a trained network, beside which early exits may be written."""
    return shutil.copy(finished.folder / "best.pt", tmp_path_factory.mktemp("checkpoint") / "best.pt")


def test_predict_names_every_photo_in_order(racnn, checkpoint, photos):
    result = racnn("predict", checkpoint, photos, photos / "wide.png", "--batch-size", "2", "--workers", "0")
    assert result.code == 0
    names = [line.split("  ")[0] for line in result.out.splitlines()]
    assert names == [*map(str, find_photos([photos])), str(photos / "wide.png")]
    classes = load_checkpoint(checkpoint)["class_names"]
    for line in result.out.splitlines():
        _, name, percent, looks = line.split("  ")
        assert name in classes
        assert 0 < float(percent.removesuffix(" %")) <= 100
        assert looks == "3 looks"


def test_predict_says_what_visualize_says(racnn, checkpoint, photos, tmp_path):
    assert racnn("visualize", checkpoint, photos, "--out", tmp_path).code == 0
    drawn = json.loads((tmp_path / "regions.json").read_text())
    result = racnn("predict", checkpoint, photos, "--json", "--workers", "0")
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert len(rows) == len(drawn) == len(PHOTO_SIZES) + 2
    for row, other in zip(rows, drawn, strict=True):
        assert row["photo"] == other["photo"]
        assert [a["name"] for a in row["top"]] == [a["name"] for a in other["looks"]["fused"]]
        for mine, theirs in zip(row["top"], other["looks"]["fused"], strict=True):
            assert mine["probability"] == pytest.approx(theirs["probability"], abs=1e-4)
        assert np.allclose(row["boxes_xyxy"], other["boxes_xyxy"], atol=0.05)


def test_predict_writes_csv_that_a_reader_of_csv_reads(racnn, checkpoint, photos):
    result = racnn("predict", checkpoint, photos, "--csv", "--workers", "0")
    rows = list(csv.DictReader(io.StringIO(result.out)))
    assert list(rows[0]) == ["photo", "name", "probability", "scales", "region_1", "region_2", "error"]
    assert [row["photo"] for row in rows] == list(map(str, find_photos([photos])))
    for row in rows:
        x0, y0, x1, y1 = map(float, row["region_1"].split())
        assert x0 < x1
        assert y0 < y1


@pytest.mark.parametrize("batch_size", [1, 16])
def test_predict_leaves_out_what_it_cannot_read_and_says_so(racnn, checkpoint, photos, batch_size, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    places = (tmp_path / "broken.jpg", photos / "wide.png")
    result = racnn("predict", checkpoint, *places, "--json", "--batch-size", batch_size, "--workers", "0")
    assert result.code == 1, "what could be done is done"
    assert "broken.jpg" in result.err
    assert "error: 1 of 2 photos could not be read" in result.err
    assert_refused(
        racnn("predict", checkpoint, places[0], "--workers", "0"), "1 of 1 photos could not be read"
    )
    broken, fine = (json.loads(line) for line in result.out.splitlines())
    assert set(broken) == {"photo", "error"}
    assert fine.keys() >= {"photo", "top"}
    assert fine["photo"].endswith("wide.png")


def test_early_exit_is_chosen_by_evaluate_and_used_by_predict(racnn, checkpoint, photos, tmp_path):
    command = ("predict", checkpoint, photos, "--early-exit", "--json", "--workers", "0")
    assert_refused(racnn(*command), "--early-exit", "racnn evaluate")
    result = racnn("evaluate", checkpoint, "--early-exit", "--json", tmp_path / "evaluation.json")
    assert result.code == 0
    assert "early exit" in result.out
    report = json.loads((tmp_path / "evaluation.json").read_text())["early_exit"]
    assert report["choice"]["threshold"] == report["threshold"]
    file = checkpoint.with_suffix(".early_exit.json")
    choice = json.loads(file.read_text())
    file.write_text(json.dumps(choice | {"threshold": 0.0}))  # everything stops at once
    rows = [json.loads(line) for line in racnn(*command).out.splitlines()]
    assert [(row["scales"], row["boxes_xyxy"]) for row in rows] == [(1, [])] * len(rows)


def test_predict_prints_one_format_at_a_time(racnn, checkpoint, photos):
    assert_refused(racnn("predict", checkpoint, photos, "--json", "--csv"), "--json", "--csv")


def test_predict_ends_quietly_when_its_reader_does(checkpoint, photos):
    command = f"{sys.executable} -m racnn predict {checkpoint} {photos} {photos} --workers 0 --batch-size 1 --device cpu"
    done = subprocess.run(
        f"{command} | head -n 1", shell=True, capture_output=True, text=True, env=SUBPROCESS, timeout=120
    )
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


# --- demo -------------------------------------------------------------------------------------------------------------


def test_a_shortened_demo_ends_with_a_report_and_pictures(racnn, tmp_path):
    config = yaml.safe_load(packaged("demo.yaml").read_text(encoding="utf-8"))
    small = [
        "data.synthetic.num_train=32",
        "data.synthetic.num_test=8",
        "data.source_size=48",
        "run.num_preview=1",
    ]
    small += ["model.view_sizes=[32, 32, 32]", "run.precision=fp32"]
    for i, entry in enumerate(config["schedule"]):
        for j in range(len(entry.get("alternate", []))):
            small.append(f"schedule.{i}.alternate.{j}.epochs=1")
        small.append(f"schedule.{i}.rounds=1" if "alternate" in entry else f"schedule.{i}.epochs=1")
    settings = [word for setting in small for word in ("--set", setting)]
    out = tmp_path / "a demo: with, odd name"
    result = racnn("demo", "--out", out, *settings)
    assert result.code == 0
    report = json.loads((out / "evaluation.json").read_text())
    assert (report["split"], report["num_images"]) == ("test", 8)
    assert "fused" in report["top1"]
    rows = json.loads((out / "pictures" / "regions.json").read_text())
    assert {path.name for path in (out / "pictures").glob("*.png")} == {row["picture"] for row in rows}
    assert len(rows) == 8
    names = load_checkpoint(out / "best.pt")["class_names"]
    assert all(
        any(row["picture"].endswith(f"_{name.replace(' ', '_')}.png") for name in names) for row in rows
    )
    for name in ("evaluation.json", "pictures", "best.pt", "tensorboard"):
        assert str(out / name) in result.out
        assert (out / name).exists()
    assert_refused(racnn("demo", "--out", out, *settings), str(out), "--overwrite")


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "data.batch_sise=8"], ["data.batch_sise", "batch_size"]),
        (["--set", "data.batch_size=none"], ["data.batch_size", "none"]),
        (["--set", "data.batch_size"], ["--set data.batch_size", "key=value"]),
        (["--set", "model.backbone=tinny"], ["tinny", "tiny"]),
        (["--set", "data.dataset=synthetics"], ["data.dataset", "synthetics", "synthetic"]),
        (["--set", "data.dataset=folder"], ["data.root", "not set"]),
        (["--set", "data.classes=1-99"], ["data.classes", "1-99"]),
        (["--set", "model.weights=/nowhere/vgg.pth"], ["/nowhere/vgg.pth"]),
        (["--device", "gpu"], ["--device", "gpu"]),
        (["--device", "cuda:99"], ["--device", "cuda:99"]),
        (["--device", "meta"], ["--device", "meta"]),
        (["--resume"], ["--resume", "last.pt"]),
        (["--resume", "--overwrite"], ["--resume", "--overwrite"]),
        (["--epochs", "3"], ["--epochs"]),
    ],
    ids=lambda value: "=".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_in_train_is_told(words, told, racnn, tiny_file, tmp_path):
    config = tiny_file(tmp_path / "tiny.yaml", out=tmp_path / "run")
    assert_refused(racnn("train", "--config", config, *words), *told)
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_missing_configuration_is_told_with_its_nearest_neighbour(racnn, tiny_file, tmp_path):
    tiny_file(tmp_path / "birds.yaml")
    assert_refused(
        racnn("train", "--config", tmp_path / "brids.yaml"), "brids.yaml", "did you mean 'birds.yaml'"
    )
    assert_refused(racnn("train", "--config", tmp_path), str(tmp_path))


@pytest.mark.parametrize("command", ["evaluate", "visualize"])
def test_a_checkpoint_that_cannot_be_used_is_told(command, best, racnn, photos, tmp_path):
    rest = [photos] if command == "visualize" else []
    (tmp_path / "junk.pt").write_text("junk")
    assert_refused(racnn(command, tmp_path / "none.pt", *rest), "none.pt", "no such checkpoint")
    shutil.copy(best, tmp_path / "last.pt")
    assert_refused(
        racnn(command, tmp_path / "best.pt", *rest), f"whole in the same folder: {tmp_path / 'last.pt'}"
    )
    assert_refused(racnn(command, tmp_path / "junk.pt", *rest), "junk.pt")
    assert_refused(racnn(command, tmp_path, *rest), str(tmp_path))


def test_a_split_that_there_is_not_is_told(best, racnn):
    assert_refused(racnn("evaluate", best, "--split", "tset"), "--split", "tset", "test, val or train")


@pytest.mark.parametrize("command", ["evaluate", "visualize", "demo"])
def test_a_wrong_device_is_told_by_every_command(command, best, racnn, photos, tmp_path):
    words = {"evaluate": [best], "visualize": [best, photos], "demo": ["--out", tmp_path / "demo"]}[command]
    assert_refused(racnn(command, *words, "--device", "gpu"), "--device", "gpu")


@pytest.mark.parametrize("words", [["trian"], ["evaluate"], ["train"], ["train", "--config"]])
def test_a_command_line_that_cannot_be_parsed_is_refused(words, racnn):
    assert_refused(racnn(*words))
