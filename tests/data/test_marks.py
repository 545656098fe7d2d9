"""Marks of classes: both forms are read, what differs most is told, and what is wrong is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from layouts import write_photo

from racnn.data.marks import LEAST, Marks, in_words, read_marks
from racnn.engine.predictor import load
from racnn.errors import DataError

NAMES = ("leg color: pink", "leg color: yellow", "eye color: yellow", "crested")
PAIR = ("Auk", "Wren")
SHARES_FILE = "class_attribute_labels_continuous.txt"


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


def test_what_differs_most_is_told_first():
    found = marks([0.9, 0.8, 0.7, 0.2], [0.1, 0.05, 0.1, 0.0])
    # a second color of the leg would say the same once more; the eye is no plumage, so that yellow may be told of it too
    assert told(found.telling(*PAIR)) == ["leg color: pink", "eye color: yellow", "crested"]
    assert in_words(found.telling(*PAIR)[:1]) == "leg color: pink (90 % against 10)"
    # the other one has all of them less often
    assert in_words(found.telling(*PAIR[::-1])[:1]) == "less often leg color: pink (10 % against 90)"


def test_what_is_commoner_comes_before_what_is_rarer():
    found = marks([0.2, 0.0, 0.5, 0.9], [0.0, 0.0, 0.9, 0.1])
    assert in_words(found.telling(*PAIR)) == (
        "crested (90 % against 10), leg color: pink (20 % against 0), less often eye color: yellow (50 % against 90)"
    )


def test_a_color_is_told_of_one_part_of_the_plumage_and_of_each_bare_part():
    names = ("back color: red", "wing color: red", "leg color: red", "bill color: red", "wing color: black")
    found = Marks(PAIR, names, np.array([[0.9, 0.8, 0.7, 0.6, 0.5], [0.0] * 5]))
    assert told(found.telling(*PAIR)) == ["back color: red", "leg color: red", "bill color: red"]


def test_three_are_told_at_most():
    found = Marks(PAIR, tuple("abcd"), np.array([[0.4, 0.9, 0.3, 0.8], [0.0] * 4]))
    assert told(found.telling(*PAIR)) == ["b", "d", "a"]


@pytest.mark.parametrize(("share", "other", "is_told"), [(35, 20, True), (29, 14, True), (34.9, 20, False)])
def test_fifteen_points_are_enough_and_fewer_are_not(share, other, is_told, tmp_path):
    file = write_table(tmp_path / "marks.csv", f"Auk,{share},0,0,0", f"Wren,{other},0,0,0")
    assert bool(read_marks(file, PAIR, flag="--marks").telling(*PAIR)) is is_told


def test_marks_that_are_not_known_of_both_are_not_told():
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
    # of the leg one is told
    assert told(found.telling("California Gull", "Western_Gull")) == [
        "leg color: yellow",
        "eye color: yellow",
    ]


def test_a_table_may_leave_open_what_is_not_known(tmp_path):
    file = write_table(tmp_path / "marks.csv", "Western Gull,44,15,,0", "Auk,0,0,0,100")
    found = read_marks(file, ["Auk", "Western Gull"], flag="--marks")
    assert found.names == NAMES
    assert np.isnan(found.shares[1, 2])
    assert told(found.telling("Auk", "Western Gull")) == ["crested", "leg color: pink"]
    assert told(found.telling("Western Gull", "Auk")) == ["leg color: pink", "crested"]


@pytest.mark.parametrize("place", [".", "..", "above"])
def test_cub_is_found_from_within_and_from_above(tmp_path, monkeypatch, place):
    root = write_cub_marks(tmp_path / "CUB_200_2011")
    monkeypatch.chdir(root if place == "." else root / "attributes" if place == ".." else tmp_path)
    found = read_marks(Path("." if place == "above" else place), ["Auk"], flag="--marks")
    assert found.shares.tolist() == [[0.0, 0.0, 0.0, 1.0]]


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path):
    root = write_cub_marks(tmp_path / "CUB_200_2011")
    for file in (root / "classes.txt", root / "attributes" / SHARES_FILE, tmp_path / "attributes.txt"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert read_marks(root, ["Auk"], flag="--marks").shares.tolist() == [[0.0, 0.0, 0.0, 1.0]]
    file = write_table(tmp_path / "marks.csv", "Auk,1,2,3,4")
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert read_marks(file, ["Auk"], flag="--marks").names == NAMES


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["Auk,1,2,3"], "marks.csv, line 2: expected 5 fields"),
        (["Auk,1,2,3,101"], "marks.csv, line 2: crested: expected a percentage of 0 to 100, found '101'"),
        (
            ["", "Auk,1,2,44 %,0"],
            "line 3: eye color: yellow: expected a percentage of 0 to 100, found '44 %'",
        ),
        (["Auk,1,2,3,inf"], "found 'inf'"),
        (["Auk,1,2,3,nan"], "found 'nan'"),
        (["Auk,-1,2,3,4"], "found '-1'"),
        (["Auk,0.5,0,1,0.2"], "marks.csv: expected percentages of 0 to 100, and none is above 1"),
        (["Wren,1,2,3,4"], "has no row, or more than one, for Auk; expected one for every class"),
        (["Auk,1,2,3,4"] * 2, "has no row, or more than one, for Auk"),
        ([], "has no row, or more than one, for Auk"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(tmp_path, rows, said):
    with pytest.raises(DataError, match="--marks: ") as told:
        read_marks(write_table(tmp_path / "marks.csv", *rows), ["Auk"], flag="--marks")
    assert said in str(told.value)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("", "expected a head such as species,leg color: pink,crested"),
        ("species;crested", "commas between them, and a name for each column"),
        ("species,crested,", "commas between them, and a name for each column"),
        ("species,crested,crested", "two columns have the same name"),
    ],
)
def test_what_is_wrong_with_its_head_is_named(tmp_path, head, said):
    (tmp_path / "marks.csv").write_text(f"{head}\n")
    with pytest.raises(DataError, match=r"marks\.csv: ") as told:
        read_marks(tmp_path / "marks.csv", ["Auk"], flag="--marks")
    assert said in str(told.value)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (
            "../attributes.txt",
            None,
            "expected attributes.txt, the names of the attributes, there, in attributes/, or in",
        ),
        (
            "../attributes.txt",
            "1 pink\n",
            "attributes.txt, line 1: expected '<attribute id> <name such as has_leg_color::pink>'",
        ),
        ("attributes/SHARES", None, "class_attribute_labels_continuous.txt: no such file"),
        ("attributes/SHARES", "1 2 3\n" * 3, "continuous.txt, line 3: expected 4 percentages, found 3"),
        ("attributes/SHARES", "1 2 3 4\n" * 2, "classes.txt, line 3: "),
        ("classes.txt", "5 005.Auk\n", "classes.txt, line 1: "),
        ("classes.txt", b"\x00\xfe", "classes.txt: cannot be read as text"),
        ("classes.txt", None, "classes.txt: no such file"),
    ],
)
def test_what_is_wrong_with_cub_s_files_is_named(tmp_path, file, content, said):
    root = write_cub_marks(tmp_path / "CUB_200_2011")
    file = root / file.replace("SHARES", SHARES_FILE)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
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
    assert f"{first} rather than {second}, usually: leg color: pink (90 % against 10)" in said.out
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
    nobody = racnn("predict", best, photos, "--marks", "~nobody-of-that-name/marks.csv")
    assert nobody.code == 2
    assert "--marks: ~nobody-of-that-name/marks.csv: cannot be read" in nobody.err


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
