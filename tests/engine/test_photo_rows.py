"""predictions.jsonl: rows that add up to the report, and files that are none."""

import json
import math
import os

import pytest
import torch
from safetensors import safe_open

from racnn.engine.evaluator import measure_trained
from racnn.engine.photo_rows import photo_rows
from racnn.engine.predictor import load
from racnn.errors import DataError
from racnn.evaluation.photo_rows import format_photo_rows, read_photo_rows


@pytest.fixture(scope="module")
def trained(finished):
    return load(finished.folder / "best.pt")


@pytest.fixture(scope="module")
def measured(trained):
    return measure_trained(trained, split="test", early_exit=True, descriptors=True)


@pytest.fixture(scope="module")
def rows(trained, measured):
    return list(photo_rows(trained, measured))


def test_rows_add_up_to_the_report(rows, measured):
    report = measured.report
    assert len(rows) == report["num_images"]
    for key, answer in rows[0].answers.items():
        assert answer.probability >= 1.0 / report["num_classes"]
        own = [row.answers[key] for row in rows]
        right = [answer.name == row.label for answer, row in zip(own, rows, strict=True)]
        assert sum(right) / len(rows) == pytest.approx(report["top1"][key])
        mean = sum(math.log(answer.of_label) for answer in own) / len(rows)
        assert mean == pytest.approx(report["log_prob"][key], abs=1e-4)
    assert sum(row.right for row in rows) / len(rows) == pytest.approx(report["top1"][rows[0].by])
    names = [row["name"] for row in report["per_class"]]
    wrong = sorted((names.index(row.label), names.index(row.answer.name)) for row in rows if not row.right)
    counted = [
        (label, answer)
        for label, answer, count in report["confusion"]["counts"]
        for _ in range(count)
        if label != answer
    ]
    assert wrong == counted


def test_probabilities_are_all_of_them(rows):
    for row in rows:
        for answer in row.answers.values():
            values = list(answer.probabilities.values())
            assert values == sorted(values, reverse=True)
            assert sum(values) == pytest.approx(1.0, abs=1e-3)
            assert next(iter(answer.probabilities)) == answer.name


def test_early_answers_are_those_of_the_report(rows, measured):
    early = measured.report["early_exit"]
    right = sum(row.early_exit.name == row.label for row in rows) / len(rows)
    assert right == pytest.approx(early["top1"])
    cost = sum(row.early_exit.multiplications / row.multiplications for row in rows) / len(rows)
    assert cost == pytest.approx(early["cost"])
    depths = [sum(row.early_exit.looks == depth for row in rows) / len(rows) for depth in (1, 2, 3)]
    assert depths == pytest.approx(early["stopped"])


def test_boxes_are_in_the_photo(rows, trained, measured):
    for row, record in zip(rows, measured.photos.records, strict=True):
        height, width, _ = measured.photos.catalog.load(record).shape
        assert len(row.boxes_xyxy) == trained.scales - 1
        for x0, y0, x1, y1 in (*row.boxes_xyxy, row.object_xyxy):
            assert -0.01 <= x0 < x1 <= width + 0.01
            assert -0.01 <= y0 < y1 <= height + 0.01
    found = trained.predict(measured.photos.catalog.load(measured.photos.records[0]))
    assert found.name == rows[0].answer.name
    for box, own in zip(found.boxes_xyxy, rows[0].boxes_xyxy, strict=True):
        assert own == pytest.approx(box, abs=0.02)


def test_rows_are_read_as_they_were_written(rows, tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text(format_photo_rows(rows), encoding="utf-8")
    assert read_photo_rows(path) == rows


def test_a_name_of_any_bytes_is_kept(rows, tmp_path):
    odd = os.fsdecode(b"bird\xff.jpg")
    path = tmp_path / "predictions.jsonl"
    path.write_text(format_photo_rows([rows[0].model_copy(update={"photo": odd})]), encoding="utf-8")
    assert read_photo_rows(path)[0].photo == odd


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: "", "holds no rows"),
        (lambda row: "{", "line 1: expected a row"),
        (lambda row: "[1]", "not an object"),
        (lambda row: "[" * 100_000, "line 1: expected a row"),
        (lambda row: json.dumps({**row, "label": 3}), "line 1: expected a row .* label"),
        (lambda row: json.dumps({**row, "by": "scale_9"}), "'by' names 'scale_9'"),
        (lambda row: json.dumps({k: v for k, v in row.items() if k != "answers"}), "answers"),
        (lambda row: json.dumps(row) + "\n" + json.dumps(row)[:-9], "line 2: expected a row"),
    ],
)
def test_what_is_no_file_of_rows_is_told(change, said, rows, tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text(change(json.loads(format_photo_rows(rows[:1]))))
    with pytest.raises(DataError, match=said):
        read_photo_rows(path)
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read"):
        read_photo_rows(tmp_path / "none.jsonl")


def test_the_command_writes_them_and_descriptors(finished, racnn, tmp_path, rows, measured):
    files = {name: tmp_path / name for name in ("report.json", "rows.jsonl", "read.safetensors")}
    best = finished.folder / "best.pt"
    words = ("--json", files["report.json"], "--predictions", files["rows.jsonl"])
    result = racnn("evaluate", best, *words, "--descriptors", files["read.safetensors"])
    assert result.code == 0
    assert all(str(path) in result.out for path in files.values())
    assert read_photo_rows(files["rows.jsonl"]) == [
        row.model_copy(update={"early_exit": None}) for row in rows
    ]
    with safe_open(files["read.safetensors"], framework="pt") as file:
        assert json.loads(file.metadata()["photos"]) == [row.photo for row in rows]
        for number, each in enumerate(measured.predictions.descriptors, start=1):
            torch.testing.assert_close(file.get_tensor(f"scale_{number}"), each)
    same = racnn("evaluate", best, *words, "--descriptors", files["rows.jsonl"])
    assert same.code == 2
    assert "--predictions" in same.err
    assert "is where --descriptors writes" in same.err


def test_runs_checkpoints_and_files_are_compared(finished, racnn, rows, tmp_path):
    saved = tmp_path / "saved.jsonl"
    saved.write_text(format_photo_rows(rows), encoding="utf-8")
    out = tmp_path / "beside"
    result = racnn("compare", finished.folder, saved, "--split", "test", "--out", out)
    assert result.code == 0, result.err
    found = json.loads((out / "compare.json").read_text())
    assert [network["top1"] for network in found["networks"]] == [
        sum(row.right for row in rows) / len(rows)
    ] * 2
    assert found["networks"][1]["p"] == 1.0
    assert (out / "compare.svg").read_text().startswith("<svg")
    assert "0 photos won, 0 lost" in result.out
    for words, said in (
        ([saved], "two networks or more"),
        ([saved, saved], "named twice"),
        ([saved, tmp_path / "none.jsonl"], "cannot be read"),
        ([saved, finished.folder, "--split", "train"], "--split: expected val or test"),
    ):
        refused = racnn("compare", *words, "--out", out)
        assert refused.code == 2
        assert said in refused.err


def test_networks_keep_names_of_their_own(finished, racnn, rows, tmp_path):
    saved = tmp_path / "run.jsonl"
    saved.write_text(format_photo_rows(rows), encoding="utf-8")
    run = tmp_path / "run"
    run.mkdir()
    (run / "best.pt").symlink_to(finished.folder / "best.pt")
    result = racnn("compare", run, saved, "--split", "test", "--out", tmp_path / "beside")
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "beside" / "compare.json").read_text())
    assert len({network["name"] for network in found["networks"]}) == 2
    assert all(network["name"] for network in found["networks"])
    twice = racnn("compare", finished.folder, finished.folder / "best.pt", "--out", tmp_path / "beside")
    assert twice.code == 2
    assert "named twice" in twice.err
