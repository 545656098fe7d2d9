"""Marks of classes: both forms are read, what differs most is told, and what is wrong is named."""

import json

import numpy as np
import pytest
from layouts import write_photo

from racnn.data.marks import LEAST, Marks, in_words, read_marks
from racnn.engine.predictor import load
from racnn.errors import DataError

NAMES = ("leg color: pink", "leg color: yellow", "eye color: yellow", "crested")
PAIR = ("Auk", "Wren")


def write_cub_marks(root, names=("001.Western_Gull", "002.California_Gull", "003.Auk")):
    (root / "attributes").mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names, start=1)))
    (root / "attributes" / "class_attribute_labels_continuous.txt").write_text(
        "44.0 15.5 60.0 0.0\n12.0 40.0 20.0 0.0\n0.0 0.0 0.0 100.0\n1.0 2.0 3.0 4.0\n"
    )
    named = [
        "has_leg_color::pink",
        "has_leg_color::yellow",
        "has_eye_color::yellow",
        "has_head_pattern::crested",
    ]
    (root.parent / "attributes.txt").write_text(
        "".join(f"{i} {name}\n" for i, name in enumerate(named, start=1))
    )
    return root


def write_table(file, *rows):
    file.write_text("\n".join([f"species,{','.join(NAMES)}", *rows]) + "\n")
    return file


def marks(*rows):
    return Marks(("Auk", "Wren"), NAMES, np.array(rows))


def told(found):
    return [mark.name for mark in found]


def test_what_differs_most_is_told_first_and_no_word_twice():
    found = marks([0.9, 0.8, 0.7, 0.2], [0.1, 0.05, 0.1, 0.0])
    # a second color of the leg would say the same once more
    assert told(found.telling(*PAIR)) == ["leg color: pink", "eye color: yellow", "crested"]
    assert in_words(found.telling(*PAIR)[:1]) == "leg color: pink (90 % against 10)"
    assert found.telling(*PAIR[::-1]) == []


def test_marks_that_hardly_differ_or_are_not_known_are_not_told():
    nan = float("nan")
    found = marks([0.5, nan, 0.9, 0.5 + LEAST], [0.5 - 0.9 * LEAST, 0.0, nan, 0.5])
    assert told(found.telling(*PAIR)) == ["crested"]
    assert found.telling("Auk", "Auk") == []


@pytest.mark.parametrize("inside", [".", "attributes", ".."])
def test_cub_is_read_wherever_the_names_of_its_attributes_are(tmp_path, inside):
    root = write_cub_marks(tmp_path / "CUB_200_2011")
    names = (tmp_path / "attributes.txt").read_text()
    (tmp_path / "attributes.txt").unlink()
    (root / inside / "attributes.txt").write_text(names)
    found = read_marks(root, ["California Gull", "Western_Gull"], flag="--marks")
    assert found.names == (*NAMES[:3], "head pattern: crested")
    assert found.shares.tolist() == [[0.12, 0.4, 0.2, 0.0], [0.44, 0.155, 0.6, 0.0]]
    assert told(found.telling("Western_Gull", "California Gull")) == ["eye color: yellow", "leg color: pink"]
    assert told(found.telling("California Gull", "Western_Gull")) == ["leg color: yellow"]


def test_a_table_may_leave_open_what_is_not_known(tmp_path):
    file = write_table(tmp_path / "marks.csv", "Western Gull,44,15,,0", "Auk,0,0,0,100")
    found = read_marks(file, ["Auk", "Western Gull"], flag="--marks")
    assert found.names == NAMES
    assert np.isnan(found.shares[1, 2])
    assert told(found.telling("Auk", "Western Gull")) == ["crested"]
    assert told(found.telling("Western Gull", "Auk")) == ["leg color: pink"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["Auk,1,2,3"], "marks.csv, Auk: expected 4 percentages, got 3"),
        (["Auk,1,2,3,101"], "marks.csv, Auk: expected percentages of 0 to 100"),
        (["Auk,1,2,3,inf"], "expected percentages of 0 to 100"),
        (["Auk,1,2,3,often"], "expected percentages of 0 to 100"),
        (["Wren,1,2,3,4"], "has no row, or more than one, for Auk; expected one for every class"),
        (["Auk,1,2,3,4"] * 2, "has no row, or more than one, for Auk"),
        ([], "expected a head such as species,leg color: pink,crested and a row a class"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(tmp_path, rows, said):
    with pytest.raises(DataError, match="--marks: ") as told:
        read_marks(write_table(tmp_path / "marks.csv", *rows), ["Auk"], flag="--marks")
    assert said in str(told.value)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("../attributes.txt", None, "attributes.txt: no such file, nor in the folder above"),
        ("../attributes.txt", "1 pink\n", "line 1: expected a number and a name such as has_leg_color::pink"),
        ("attributes/class_attribute_labels_continuous.txt", None, "cannot be read: No such file"),
        (
            "attributes/class_attribute_labels_continuous.txt",
            "1 2 3\n",
            "line 1: expected 4 percentages, got 3",
        ),
        (
            "classes.txt",
            "5 005.Auk\n",
            "classes.txt, line 1: expected a class's number, of 1 to 4, and its name",
        ),
        ("classes.txt", b"\xff\xfe", "cannot be read"),
    ],
)
def test_what_is_wrong_with_cub_s_files_is_named(tmp_path, file, content, said):
    root = write_cub_marks(tmp_path / "CUB_200_2011")
    if content is None:
        (root / file).unlink()
    else:
        (root / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match="--marks: ") as told:
        read_marks(root, ["Auk"], flag="--marks")
    assert said in str(told.value)


def test_they_are_told_beside_answers(finished, racnn, tmp_path):
    best = finished.folder / "best.pt"
    trained = load(best)
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(2):
        write_photo(photos / f"{i}.png", size=(64, 48), seed=i)
    answers = [found.top for found in trained.predict([photos])]
    first, second = answers[0][0][0], answers[0][1][0]
    rows = [f"{name},{90 if name == first else 10},0,0,50" for name in trained.class_names]
    file = write_table(tmp_path / "marks.csv", *rows)
    said = racnn("predict", best, photos / "0.png", "--marks", file)
    assert said.code == 0, said.err
    assert f"rather than {second}, usually: leg color: pink (90 % against 10)" in said.out
    assert said.out.count(second) == 1  # one answer a photo, as without them
    row = json.loads(racnn("predict", best, photos / "0.png", "--marks", file, "--json", "--top", "1").out)
    assert len(row["top"]) == 1
    assert row["marks"] == {"against": second, "usually": [{"name": NAMES[0], "share": 0.9, "other": 0.1}]}
    refused = racnn("predict", best, photos, "--marks", file, "--csv")
    assert refused.code == 2
    assert "--marks and --csv exclude each other" in refused.err
    missing = racnn("predict", best, photos, "--marks", tmp_path / "none.csv")
    assert missing.code == 2
    assert "none.csv: cannot be read: No such file" in missing.err


def test_a_report_tells_confused_classes_apart(finished, racnn, tmp_path):
    best = finished.folder / "best.pt"
    names = load(best).class_names
    rows = [f"{name},{100 * (i % 2)},0,0,{100 * (1 - i % 2)}" for i, name in enumerate(names)]
    file, page = write_table(tmp_path / "marks.csv", *rows), tmp_path / "report.html"
    done = racnn("report", best, "--split", "train", "--marks", file, "--out", page)
    assert done.code == 0, done.err
    text = page.read_text()
    assert "Marks are of the classes" in text
    assert "usually: leg color: pink (100 % against 0)" in text
    assert racnn("report", best, "--split", "train", "--out", page).code == 0
    assert "leg color" not in page.read_text()
