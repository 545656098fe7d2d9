"""A picture that is stored turned is the same picture: the same pixels and boxes, whatever reads it."""

import json

import numpy as np
import pytest
import yaml
from conftest import tiny_values
from layouts import write_photo
from PIL import Image, TiffImagePlugin

from racnn.data import build_data
from racnn.data.image_io import photo_size, read_photo, read_reduced
from racnn.sections import DataConfig

Y, X = np.mgrid[0:40, 0:90]
PICTURE = np.stack([X * 2, Y * 6, (X > 45) * (Y > 8) * 200], -1).astype(np.uint8)  # no symmetry, not square
BACK = {1: 0, 3: 2, 6: 1, 8: 3}  # quarter turns to the left that undo an orientation
LOSSLESS = {
    "png": {},
    "tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
    "deflate.tif": {"compression": "tiff_adobe_deflate"},
    "webp": {"lossless": True},
}


def store(path, turned):
    """Store the picture turned, with the tag that says so."""
    exif = Image.Exif()
    exif[0x0112] = turned
    path.parent.mkdir(parents=True, exist_ok=True)
    options = LOSSLESS[path.name.split(".", 1)[1]]
    Image.fromarray(np.ascontiguousarray(np.rot90(PICTURE, BACK[turned]))).save(path, exif=exif, **options)
    return path


FOUR = {"a.png": 1, "b.tif": 6, "c.lzw.tif": 8, "d.png": 6}


def four(place):
    return [store(place / name, turned) for name, turned in FOUR.items()]


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("turned", BACK)
def test_every_format_is_read_upright(kind, turned, tmp_path):
    path = store(tmp_path / f"a.{kind}", turned)
    assert np.array_equal(read_photo(path), PICTURE)
    assert photo_size(path) == PICTURE.shape[:2]
    assert read_reduced(path, lambda h, w: (h // 4, w // 4))[1] == PICTURE.shape[:2]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("turned", BACK)
def test_a_tiff_of_any_mode_is_read_upright(mode, turned, tmp_path):
    """Where a file holds a single plain tile, Pillow maps it, and would cut its rows at the wrong length."""
    grey = PICTURE[..., 0]
    deep = mode == "I;16"
    photo = Image.fromarray(grey.astype(np.uint16) * 257) if deep else Image.fromarray(PICTURE).convert(mode)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x0112] = turned
    turns = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
    stored = photo.transpose(turns[BACK[turned]]) if BACK[turned] else photo
    stored.save(tmp_path / "a.tif", tiffinfo=tags)
    expected = Image.fromarray(grey) if deep else photo.convert("RGBA") if mode == "P" else photo
    assert np.array_equal(read_photo(tmp_path / "a.tif"), np.array(expected.convert("RGB")))
    assert photo_size(tmp_path / "a.tif") == PICTURE.shape[:2]


@pytest.mark.parametrize("turned", BACK)
def test_a_tiff_that_only_its_xmp_block_turns_is_read_upright(turned, tmp_path):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[700] = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="{turned}"/></x:xmpmeta>'.encode()
    Image.fromarray(np.ascontiguousarray(np.rot90(PICTURE, BACK[turned]))).save(
        tmp_path / "a.tif", tiffinfo=tags
    )
    assert np.array_equal(read_photo(tmp_path / "a.tif"), PICTURE)
    assert photo_size(tmp_path / "a.tif") == PICTURE.shape[:2]


@pytest.mark.parametrize("behind", [False, True])
def test_a_png_is_turned_by_a_tag_before_or_behind_its_pixels(behind, tmp_path):
    content = store(tmp_path / "a.png", 6).read_bytes()
    start = content.index(b"eXIf") - 4
    length = int.from_bytes(content[start : start + 4], "big") + 12
    chunk, rest = content[start : start + length], content[:start] + content[start + length :]
    if behind:
        (tmp_path / "a.png").write_bytes(rest[:-12] + chunk + rest[-12:])
    assert photo_size(tmp_path / "a.png") == PICTURE.shape[:2]
    assert np.array_equal(read_photo(tmp_path / "a.png"), PICTURE)


@pytest.fixture(scope="module", params=["squash", "crop"])
def resize(request):
    return request.param


@pytest.fixture(scope="module")
def trained(resize, tmp_path_factory):
    """A network that was trained on such photos, and two classes of them to measure on."""
    import torch

    from racnn.config import parse_config
    from racnn.engine.trainer import fit

    place = tmp_path_factory.mktemp("turned")
    for i in range(12):
        write_photo(place / "photos" / ("auk", "tit")[i % 2] / f"{i}.png", size=(90, 40), seed=i)
    values = tiny_values(
        place / "run",
        schedule=[{"kind": "classification", "epochs": 1, "lr": 0.01}],
        data__dataset="folder",
        data__root=str(place / "photos"),
        data__resize=resize,
    )
    (place / "c.yaml").write_text(yaml.safe_dump(values))
    return fit(parse_config(values, origin="turned"), device=torch.device("cpu"))[0]


def rows_of(result):
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


def test_predict_gives_the_same_boxes_and_answers(trained, racnn, tmp_path):
    rows = rows_of(racnn("predict", trained, *four(tmp_path), "--json", "--workers", 0))
    assert len(rows) == 4
    for row in rows[1:]:
        assert row["boxes_xyxy"] == pytest.approx(np.array(rows[0]["boxes_xyxy"]), abs=0.01)
        assert [a["name"] for a in row["top"]] == [a["name"] for a in rows[0]["top"]]
        assert row["top"][0]["probability"] == pytest.approx(rows[0]["top"][0]["probability"], abs=1e-6)
    x0, y0, x1, y1 = rows[0]["boxes_xyxy"][0]
    assert x1 <= 90
    assert y1 <= 40
    assert x1 - x0 > 0 < y1 - y0


def test_visualize_draws_the_same_picture(trained, racnn, tmp_path):
    assert racnn("visualize", trained, *four(tmp_path / "photos"), "--out", tmp_path / "out").code == 0
    rows = json.loads((tmp_path / "out" / "regions.json").read_text())
    with Image.open(tmp_path / "out" / rows[0]["picture"]) as picture:
        first = np.asarray(picture)
    for row in rows[1:]:
        assert row["boxes_xyxy"] == pytest.approx(np.array(rows[0]["boxes_xyxy"]), abs=0.01)
        with Image.open(tmp_path / "out" / row["picture"]) as picture:
            assert np.array_equal(np.asarray(picture), first)


def lists(place):
    """Write a list with a box for each of the four, in upright pixels."""
    for path in four(place):
        listed = place / f"{path.stem}.csv"
        listed.write_text(f"path,label,split,x0,y0,x1,y1\n{path.name},auk,test,30,5,60,38\n")
        yield listed


def test_evaluate_measures_the_same(trained, racnn, tmp_path):
    reports = []
    for path in lists(tmp_path):
        result = racnn("evaluate", trained, "--data", path, "--json", path.with_suffix(".json"))
        assert result.code == 0, result.err
        reports.append(json.loads(path.with_suffix(".json").read_text()))
    assert reports[0]["localisation"]["region_1"]["iou"] > 0
    for report in reports[1:]:
        assert report["localisation"] == reports[0]["localisation"]
        assert report["log_prob"] == pytest.approx(reports[0]["log_prob"], abs=1e-6)
        assert report["regions"] == reports[0]["regions"]


def test_training_sees_the_same(resize, tmp_path):
    """Sources, boxes and random changes of each of the four, as the only photo of its class."""
    seen = []
    for path in four(tmp_path):
        for name in ("other.png", "third.png", "fourth.png"):
            store(tmp_path / name, 1)
        text = "path,label,split,x0,y0,x1,y1\n"
        text += f"{path.name},auk,train,30,5,60,38\n"
        text += "other.png,tit,train,,,,\nthird.png,tit,val,,,,\nfourth.png,tit,test,,,,\n"
        (tmp_path / f"{path.stem}.csv").write_text(text)
        config = DataConfig(
            dataset="manifest", root=tmp_path / f"{path.stem}.csv", resize=resize, source_size=32
        )
        train = build_data(config, seed=3).splits["train"]
        assert train.records[0].path == path
        seen.append([train[epoch, 0] for epoch in range(4)])
    for samples in seen[1:]:
        for sample, first in zip(samples, seen[0], strict=True):
            assert np.array_equal(sample["image"], first["image"])
            assert sample["box"].tolist() == pytest.approx(first["box"].tolist(), abs=1e-4)
