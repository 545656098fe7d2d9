"""The report of an evaluated split."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from conftest import sure_of

from racnn.evaluation.report import Predictions, evaluation_report, format_confused, format_report
from racnn.ops.regions import whole

NAN = math.nan


def _report(**changed: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    n, classes = 40, 6
    labels = torch.arange(n) % classes
    half = torch.rand(n, 1, generator=generator) * 0.3 + 0.3
    region = torch.cat([torch.rand(n, 2, generator=generator) * 0.4 - 0.2, half], dim=1)
    given: dict[str, Any] = {
        "dataset": "birds",
        "split": "test",
        "class_names": [f"bird {c}" for c in range(classes)],
        "logits": {f"scale_{s}": torch.randn(n, classes, generator=generator) for s in (1, 2, 3)},
        "fused": torch.randn(n, classes, generator=generator),
        "labels": labels,
        "proposals": [region, region],
        "regions": [region, region],
        "bounds": [(0.2, 0.95), (0.3, 0.8)],
        "boxes": torch.tensor([[-0.5, -0.25, 0.5, 0.25]]).expand(n, 4),
        "parts": torch.tensor([[[0.1, 0.2, 1.0], [0.3, 0.4, 0.0]]]).expand(n, 2, 3),
        "focus_parts": [0, 1],
    }
    values = {**given, **changed}
    looks = {key: values.pop(key) for key in ("fused", "labels", "proposals", "boxes", "parts")}
    regions = [whole(len(looks["labels"])), *values.pop("regions")]
    predictions = Predictions(logits=list(values.pop("logits").values()), regions=regions, **looks)
    return evaluation_report(predictions, **values)


class TestReport:
    def test_has_the_promised_keys(self) -> None:
        report = _report()
        assert list(report) == [
            "dataset", "split", "num_images", "num_classes", "top1", "top1_interval", "top5", "ece", "log_prob",
            "per_class", "confusion", "most_confused", "localisation", "regions",
        ]  # fmt: skip
        single = ["scale_1", "scale_2", "scale_3", "mean", "fused"]
        assert list(report["top1"]) == ["scale_1", "scale_2", "scale_3", "scale_1+2", "mean", "fused"]
        assert list(report["top1_interval"]) == list(report["top1"])
        assert all(list(report[key]) == single for key in ("top5", "ece", "log_prob"))
        assert list(report["per_class"][0]) == ["name", "n", "correct"]
        assert list(report["per_class"][0]["correct"]) == single
        assert list(report["localisation"]["region_2"]) == [
            "iou", "iou_50", "coverage", "pointing", "iou_centred", "coverage_centred", "part_hit", "part_hit_centred",
        ]  # fmt: skip
        assert list(report["regions"]["region_2"]) == [
            "tx_mean", "tx_std", "ty_mean", "ty_std", "tl_mean", "tl_std", "at_bound",
        ]  # fmt: skip

    def test_of_an_older_run_is_shown(self) -> None:
        report = _report()
        for measures in report["localisation"].values():
            del measures["iou_centred"], measures["coverage_centred"]
        assert "region_2" in format_report(report)

    def test_survives_strict_json(self) -> None:
        report = _report()
        assert json.loads(json.dumps(report, allow_nan=False)) == report

    def test_per_class_adds_up_to_top1(self) -> None:
        report = _report()
        assert sum(row["n"] for row in report["per_class"]) == report["num_images"]
        for key in ("scale_1", "scale_3", "mean", "fused"):
            total = sum(row["correct"][key] for row in report["per_class"])
            assert total / report["num_images"] == report["top1"][key]

    def test_confusion_holds_every_photo_once(self) -> None:
        report = _report()
        counts = report["confusion"]["counts"]
        assert report["confusion"]["answer"] == "fused"
        assert sum(count for *_, count in counts) == report["num_images"]
        for label, row in enumerate(report["per_class"]):
            assert sum(count for own, _, count in counts if own == label) == row["n"]
            right = sum(count for own, answer, count in counts if own == answer == label)
            assert right == row["correct"]["fused"]

    def test_the_most_confused_pairs_come_first(self) -> None:
        labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
        answers = torch.tensor([1, 1, 0, 0, 1, 0, 2, 2])
        report = _report(
            logits={"scale_1": sure_of(answers, 3)}, fused=None, labels=labels, class_names=["a", "b", "c"], proposals=[],
            regions=[], bounds=[], boxes=torch.full((8, 4), NAN), parts=torch.zeros(8, 0, 3), focus_parts=[],
        )  # fmt: skip
        assert report["most_confused"] == [
            {"classes": ["a", "b"], "photos": [2, 1], "of": [3, 2]},
            {"classes": ["a", "c"], "photos": [0, 1], "of": [3, 3]},
        ]
        assert format_confused(report).splitlines()[1] == "  3  a, b  (2 of 3 and 1 of 2)"
        assert format_confused(report | {"most_confused": []}) == ""

    def test_mean_is_of_probabilities_not_of_logits(self) -> None:
        # probabilities of class 0: 0.98 and 0.6, then 0.01 and 0.01; the mean of three favours class 0, of logits 1
        probs = [torch.tensor([[0.98, 0.02]]), torch.tensor([[0.60, 0.40]]), torch.tensor([[1e-4, 1 - 1e-4]])]
        logits = {f"scale_{s}": p.log() for s, p in enumerate(probs, start=1)}
        report = _report(
            logits=logits, fused=None, labels=torch.tensor([0]), class_names=["a", "b"], proposals=[], regions=[],
            bounds=[], boxes=torch.full((1, 4), NAN), parts=torch.zeros(1, 0, 3), focus_parts=[],
        )  # fmt: skip
        assert report["top1"]["mean"] == 1.0
        assert torch.stack([p.log() for p in probs]).sum(0)[0].argmax() == 1
        assert report["log_prob"]["mean"] == pytest.approx(math.log((0.98 + 0.6 + 1e-4) / 3), rel=1e-5)
        assert report["top5"]["scale_3"] == 1.0
        assert "fused" not in report["top1"]

    def test_mean_of_two_is_of_the_first_two(self) -> None:
        labels = torch.arange(40) % 6
        right, wrong = sure_of(labels, 6), sure_of((labels + 1) % 6, 6)
        report = _report(logits={"scale_1": right, "scale_2": right, "scale_3": 3 * wrong})
        assert report["top1"]["scale_1+2"] == 1.0
        assert report["top1"]["scale_3"] == 0.0

    def test_one_scale_has_no_mean_of_two_and_no_regions(self) -> None:
        logits = {"scale_1": sure_of(torch.arange(40) % 6, 6)}
        report = _report(logits=logits, fused=None, proposals=[], regions=[], bounds=[])
        assert list(report["top1"]) == ["scale_1", "mean"]
        assert report["top1"]["scale_1"] == report["top1"]["mean"] == 1.0
        assert report["localisation"] == report["regions"] == {}

    def test_sure_and_wrong_stays_finite(self) -> None:
        wrong = sure_of((torch.arange(40) + 1) % 6, 6, value=5000.0)
        report = _report(logits={"scale_1": wrong, "scale_2": wrong}, fused=None)
        assert report["log_prob"]["mean"] == pytest.approx(-5000.0)
        json.dumps(report, allow_nan=False)

    def test_without_annotation_localisation_is_null(self) -> None:
        report = _report(boxes=torch.full((40, 4), NAN), parts=torch.zeros(40, 0, 3), focus_parts=[])
        assert report["localisation"] == {"region_1": None, "region_2": None}

    def test_centred_parent_of_region_2_is_region_1(self) -> None:
        # the part is where region_1 looks, and region_2 looks away from it
        first = torch.tensor([[0.5, -0.5, 0.4]]).expand(40, 3)
        second = torch.tensor([[0.7, -0.3, 0.1]]).expand(40, 3)
        parts = torch.tensor([[[0.5, -0.5, 1.0]]]).expand(40, 1, 3)
        report = _report(regions=[first, second], parts=parts, focus_parts=[0])["localisation"]
        assert (report["region_1"]["part_hit"], report["region_1"]["part_hit_centred"]) == (1.0, 0.0)
        assert (report["region_2"]["part_hit"], report["region_2"]["part_hit_centred"]) == (0.0, 1.0)

    def test_bfloat16_logits_are_the_float32_of_the_same_values(self) -> None:
        logits = {f"scale_{s}": torch.randn(40, 6).bfloat16() for s in (1, 2)}
        same = {key: values.float() for key, values in logits.items()}
        fused = torch.randn(40, 6).bfloat16()
        assert _report(logits=logits, fused=fused) == _report(logits=same, fused=fused.float())

    def test_logits_that_carry_a_graph_give_the_same_report(self) -> None:
        logits = {"scale_1": torch.randn(40, 6, requires_grad=True)}
        plain = {"scale_1": logits["scale_1"].detach()}
        rest = {"fused": None, "proposals": [], "regions": [], "bounds": []}
        assert json.dumps(_report(logits=logits, **rest)) == json.dumps(_report(logits=plain, **rest))

    def test_logits_that_are_not_finite_are_refused_by_name(self) -> None:
        broken = torch.zeros(40, 6)
        broken[3, 2] = NAN
        with pytest.raises(ValueError, match="scale_2"):
            _report(logits={"scale_1": torch.zeros(40, 6), "scale_2": broken})

    def test_class_names_must_fit_the_logits(self) -> None:
        with pytest.raises(ValueError, match=r"scale_1 must be \[N, 2\]"):
            _report(class_names=["a", "b"])


class TestText:
    def test_shows_every_answer_and_region_in_percents(self) -> None:
        report = _report()
        text = format_report(report)
        for word in (
            "birds, test: 40 photos, 6 classes",
            "scale_1+2",
            "mean",
            "fused",
            "region_1",
            "region_2",
        ):
            assert word in text
        assert f"{100 * report['top1']['fused']:.2f}" in text
        assert max(len(line) for line in text.splitlines()) <= 90
        assert text.isascii()

    def test_rows_of_a_table_are_aligned(self) -> None:
        for block in format_report(_report()).split("\n\n")[1:]:
            assert len({len(line) for line in block.splitlines()}) == 1

    def test_without_annotation_says_nothing_about_boxes(self) -> None:
        text = format_report(_report(boxes=torch.full((40, 4), NAN), focus_parts=[]))
        assert "IoU" not in text
        assert "at bound" in text
