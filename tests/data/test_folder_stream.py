"""Photos come in the order of the folders, whoever reads them, and only when it is their turn."""

import pytest
import torch
from layouts import write_photo

from racnn.data.folder_stream import PhotoStream, photo_batches
from racnn.data.listing import find_photos
from racnn.data.transforms import SourceTransform
from racnn.errors import DataError
from racnn.sections import DataConfig

CONFIG = DataConfig(source_size=24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for seed, name in enumerate(
        ("b/2.png", "a.png", "b/10.png", "c.png", "b/deep/1.png", "d.png", "z/1.png")
    ):
        write_photo(root / name, size=(31, 20), seed=seed)
    (root / "c2.jpg").write_bytes(b"no photo")
    return root


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_order_does_not_depend_on_the_workers(folder, workers):
    loader, _ = photo_batches([folder], CONFIG, batch_size=2, workers=workers)
    batches = list(loader)
    assert [path for batch in batches for path in batch.paths] == find_photos([folder])
    assert [len(batch.paths) for batch in batches] == [2, 2, 2, 2]
    assert sum(len(batch.images) for batch in batches) == 7
    assert [path for batch in batches for i, path in enumerate(batch.paths) if i in batch.errors] == [
        folder / "c2.jpg"
    ]


def test_sources_are_those_of_the_data_sets(folder):
    from racnn.data import read_photo

    loader, transform = photo_batches([folder / "a.png"], CONFIG, batch_size=4, workers=0)
    (batch,) = loader
    source, _, _ = SourceTransform(24)(read_photo(folder / "a.png"), None, (), 0)
    assert torch.equal(batch.images[0], torch.from_numpy(source.transpose(2, 0, 1).copy()))
    assert batch.sizes == [(20, 31)]
    assert transform.source_size == 24


def test_photos_are_listed_only_when_it_is_their_turn(folder, monkeypatch):
    listed = []

    def endless(_places):
        while True:
            listed.append(folder / "a.png")
            yield folder / "a.png"

    monkeypatch.setattr("racnn.data.folder_stream.iter_photos", endless)
    stream = iter(PhotoStream([folder], SourceTransform(24), 3))
    next(stream)
    next(stream)
    assert len(listed) == 6


@pytest.mark.parametrize("place", ["missing", "empty"])
def test_places_without_photos_are_refused_before_anything_is_read(folder, tmp_path, place):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=place):
        photo_batches([folder, tmp_path / place], CONFIG, batch_size=2, workers=0)
