"""Comparing networks: what is counted, what is refused, and a picture that holds what it says."""

import xml.etree.ElementTree as ET

import pytest

from racnn.errors import DataError
from racnn.evaluation.compare import compare, format_comparison, mcnemar, picture
from racnn.evaluation.photo_rows import LookAnswer, PhotoRow


def row(photo, right, *, label="gull", boxes=((0, 0, 10, 10),), split="val", cost=2e9, thing=(0, 0, 10, 20)):
    name = label if right else "tern"
    answer = LookAnswer(name=name, probability=0.8, of_label=0.8 if right else 0.1, probabilities={name: 0.8})
    return PhotoRow(
        photo=photo,
        path=None,
        split=split,
        label=label,
        by="mean",
        answers={"scale_1": answer, "mean": answer},
        boxes_xyxy=list(boxes),
        object_xyxy=thing,
        multiplications=cost,
        network="0123",
    )


def rows(rights, **changes):
    return [row(f"{number}.jpg", right, **changes) for number, right in enumerate(rights)]


def test_photos_won_and_lost_are_counted():
    found = compare({"a": rows([1, 1, 0, 0, 1]), "b": rows([1, 0, 1, 1, 1], cost=4e9)})
    first, second = found["networks"]
    assert found["num_images"] == 5
    assert (first["top1"], second["top1"]) == (0.6, 0.8)
    assert "won" not in first
    assert (second["won"], second["lost"]) == (2, 1)
    assert second["difference"][0] == pytest.approx(0.2)
    assert second["p"] == 1.0
    assert first["iou"] == [pytest.approx(0.5)]
    assert first["pointing"] == [1.0]
    text = format_comparison(found)
    assert "b beside a: +20.00 points" in text
    assert "2 photos won, 1 lost, p 1 (McNemar)" in text
    assert "left out" not in text


def test_mcnemar_is_the_exact_binomial_test():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(10, 0) == pytest.approx(2 * 0.5**10)
    assert mcnemar(3, 7) == mcnemar(7, 3) == pytest.approx(2 * (1 + 10 + 45 + 120) / 1024)


def test_only_photos_that_all_were_shown_count():
    found = compare({"a": rows([1, 1, 0]), "b": rows([0, 1])})
    assert found["num_images"] == 2
    assert found["left_out"] == {"a": 1, "b": 0}
    assert "left out: 1 of a" in format_comparison(found)
    with pytest.raises(DataError, match="no photo is in all of a, b"):
        compare({"a": rows([1]), "b": [row("other.jpg", True)]})


def test_rows_of_two_files_are_refused():
    with pytest.raises(DataError, match="b: expected one row a photo"):
        compare({"a": rows([1, 0]), "b": rows([1, 0]) * 2})
    other = row("9.jpg", True).model_copy(update={"network": "4567"})
    with pytest.raises(DataError, match="of one network"):
        compare({"a": rows([1, 0]), "b": [*rows([1, 0]), other]})


def test_a_photo_of_two_classes_is_refused():
    with pytest.raises(DataError, match=r"photo '0\.jpg' is of class 'gull' in a, of class 'owl' in b"):
        compare({"a": rows([1]), "b": rows([1], label="owl")})


def test_photos_that_were_trained_on_are_told():
    text = format_comparison(compare({"a": rows([1, 0]), "b": rows([1, 1], split="train")}))
    assert "b may have been trained on these photos (split train)" in text


def test_networks_of_fewer_looks_and_unknown_objects_are_compared():
    found = compare({"a": rows([1], thing=None), "b": rows([1], boxes=())})
    assert [network["iou"] for network in found["networks"]] == [[None], []]
    assert "IoU" not in format_comparison(found)


def test_the_picture_holds_every_network_whatever_its_name():
    names = ["a", "<b> & 'c'", "x" * 300, "ü", "e", "f"]
    found = compare({name: rows([1, 0, 1]) for name in names})
    root = ET.fromstring(picture(found))
    svg = "{http://www.w3.org/2000/svg}"
    titles = [title.text for title in root.iter(f"{svg}title")]
    assert titles == [f"{name}: 66.67 %" for name in names]
    dots = [dot for dot in root.iter(f"{svg}circle") if dot.find(f"{svg}title") is not None]
    assert len({dot.get("cx") for dot in dots}) == len(names), "those of one cost stand side by side"
    assert all(60 <= float(dot.get("cx")) <= 680 for dot in dots)
    height = float(root.get("height"))
    assert all(float(text.get("y")) <= height for text in root.iter(f"{svg}text"))
