"""A cache changes nothing but the time: the same pixels, never stale, never half written, for any number of writers."""

import os
import pickle
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from layouts import write_photo
from PIL import Image

from racnn.data import build_data, cache, eval_loader, train_loader
from racnn.data.cache import INDEX, open_cache
from racnn.data.transforms import SourceTransform
from racnn.engine.trainer import fit
from racnn.errors import ConfigError, DataError
from racnn.sections import AugmentConfig, DataConfig

PLAIN = SourceTransform(32)


@pytest.fixture
def paths(tmp_path):
    for i in range(12):
        write_photo(tmp_path / "birds" / ("wren", "auk")[i % 2] / f"{i}.png", size=(60 - i, 40 + i), seed=i)
    return sorted((tmp_path / "birds").rglob("*.png"))


def opened(tmp_path, paths, transform=PLAIN, **options):
    return open_cache(tmp_path / "cache", paths, transform, **{"say": lambda _: None} | options)


def folders(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").glob("*"))


@pytest.mark.parametrize(("resize", "workers"), [("squash", 0), ("crop", 2)])
def test_batches_from_the_cache_are_those_from_the_files(resize, workers, tmp_path, paths):
    config = DataConfig(
        dataset="folder",
        root=tmp_path / "birds",
        source_size=32,
        resize=resize,
        batch_size=4,
        num_workers=workers,
        cache=tmp_path / "cache",
    )
    plain, cached = build_data(config, seed=0), build_data(config, seed=0)
    for split in ("train", "val"):
        dataset = cached.splits[split]
        dataset.cache = opened(
            tmp_path, [r.path for r in dataset.records], dataset.transform, workers=workers
        )
    for epoch in (0, 1):
        pairs = zip(
            train_loader(plain, config, seed=0, epoch=epoch),
            train_loader(cached, config, seed=0, epoch=epoch),
            strict=True,
        )
        assert all(torch.equal(a["image"], b["image"]) for a, b in pairs)
    pairs = zip(
        eval_loader(plain.splits["val"], config), eval_loader(cached.splits["val"], config), strict=True
    )
    assert all(torch.equal(a["image"], b["image"]) for a, b in pairs)
    assert cached.splits["val"].without_augmentation().cache is not None
    assert cached.splits["train"].without_augmentation().cache is None  # those photos have another size


def test_the_size_is_told_before_it_is_written_and_nothing_is_written_twice(tmp_path, paths):
    said = []
    folder = opened(tmp_path, paths, say=lambda line: said.append((line, folders(tmp_path)))).folder
    ((line, before),) = said
    assert "12 photos, 0.00 GB to write" in line
    assert before == []
    times = {path: path.stat().st_mtime_ns for path in (folder, *folder.iterdir())}
    assert len(opened(tmp_path, paths, say=pytest.fail)) == 12
    assert {path: path.stat().st_mtime_ns for path in (folder, *folder.iterdir())} == times


@pytest.mark.parametrize(
    "change",
    [
        lambda paths: paths[:-1],
        lambda paths: paths[::-1],
        lambda paths: [Image.new("RGB", (50, 50)).save(paths[3]), *paths][1:],
    ],
    ids=["fewer", "another order", "another content"],
)
def test_other_photos_have_another_cache(change, tmp_path, paths):
    opened(tmp_path, paths)
    changed = change(paths)
    fresh = opened(tmp_path, changed)
    assert len(folders(tmp_path)) == 2
    for position, path in enumerate(changed):
        pixels, size = fresh[position]
        whole = np.array(Image.open(path))
        assert size == whole.shape[:2]
        assert np.array_equal(pixels, PLAIN.shrink(whole, size))


def test_other_settings_have_another_cache_and_random_changes_and_another_place_have_not(tmp_path, paths):
    for transform in (PLAIN, SourceTransform(24), SourceTransform(32, "crop")):
        opened(tmp_path, paths, transform)
    assert len(folders(tmp_path)) == 3
    for color in (0.0, 0.5):
        opened(tmp_path, paths, SourceTransform(28, "squash", AugmentConfig(crop=0.875, color=color)))
    shutil.move(tmp_path / "birds", tmp_path / "elsewhere")
    opened(tmp_path, sorted((tmp_path / "elsewhere").rglob("*.png")))
    assert len(folders(tmp_path)) == 3  # 28 / 0.875 is 32


def test_a_damaged_photo_is_named_and_leaves_nothing(tmp_path, paths):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)).save(paths[5], "JPEG")
    paths[5].write_bytes(paths[5].read_bytes()[:2000])  # the header is sound
    with pytest.raises(DataError, match=paths[5].name):
        opened(tmp_path, paths)
    assert folders(tmp_path) == []


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, paths, monkeypatch):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match=r"data\.cache: .*0\.00 GB needed, 0\.00 GB free"):
        opened(tmp_path, paths)
    assert folders(tmp_path) == []


def test_two_programs_may_write_the_same_cache(tmp_path, paths):
    """Both begin; the slower one finds the other's and takes it."""
    barrier = threading.Barrier(2, timeout=20)
    with ThreadPoolExecutor(2) as both:  # each says what it is about to write
        results = list(both.map(lambda _: opened(tmp_path, paths, say=lambda _: barrier.wait()), range(2)))
    assert len(folders(tmp_path)) == 1
    assert np.array_equal(results[0][4][0], results[1][4][0])


def test_what_was_left_unfinished_is_not_read_and_swept_in_time(tmp_path, paths):
    finished = opened(tmp_path, paths).folder
    names = [f".{finished.name}.{'0' * 8}.tmp", f".{finished.name}.{'1' * 8}.tmp", ".precious.tmp"]
    old, new, precious = (tmp_path / "cache" / name for name in names)
    for left in (old, new, precious):
        shutil.copytree(finished, left)
    shutil.rmtree(finished)
    long_ago = time.time() - cache.STALE - 60
    for left in (old, precious):
        os.utime(left / "pixels.u8", (long_ago, long_ago))
    opened(tmp_path, paths)
    assert folders(tmp_path) == sorted([new.name, precious.name, finished.name])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / INDEX).write_text(""),
        lambda folder: (folder / INDEX).write_text("[]"),
        lambda folder: (folder / INDEX).unlink(),
        lambda folder: (folder / "pixels.u8").write_bytes(b"short"),
        lambda folder: (folder / "pixels.u8").unlink(),
    ],
)
def test_a_cache_that_was_cut_short_is_written_anew(damage, tmp_path, paths):
    store = opened(tmp_path, paths)
    pixels = store[3][0].copy()
    damage(store.folder)
    assert np.array_equal(opened(tmp_path, paths)[3][0], pixels)


def test_a_cache_that_cannot_be_written_costs_no_earlier_run(tmp_path, paths, short):
    photos = {"data__dataset": "folder", "data__root": str(tmp_path / "birds"), "data__batch_size": 4}
    fit(short(tmp_path / "run", **photos), device=torch.device("cpu"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    for path in paths:
        path.write_bytes(path.read_bytes()[:60])
    cached = short(tmp_path / "run", **photos, data__cache=str(tmp_path / "cache"))
    with pytest.raises(DataError):
        fit(cached, device=torch.device("cpu"), overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()} == before


def test_a_process_that_gets_a_copy_maps_the_file_itself(tmp_path, paths):
    store = opened(tmp_path, paths)
    pixels = store[2][0]
    blob = pickle.dumps(store)
    assert len(blob) < 5000 < (store.folder / "pixels.u8").stat().st_size
    assert np.array_equal(pickle.loads(blob)[2][0], pixels)
    with pytest.raises(ValueError, match="read-only"):
        pixels[0] = 0


def test_a_run_with_a_cache_ends_with_the_same_weights(tmp_path, paths, short, capsys):
    photos = {"data__dataset": "folder", "data__root": str(tmp_path / "birds"), "data__batch_size": 4}
    for name, extra in (("plain", {}), ("cached", {"data__cache": str(tmp_path / "cache")})):
        fit(short(tmp_path / name, **photos, **extra), device=torch.device("cpu"))
    plain, cached = (torch.load(tmp_path / name / "last.pt")["model"] for name in ("plain", "cached"))
    assert all(torch.equal(plain[key], cached[key]) for key in plain)
    assert len(folders(tmp_path)) == 2  # of training and of validation photos, which have another size
    assert "data.cache: " in capsys.readouterr().out


def test_drawn_photos_need_no_cache(tmp_path, short):
    with pytest.raises(ConfigError, match="'synthetic' are made when they are asked for"):
        fit(short(tmp_path / "run", data__cache=str(tmp_path / "cache")), device=torch.device("cpu"))
