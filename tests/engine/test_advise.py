"""Advice: what it compares is what it says, its interval is right, and its verdict follows from the figures."""

import json
import xml.etree.ElementTree

import pytest
import torch

from racnn.data import build_data
from racnn.engine.advise import Way, _report, _Study, _View, advise, format_advice, picture
from racnn.errors import DataError
from racnn.evaluation.metrics import paired_difference
from racnn.recipes import recipe_config

CPU = torch.device("cpu")
SMALL = ["model.backbone=tiny", "model.weights=null", "model.view_sizes=[32, 32, 32]", "data.source_size=48"]
SMALL += [
    "data.num_workers=0",
    "data.synthetic.num_train=96",
    "data.synthetic.num_test=8",
    "data.val_fraction=0.3",
]


class Splits:
    class_names = ("a", "b")

    def __init__(self, train, val):
        self.splits = {"train": range(train), "val": range(val)}


def way(name, kind, sizes, cost, right, num=200, seed=0):
    """Return a way that answers a share of the photos right, the first ones of all."""
    hits = torch.arange(num) < round(right * num)
    return Way(name, kind, sizes, cost, cost / 1e9, hits, hits.clone())


def ways(whole, looks, middle, num=200):
    return [
        way("whole", "whole", (32,), 1e6, whole, num),
        way("three looks", "looks", (32, 32, 32), 3e6, looks, num),
        way("three looks at the middle", "control", (32, 32, 32), 3e6, middle, num),
    ]


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ((0.70, 0.85, 0.75), "pays"),
        ((0.70, 0.85, 0.85), "pays"),  # but not where it looks, see below
        ((0.85, 0.80, 0.80), "does not pay"),
        ((0.80, 0.81, 0.80), "cannot tell"),
        ((0.70, 0.80, 0.95), "pays"),  # but not where it looks
    ],
)
def test_the_verdict_follows_from_the_differences(given, verdict):
    report = _report(ways(*given), Splits(200, 200))
    assert report["verdict"] == verdict
    text = format_advice(report, "racnn train birds")
    if verdict == "does not pay":
        assert "racnn train birds --set model.view_sizes='[32]'" in text
    else:
        assert "racnn train birds --set model.view_sizes='[32, 32, 32]'" in text
    assert f"{100 * given[1]:.1f} %" in text


def test_three_plain_views_that_do_better_are_no_open_question():
    found = [*ways(0.70, 0.80, 0.70), way("three whole views", "control", (32, 32, 32), 3e6, 0.95)]
    assert _report(found, Splits(200, 200))["verdict"] == "does not pay"


def test_the_picture_holds_what_it_shows():
    found = [
        way(each.name, each.kind, each.view_sizes, each.multiplications, 0.6, 10) for each in ways(0, 0, 0)
    ]
    root = xml.etree.ElementTree.fromstring(picture(_report(found, Splits(10, 10))))
    places = [
        float(line.get(key)) for line in root.iter("{http://www.w3.org/2000/svg}line") for key in ("y1", "y2")
    ]
    assert places
    assert all(0 <= place <= 420 for place in places)


def test_a_dearer_whole_photo_is_not_what_looks_must_beat():
    found = [*ways(0.70, 0.85, 0.75), way("whole", "whole", (96,), 9e6, 0.95)]
    report = _report(found, Splits(200, 200))
    assert report["plain"]["view_sizes"] == [32]
    assert report["verdict"] == "pays"


def test_photos_have_no_say_in_what_they_are_judged_by():
    """The looks that are best on the training photos alone are compared on the validation photos, and the other way round."""
    lucky = way("two looks", "looks", (32, 32), 2e6, 0.5)
    lucky.right_out_of_fold = torch.ones(200, dtype=torch.bool)
    report = _report([*ways(0.70, 0.85, 0.60), lucky], Splits(200, 200))
    difference = report["against"]["whole photo"]
    # on the validation photos the lucky one, 0.5 against 0.7; on the training photos the other, 0.85 against 0.7
    assert difference["mean"] == pytest.approx((0.5 - 0.7 + 0.85 - 0.7) / 2)
    assert difference["photos"] == 400


def test_the_paired_interval_is_that_of_agresti_and_min():
    ours = torch.tensor([True] * 60 + [False] * 40)
    other = torch.tensor([True] * 50 + [False] * 10 + [True] * 5 + [False] * 35)
    mean, low, high = paired_difference(ours, other)
    assert mean == pytest.approx(0.05)
    won, lost, num = 10.5, 5.5, 102
    centre = (won - lost) / num
    half = 1.96 * ((won + lost - (won - lost) ** 2 / num) ** 0.5) / num
    assert (low, high) == pytest.approx((centre - half, centre + half))
    same = paired_difference(ours, ours)
    assert same[0] == 0.0
    assert same[1] < 0.0 < same[2], "a few photos that agree prove nothing"


def test_it_measures_what_training_would_give(racnn, tmp_path):
    config = recipe_config("synthetic", "quick", SMALL)
    said = []
    report = advise(config, device=CPU, say=said.append)
    assert any("32 px" in line for line in said)
    found = {(each["name"], tuple(each["view_sizes"])): each for each in report["ways"]}
    assert (
        found["three looks", (32, 32, 32)]["multiplications"] > 2.5 * found["whole", (32,)]["multiplications"]
    )
    assert found["three whole views", (32,) * 3]["multiplications"] == pytest.approx(
        3 * found["whole", (32,)]["multiplications"], rel=0.05
    )
    assert found["three looks where other photos' went", (32,) * 3]["multiplications"] == pytest.approx(
        found["three looks", (32,) * 3]["multiplications"], rel=0.1
    )
    assert all(0.0 < each["seconds"] < 5.0 for each in report["ways"])
    words = [word for key in SMALL for word in ("--set", key)]
    assert racnn("train", "synthetic", "--out", tmp_path / "run", *words).code == 0
    from racnn.engine.checkpoint import load_checkpoint

    trained = load_checkpoint(tmp_path / "run" / "best.pt")["val_report"]
    assert found["three looks", (32, 32, 32)]["top1"] == pytest.approx(trained["top1"]["fused"])
    assert found["whole", (32,)]["top1"] == pytest.approx(trained["top1"]["scale_1"])
    xml.etree.ElementTree.fromstring(picture(report))


def test_the_command_prints_and_writes(racnn, tmp_path):
    words = [word for key in SMALL for word in ("--set", key)]
    result = racnn("advise", "synthetic", "--out", tmp_path / "advice", *words)
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "advice" / "advise.json").read_text())
    assert "against three whole views" in result.out
    assert {"pays": "pays here", "cannot tell": "cannot tell", "does not pay": "does not pay"}[
        report["verdict"]
    ] in result.out
    assert (tmp_path / "advice" / "advise.svg").read_text().startswith("<svg")


def test_looks_elsewhere_go_where_those_of_other_photos_went():
    config = recipe_config("synthetic", "quick", SMALL)
    study = _Study(config, build_data(config.data, seed=0), CPU)
    study.looks(32)
    for split, num in (("train", study.num_photos("train")), ("val", study.num_photos("val"))):
        went = study.went[split]
        for look in (2, 3):
            view = _View(32, look=look)
            photos = study.data.splits[split].without_augmentation()
            source = study.model.normalise(torch.stack([photos[(0, i)]["image"] for i in range(4)]))
            index = torch.arange(4)
            seen = study._features(source, view, split, index)
            other = (index - num // 2) % num
            expected = study.model.sample(source, went[look - 1][other], (32, 32), antialias=True)
            torch.testing.assert_close(seen, study.model.extract(1, expected))
            own = study.model.sample(source, went[look - 1][index], (32, 32), antialias=True)
            assert not torch.allclose(seen, study.model.extract(1, own))


def test_one_photo_a_class_cannot_be_asked(tmp_path):
    import layouts

    for name in ("a", "b"):
        for split in ("train", "val", "test"):
            layouts.write_photo(tmp_path / split / name / f"{split}.png", seed=len(name + split))
    config = recipe_config(str(tmp_path), "quick", SMALL[:5])
    with pytest.raises(DataError, match="one training photo"):
        advise(config, device=CPU, say=lambda _: None)


def test_that_the_middle_does_as_well_is_said():
    report = _report(ways(0.70, 0.85, 0.85), Splits(200, 200))
    assert "and not just at the middle, is not shown" in format_advice(report, "racnn train birds")
    worse = _report(ways(0.70, 0.80, 0.95), Splits(200, 200))
    assert "and not just at the middle, is a loss here" in format_advice(worse, "racnn train birds")
    assert "middle, is not shown" not in format_advice(
        _report(ways(0.70, 0.85, 0.6), Splits(200, 200)), "racnn train birds"
    )
