"""Levels from the command line: chosen after training or by evaluate, used by predict, shown by report."""

import csv
import json

import layouts
import pytest
import torch

import racnn as api
from racnn.engine.levels import answers_out_of_fold
from racnn.engine.predictor import load
from racnn.errors import DataError
from racnn.models.racnn.heads import deal_folds

SMALL = ["--backbone", "tiny", "--set", "model.weights=null", "--set", "model.view_sizes=[32, 32, 32]"]
SMALL += ["--set", "data.source_size=48", "--set", "data.num_workers=0", "--set", "run.num_preview=0"]
NAMES = ("Laridae/Herring Gull", "Laridae/Arctic Tern", "Tytonidae/Barn Owl")


@pytest.fixture
def run(racnn, tmp_path):
    """Return the folder of a run of quick on nested class folders, and what its training printed."""
    for number, name in enumerate(NAMES):
        for i in range(8):
            layouts.write_photo(tmp_path / "birds" / name / f"{i}.png", seed=10 * number + i)
    words = ("train", tmp_path / "birds", "--out", tmp_path / "run", "--set", "data.levels=folders", *SMALL)
    result = racnn(*words)
    assert result.code == 0, result.err
    return tmp_path / "run", result.out


def test_training_chooses_by_answers_out_of_fold(run):
    folder, out = run
    assert "training photos answered out of fold" in out
    assert "racnn predict --levels" in out
    chosen = json.loads((folder / "best.levels.json").read_text())
    assert chosen["chosen_by"] == "out of fold"
    assert chosen["groups"][1] == ["Laridae", "Tytonidae", "Laridae"]


def test_answers_out_of_fold_are_of_heads_that_had_not_seen_the_photo(run, tmp_path):
    folder, _ = run
    trained = load(folder / "best.pt")
    answers, labels = answers_out_of_fold(trained, folder / "descriptors")
    assert len(answers) == len(trained.train_names)
    assert len(deal_folds(labels).unique()) > 1
    with torch.no_grad():
        trained.model.classifiers[1].weight.mul_(1.1)
    assert answers_out_of_fold(trained, folder / "descriptors") is None, "of another network"
    assert answers_out_of_fold(load(folder / "best.pt"), tmp_path) is None, "there are none"


def test_predict_names_what_is_sure_everywhere_alike(run, racnn, tmp_path):
    folder, _ = run
    best, photo = folder / "best.pt", tmp_path / "birds" / NAMES[0] / "0.png"
    row = json.loads(racnn("predict", best, photo, "--levels", "--json", "--workers", 0).out)
    found = api.load(best, levels=True).predict(photo)
    assert row["sure"]["level"] == found.sure.level in ("class", "group", "unsure")
    assert row["sure"]["name"] == found.sure.name
    assert row["sure"]["probability"] == pytest.approx(found.sure.probability, abs=1e-4)
    (line,) = csv.DictReader(
        racnn("predict", best, photo, "--levels", "--csv", "--workers", 0).out.splitlines()
    )
    assert (line["level"], line["sure"]) == (found.sure.level, found.sure.name)
    words = racnn("predict", best, photo, "--levels", "--workers", 0).out
    assert found.name in words
    assert (
        found.sure.level == "class"
        or {"unsure": "not sure; perhaps", "group": "(group); perhaps"}[found.sure.level] in words
    )
    plain = racnn("predict", best, photo, "--json", "--workers", 0).out
    assert "sure" not in json.loads(plain)


def test_evaluate_chooses_for_any_checkpoint(finished, racnn, tmp_path):
    best = finished.folder / "best.pt"
    names = load(best).class_names
    rows = ["species,kind", *(f"{name},{'even' if i % 2 else 'odd'}" for i, name in enumerate(names))]
    (tmp_path / "kinds.csv").write_text("\n".join(rows))
    refused = racnn("predict", best, tmp_path, "--levels")
    assert refused.code == 2
    assert "racnn evaluate" in refused.err
    with pytest.raises(DataError, match="no such file"):
        api.load(best, levels=True)
    result = racnn("evaluate", best, "--levels", tmp_path / "kinds.csv", "--json", tmp_path / "e.json")
    try:
        assert result.code == 0, result.err
        found = json.loads((tmp_path / "e.json").read_text())["levels"]
        assert found["sure"]["chosen_by"] == "validation"
        assert found["top1"]["kind"] >= found["top1"]["species"]
        assert api.load(best, levels=True).caution.weight == found["sure"]["weight"]
        report = racnn("report", best, "--levels", tmp_path / "kinds.csv", "--out", tmp_path / "r.html")
        assert report.code == 0, report.err
        assert 'data-key="levels.top1.kind"' in (tmp_path / "r.html").read_text()
    finally:
        best.with_suffix(".levels.json").unlink()
    assert racnn("evaluate", best, "--levels", tmp_path / "none.csv").code == 2
