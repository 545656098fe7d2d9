"""info counts and measures, verify finds every damaged photo, and what it lists can be left out."""

from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
from layouts import write_photo
from PIL import Image

from racnn.data import build_data
from racnn.data import statistics as survey_module
from racnn.data.sources.catalog import read_exclusions
from racnn.data.sources.folder import folder
from racnn.data.statistics import format_survey, survey
from racnn.errors import DataError
from racnn.sections import DataConfig

SIZES = [(40, 20), (20, 40), (30, 30), (60, 30)]  # (width, height)


@pytest.fixture
def root(tmp_path):
    """Two classes of 8 and 4 photos; one is lying on its side by its EXIF tag."""
    root = tmp_path / "birds"
    for i in range(8):
        write_photo(root / "auk" / f"{i}.png", size=SIZES[i % 4], seed=i)
    for i in range(3):
        write_photo(root / "wren" / f"{i}.png", size=SIZES[0], seed=10 + i)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((10, 50, 3), np.uint8)).save(root / "wren" / "turned.jpg", exif=exif)
    return root


@pytest.fixture
def broken(root):
    """Three of them damaged."""
    for name, content in (("auk/0.png", b""), ("auk/3.png", b"junk"), ("wren/1.png", None)):
        path = root / name
        path.write_bytes(path.read_bytes()[:200] if content is None else content)
    return root


def read(root):
    return folder(DataConfig(dataset="folder", root=root))


def test_a_survey_counts_and_measures(root):
    report = survey(read(root))
    assert sum(report["splits"].values()) == 12
    assert (report["classes"], report["largest"], report["smallest"]) == (2, ["auk", 8], ["wren", 4])
    assert report["imbalance"] == 2.0
    assert (report["boxes"], report["parts"], report["unreadable"]) == (0, 0, 0)
    sides = sorted([20, 20, 30, 30, 20, 20, 30, 30, 20, 20, 20, 10])
    assert report["short_side"] == pytest.approx(np.quantile(sides, (0, 0.1, 0.5, 0.9, 1)).tolist())
    assert report["aspect"][0] == pytest.approx(10 / 50)  # upright, the turned photo is a tall one
    assert report["aspect"][-1] == pytest.approx(2.0)
    assert "12 photos" in format_survey(report)


def test_a_process_that_is_killed_is_told(root, racnn, monkeypatch):
    class Killed(survey_module.ProcessPoolExecutor):
        def map(self, *_, **__):
            raise BrokenProcessPool

    monkeypatch.setattr(survey_module, "ProcessPoolExecutor", Killed)
    result = racnn("data", "verify", root, "--workers", 1)
    assert result.code == 2
    assert "was killed" in result.err
    assert "--workers 0" in result.err


def test_a_list_of_photos_may_have_comments_and_names_that_begin_like_one(tmp_path):
    listed = tmp_path / "bad.txt"
    listed.write_text("# cut short\n#1 auk/0.png\n\n#\nwren/1.png \n")
    assert read_exclusions(listed) == {"#1 auk/0.png", "wren/1.png"}


def test_what_verify_lists_can_be_left_out(broken, racnn, tmp_path):
    listed = tmp_path / "bad.txt"
    result = racnn("data", "verify", broken, "--workers", 0, "--write-list", listed)
    assert result.code == 1
    assert "12 photos read, 3 damaged" in result.out
    assert read_exclusions(listed) == {"auk/0.png", "auk/3.png", "wren/1.png"}
    config = DataConfig(dataset="folder", root=broken, exclude=listed, source_size=16, num_workers=0)
    data = build_data(config, seed=0)
    assert sum(len(split) for split in data.splits.values()) == 9
    for split in data.splits.values():
        for i in range(len(split)):
            assert split[0, i]["image"].shape == (3, 16, 16)


def test_info_says_how_many_headers_cannot_be_read(broken, racnn):
    result = racnn("data", "info", broken)
    assert result.code == 0
    assert "unreadable      3 photos" in result.out


def test_names_that_are_not_there_are_refused(root, tmp_path):
    (tmp_path / "bad.txt").write_text("# gone\nauk/99.png\n")
    config = DataConfig(dataset="folder", root=root, exclude=tmp_path / "bad.txt")
    with pytest.raises(DataError, match=r"data\.exclude: 1 names are of no photo.*auk/99\.png"):
        build_data(config, seed=0)
    with pytest.raises(DataError, match=r"data\.exclude: .*none\.txt: cannot be read"):
        build_data(config.model_copy(update={"exclude": tmp_path / "none.txt"}), seed=0)


def test_photos_are_named_as_for_training(root, racnn):
    refused = racnn("data", "info", "bird:" + str(root))
    assert refused.code == 2
    assert "cub:ROOT" in refused.err
    refused = racnn("data", "info", f"cub:{root}")
    assert refused.code == 2
    assert "images.txt" in refused.err
    assert "3000 photos" in racnn("data", "info", "synthetic").out
    refused = racnn("data", "verify", "synthetic")
    assert refused.code == 2
    assert "drawn photos need no check" in refused.err


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_photos_can_be_skipped(workers, broken):
    config = DataConfig(
        dataset="folder", root=broken, source_size=16, num_workers=workers, on_error="skip", most_skipped=0.25
    )
    data = build_data(config, seed=0)
    assert set(data.skipped) == {"auk/0.png", "auk/3.png", "wren/1.png"}
    names = [record.name for split in data.splits.values() for record in split.records]
    assert len(names) == 9
    assert not set(names) & set(data.skipped)
    with pytest.raises(DataError, match=r"3 of 12 photos are damaged, more than data\.most_skipped \(0\.2\)"):
        build_data(config.model_copy(update={"most_skipped": 0.2}), seed=0)


def test_a_single_damaged_photo_is_no_share(broken):
    for name in ("auk/3.png", "wren/1.png"):
        (broken / name).unlink()
    config = DataConfig(dataset="folder", root=broken, source_size=16, num_workers=0, on_error="skip")
    assert set(build_data(config, seed=0).skipped) == {"auk/0.png"}
    with pytest.raises(DataError, match="1 of 10 photos are damaged"):
        build_data(config.model_copy(update={"most_skipped": 0.0}), seed=0)
