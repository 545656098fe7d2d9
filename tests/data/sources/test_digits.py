"""MNIST's own files, on canvases that are new in every epoch."""

import gzip

import numpy as np
import pytest
import torch
from mnist import drawn, write_mnist

from racnn.data import build_data, eval_loader
from racnn.data.loader import train_loader
from racnn.data.sources import digits
from racnn.errors import ConfigError, DataError
from racnn.sections import DataConfig

PLAIN = {"crop": 1.0, "flip": False, "color": 0.0}


def config(root, **changes):
    settings = {"dataset": "digits", "root": root, "source_size": 60, "batch_size": 16, "num_workers": 0}
    return DataConfig(**settings | {"augment": PLAIN} | changes)


def canvases(data, split="train", epoch=1, **changes):
    """Return the samples of an epoch by the name of their record."""
    photos = data.splits[split]
    loader = (
        train_loader(data, photos.config, seed=0, epoch=epoch)
        if split == "train"
        else eval_loader(photos, photos.config)
    )
    return {
        photos.records[int(index)].name: {key: batch[key][i] for key in batch}
        for batch in loader
        for i, index in enumerate(batch["index"])
    }


@pytest.mark.parametrize("packed", [True, False])
def test_digits_lie_whole_where_their_box_says(tmp_path, monkeypatch, packed):
    root = write_mnist(tmp_path / "mnist", monkeypatch, packed=packed)
    data = build_data(config(root), seed=0)
    assert data.class_names == [str(number) for number in range(10)]
    assert {split: len(photos) for split, photos in data.splits.items()} == {
        "train": 70,
        "val": 10,
        "test": 40,
    }
    for name, sample in canvases(data, "test").items():
        number = int(name.split("/")[1])
        digit = drawn(number % 10, number)
        assert int(sample["label"]) == number % 10
        x0, y0, x1, y1 = ((sample["box"].double() + 1.0) * 30.0).round().long().tolist()
        ink = digit[np.flatnonzero(digit.any(axis=1))[0] :, np.flatnonzero(digit.any(axis=0))[0] :]
        shown = sample["image"][:, y0:y1, x0:x1]
        assert torch.equal(shown[0], torch.from_numpy(ink[: y1 - y0, : x1 - x0]))
        assert torch.equal(shown[0], shown[1])
        assert int(sample["image"].sum()) == 3 * int(digit.astype(np.int64).sum())
        middle = (sample["box"][:2] + sample["box"][2:]) / 2
        torch.testing.assert_close(sample["parts"][0, :2], middle)


def test_training_digits_move_with_the_epoch_and_others_stay(tmp_path, monkeypatch):
    data = build_data(config(write_mnist(tmp_path, monkeypatch)), seed=0)
    first, again, later = canvases(data), canvases(data), canvases(data, epoch=2)
    assert all(torch.equal(first[name]["image"], again[name]["image"]) for name in first)
    moved = [not torch.equal(first[name]["box"], later[name]["box"]) for name in first]
    assert sum(moved) > 60
    assert all(first[name]["image"].sum() == later[name]["image"].sum() for name in first)
    for split in ("val", "test"):
        one, other = canvases(data, split), canvases(data, split)
        assert all(torch.equal(one[name]["image"], other[name]["image"]) for name in one)


def test_boxes_that_were_read_of_a_canvas_go_with_it(tmp_path, monkeypatch):
    data = build_data(config(write_mnist(tmp_path, monkeypatch)), seed=0)
    photos = data.splits["train"]
    plain = photos.without_augmentation()
    photos.pseudo_boxes = torch.stack([plain[(0, i)]["box"] for i in range(len(photos))]).numpy()
    for sample in canvases(data).values():
        torch.testing.assert_close(sample["pseudo_box"], sample["box"])


def test_clutter_is_added_and_clipped(tmp_path, monkeypatch):
    root = write_mnist(tmp_path, monkeypatch)
    plain, cluttered = (
        canvases(build_data(config(root, digits={"clutter": pieces}), seed=0), "test") for pieces in (0, 4)
    )
    more = [int(cluttered[name]["image"].sum()) - int(plain[name]["image"].sum()) for name in plain]
    assert sum(each > 0 for each in more) > 30
    for name in plain:
        assert torch.equal(cluttered[name]["box"], plain[name]["box"])
        assert (cluttered[name]["image"] >= plain[name]["image"]).all()


def test_of_two_the_class_is_the_pair(tmp_path, monkeypatch):
    root = write_mnist(tmp_path, monkeypatch, num_train=600, num_test=200)
    data = build_data(config(root, digits={"count": 2}, source_size=100), seed=0)
    assert len(data.class_names) == 55
    assert data.class_names[:3] == ["0 and 0", "0 and 1", "0 and 2"]
    for name, sample in canvases(data, "test").items():
        own = int(name.split("/")[1]) % 10
        assert str(own) in data.class_names[int(sample["label"])].split(" and ")
        assert sample["parts"].shape == (2, 3)
        inside = (sample["parts"][:, :2] >= sample["box"][:2]) & (sample["parts"][:, :2] <= sample["box"][2:])
        assert inside.all()


def test_fewer_training_digits_can_be_asked_for(tmp_path, monkeypatch):
    data = build_data(config(write_mnist(tmp_path, monkeypatch), digits={"num_train": 40}), seed=0)
    assert len(data.splits["train"]) + len(data.splits["val"]) == 40
    catalog = digits.digits(config(tmp_path, digits={"num_train": 12, "count": 2}))
    canvases_of = catalog.load.__self__
    shown = {number for each in range(12) for number in canvases_of.shown("train", each)}
    assert shown <= set(range(12))


def test_other_files_are_refused(tmp_path, monkeypatch):
    root = write_mnist(tmp_path / "mnist", monkeypatch)
    with pytest.raises(DataError, match=r"expected the folder with MNIST's files"):
        build_data(config(None), seed=0)
    for changes, said in (
        ({"augment": {}}, r"neither cut off, mirrored nor coloured"),
        ({"classes": "1-3"}, r"data\.classes: is of photos"),
        ({"scene_size": 256}, r"data\.scene_size: is of photos"),
    ):
        with pytest.raises(ConfigError, match=said):
            build_data(config(root, **changes), seed=0)
    with pytest.raises(DataError, match=r"a digit has 28 pixels"):
        build_data(config(root, source_size=24), seed=0)
    with pytest.raises(DataError, match=r"none: no such folder"):
        build_data(config(tmp_path / "none"), seed=0)
    with pytest.raises(DataError, match=r"no such file, nor train-labels"):
        build_data(config(tmp_path), seed=0)
    file = root / "t10k-labels-idx1-ubyte.gz"
    whole = file.read_bytes()
    for content, said in (
        (whole[:-9], "cannot be read"),
        (b"no gzip at all", "cannot be read"),
        (gzip.compress(gzip.decompress(whole)[:-1] + b"\x05"), "is not MNIST's file of that name"),
    ):
        file.write_bytes(content)
        digits._labels.cache_clear()
        with pytest.raises(DataError, match=said):
            build_data(config(root), seed=0)
