"""Levels from the command line: chosen after training or by evaluate, used by predict, shown by report."""

import csv
import json

import layouts
import pytest
import torch
from safetensors.torch import load_file

import racnn as api
from racnn.engine.levels import answers_out_of_fold
from racnn.engine.predictor import load
from racnn.errors import DataError
from racnn.models.calibration import weights_out_of_fold
from racnn.models.racnn.heads import deal_folds, fit_head

SMALL = ["--backbone", "tiny", "--set", "model.weights=null", "--set", "model.view_sizes=[32, 32, 32]"]
SMALL += ["--set", "data.source_size=48", "--set", "data.num_workers=0", "--set", "run.num_preview=0"]
BIRDS = "species,kind\nHerring Gull,Gulls\nArctic Tern,Gulls\nBarn Owl,Owls\n"
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
    looks = [load_file(folder / "descriptors" / f"look_{number}.safetensors") for number in (1, 2, 3)]
    heads = [fit_head(look["descriptors"], look["labels"], 3) for look in looks]
    pooled = torch.zeros(len(labels), 3)
    for look, head, weight in zip(looks, heads, weights_out_of_fold(heads, labels), strict=True):
        others = head.fold_weights[deal_folds(labels)], head.fold_biases[deal_folds(labels)]
        pooled += weight * (torch.einsum("ncd,nd->nc", others[0], look["descriptors"]) + others[1])
    torch.testing.assert_close(answers, pooled.log_softmax(dim=1), rtol=1e-3, atol=1e-3)
    seen = sum(
        look["descriptors"] @ head.weight.T + head.bias for look, head in zip(looks, heads, strict=True)
    )
    assert (answers.argmax(dim=1) == labels).float().mean() < (seen.argmax(dim=1) == labels).float().mean()
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
    both = racnn("predict", best, photo, "--levels", "--early-exit")
    assert both.code == 2
    assert "exclude each other" in both.err
    plain = racnn("predict", best, photo, "--json", "--workers", 0).out
    assert "sure" not in json.loads(plain)


def test_other_photos_are_measured_where_those_of_the_run_are_gone(run, racnn, tmp_path):
    folder, _ = run
    (tmp_path / "birds").rename(tmp_path / "gone")
    for name in NAMES:
        layouts.write_photo(tmp_path / "new" / name.rpartition("/")[2] / "a.png", seed=99)
    (tmp_path / "kinds.csv").write_text(BIRDS)
    words = ("--data", tmp_path / "new", "--levels", tmp_path / "kinds.csv")
    result = racnn("evaluate", folder / "best.pt", *words)
    assert result.code == 0, result.err
    assert "training photos answered out of fold" in result.out
    shown = racnn("report", folder, "--data", tmp_path / "new", "--out", tmp_path / "r.html")
    assert shown.code == 0, shown.err
    assert 'data-key="levels.top1.kind"' in (tmp_path / "r.html").read_text(), "as it was chosen last"


def test_a_taxonomy_that_has_moved_is_in_the_way_of_nothing(racnn, tmp_path):
    (tmp_path / "kinds.csv").write_text(BIRDS)
    for number, name in enumerate(NAMES):
        for i in range(8):
            layouts.write_photo(
                tmp_path / "flat" / name.rpartition("/")[2] / f"{i}.png", seed=10 * number + i
            )
    words = ("train", tmp_path / "flat", "--out", tmp_path / "second", *SMALL)
    assert racnn(*words, "--set", f"data.levels={tmp_path / 'kinds.csv'}").code == 0
    (tmp_path / "kinds.csv").unlink()
    assert racnn("evaluate", tmp_path / "second" / "best.pt").code == 0
    again = racnn(*words, "--set", f"data.levels={tmp_path / 'kinds.csv'}", "--overwrite")
    assert again.code == 2
    assert "kinds.csv: cannot be read" in again.err
    assert (tmp_path / "second" / "best.pt").exists(), "nothing was deleted"


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
        (best.parent / ".racnn-written").unlink()
    assert racnn("evaluate", best, "--levels", tmp_path / "none.csv").code == 2


def test_evaluate_goes_by_what_was_chosen_and_says_where_that_cannot_be_used(run, racnn):
    folder, _ = run
    choice = folder / "best.levels.json"
    kept = choice.read_text()
    result = racnn("evaluate", folder / "best.pt")
    assert (result.code, "at the level that is sure" in result.out) == (0, True)
    assert choice.read_text() == kept
    choice.write_text(kept.replace(json.loads(kept)["network"], "0" * 64))
    result = racnn("evaluate", folder / "best.pt")
    assert (result.code, "at the level that is sure" in result.out) == (0, False)
    assert "levels were not measured" in result.out
    assert "other weights" in result.out
    assert racnn("predict", folder / "best.pt", folder.parent / "birds", "--levels").code == 2


def test_a_new_run_in_the_folder_takes_no_choice_of_the_old_one(run, racnn):
    folder, _ = run
    words = ("train", folder.parent / "birds", "--out", folder, "--overwrite", *SMALL)
    (folder / "last.levels.json").write_text("{}")
    result = racnn(*words, "--set", "data.exclude=null")
    assert result.code == 0, result.err
    assert not (folder / "best.levels.json").exists()
    assert (folder / "last.levels.json").read_text() == "{}", "somebody else's"
