"""tools/views.py: rows are what quick answers, are read once, and say what they are of."""

import csv

import layouts
import pytest
import torch
import yaml

import views as tool
from racnn.engine.evaluator import evaluate_trained
from racnn.engine.predictor import load
from racnn.errors import ConfigError

SMALL = ["--backbone", "tiny", "--set", "model.weights=null", "--set", "model.view_sizes=[32, 32, 32]"]
SMALL += ["--set", "data.source_size=48", "--set", "data.num_workers=0", "--set", "run.num_preview=0"]
ROWS = {
    "whole": ["whole"],
    "larger": ["whole 48 px"],
    "elsewhere": ["whole", "other 2", "other 3"],
    "middle": ["whole", "centred 0.7", "centred 0.5 mirrored"],
    "looks": ["whole", "look 2", "look 3"],
}


@pytest.fixture
def study(racnn, tmp_path):
    """Return a caller of the tool on a run of quick; it returns the rows of its table."""
    folder = layouts.write_class_folders(tmp_path / "birds")
    out = tmp_path / "run"
    assert racnn("train", folder, "--out", out, *SMALL).code == 0

    def call(rows=ROWS, base="looks"):
        (tmp_path / "study.yaml").write_text(yaml.safe_dump({"base": base, "rows": rows}, sort_keys=False))
        tool.main(tmp_path / "study.yaml", [out / "best.pt"], tmp_path / "out", data=None, device="cpu")
        return {row["row"]: row for row in csv.DictReader((tmp_path / "out" / "rows.csv").open())}

    call.best = out / "best.pt"
    call.out = tmp_path / "out"
    return call


def test_looks_answer_what_the_run_answers(study):
    rows = study()
    report = evaluate_trained(load(study.best), split="val")
    for row, answer in (("whole", "scale_1"), ("looks", "fused")):
        assert float(rows[row]["top1"]) == pytest.approx(report["top1"][answer], abs=1e-4)
        assert float(rows[row]["log_prob"]) == pytest.approx(report["log_prob"][answer], abs=0.02)
    assert [float(row["cost"]) for row in rows.values()] == [
        1.0,
        pytest.approx(2.25, rel=0.1),
        3.0,
        3.0,
        3.0,
    ]
    table = (study.out / "table.md").read_text()
    assert "looks minus it (95 %)" in table
    assert len(table.splitlines()) == 2 + len(ROWS)


def test_what_was_read_is_not_read_again(study, monkeypatch):
    before = study()
    monkeypatch.setattr(tool.Run, "_read", lambda *_: pytest.fail("a view was read twice"))
    assert study() == before
    again = study({"two looks": ["whole", "look 2"], "looks": ROWS["looks"]})
    assert again["looks"] == before["looks"]
    assert float(again["two looks"]["cost"]) == 2.0


def test_a_view_that_cannot_be_trusted_is_read_again(study):
    before = study()
    for damage, file in zip((b"", b"damaged"), sorted((study.out / "views").iterdir()), strict=False):
        file.write_bytes(damage)
    assert study() == before


def test_views_are_where_they_are_said_to_be(study):
    run = tool.Run(study.best, load(study.best), None, study.out)
    run.went["train"][1] = torch.rand(len(run.went["train"][0]), 3)
    num = len(run.went["train"][1])
    index = torch.arange(num)
    where = {name: run._region("train", tool.View.parse(name), index) for name in ("look 2", "other 2")}
    torch.testing.assert_close(where["look 2"], run.went["train"][1])
    torch.testing.assert_close(where["other 2"], run.went["train"][1].roll(num // 2, dims=0))
    assert (
        run._region("train", tool.View.parse("centred 0.7 mirrored"), index[:2]).tolist()
        == [[0.0, 0.0, pytest.approx(0.7)]] * 2
    )


@pytest.mark.parametrize(
    "name", ["", "look", "look 1", "centred", "centred 0.0", "centred 1.5", "whole 448", "whole 16 px", "x"]
)
def test_a_view_that_is_none_is_refused(name):
    with pytest.raises(ConfigError, match=f"view '{name}': expected "):
        tool.View.parse(name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rows: {a: [whole]}", "base: expected the name of a row"),
        ("base: b\nrows: {a: [whole]}", "base: expected the name of a row, got 'b'"),
        ("base: a", "expected 'rows'"),
        ("base: a\nrows: {a: whole}", "rows.a: expected a list of views"),
        ("base: a\nrows: {a: [hole]}", "rows.a: view 'hole': expected whole"),
        ("base: a\nrows: {a: [whole]}\nseeds: 3", "unknown key 'seeds'"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(text, said, tmp_path):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        tool.read_study(tmp_path / "study.yaml")


def test_a_look_that_the_run_does_not_have_is_refused(study):
    with pytest.raises(ConfigError, match=r"view 'look 4': the run has 3 looks"):
        study({"far": ["look 4"]}, base="far")


def test_a_run_without_descriptors_is_told(finished, tmp_path):
    (tmp_path / "study.yaml").write_text("base: a\nrows: {a: [whole]}")
    with pytest.raises(ConfigError, match="holds no descriptors of a run of quick"):
        tool.main(
            tmp_path / "study.yaml",
            [finished.folder / "best.pt"],
            tmp_path / "out",
            data=None,
            device="cpu",
        )


def test_a_look_has_its_own_size(racnn, tmp_path):
    out = tmp_path / "run"
    small = [word.replace("[32, 32, 32]", "[64, 32, 32]") for word in SMALL]
    assert racnn("train", layouts.write_class_folders(tmp_path / "birds"), "--out", out, *small).code == 0
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"base": "looks", "rows": {"looks": ROWS["looks"]}}))
    tool.main(tmp_path / "study.yaml", [out / "best.pt"], tmp_path / "out", data=None, device="cpu")
    (row,) = csv.DictReader((tmp_path / "out" / "rows.csv").open())
    report = evaluate_trained(load(out / "best.pt"), split="val")
    assert float(row["top1"]) == pytest.approx(report["top1"]["fused"], abs=1e-4)
    assert float(row["log_prob"]) == pytest.approx(report["log_prob"]["fused"], abs=0.02)
    assert float(row["cost"]) == pytest.approx(1.5, rel=0.1)


def test_answers_to_the_same_photo_are_not_counted_as_independent():
    generator = torch.Generator().manual_seed(0)
    ours, others = (torch.rand(400, generator=generator) < share for share in (0.8, 0.7))
    names = [str(i) for i in range(400)]
    once = tool.difference(ours, others, names)
    twice = tool.difference(ours.repeat(2), others.repeat(2), names * 2)
    assert twice[0] == pytest.approx(once[0])
    assert twice[2] - twice[1] == pytest.approx(once[2] - once[1], rel=0.02)
    apart = tool.difference(ours.repeat(2), others.repeat(2), [*names, *(f"b{i}" for i in range(400))])
    assert apart[2] - apart[1] < 0.75 * (once[2] - once[1])
