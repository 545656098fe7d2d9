"""tools/why.py counts peaks as one would by eye."""

import layouts
import pytest
import torch

import why as tool
from racnn.engine.evaluator import data_of
from racnn.engine.predictor import load
from racnn.errors import ConfigError

SMALL = ["--backbone", "tiny", "--set", "model.weights=null", "--set", "model.view_sizes=[32, 32, 32]"]
SMALL += ["--set", "data.source_size=48", "--set", "data.num_workers=0", "--set", "run.num_preview=0"]


def test_a_peak_is_the_middle_of_its_cell_in_the_photo():
    cells = torch.zeros(2, 2, 4)
    cells[0, 1, 3] = cells[1, 0, 0] = 1.0
    region = torch.tensor([[0.0, 0.0, 1.0], [0.5, -0.5, 0.5]])
    torch.testing.assert_close(tool.peak(cells, region), torch.tensor([[0.75, 0.5], [0.125, -0.75]]))


def test_hits_by_hand():
    boxes = torch.tensor([[-0.4, -0.4, 0.4, 0.4]] * 3 + [[torch.nan] * 4])
    points = torch.tensor([[0.3, 0.3], [0.3, 0.3], [torch.nan, torch.nan], [0.0, 0.0]])
    at = torch.tensor([[0.2, 0.2], [0.5, 0.3], [0.0, 0.0], [0.0, 0.0]])
    inside, near = tool.hits(at, boxes, points)  # a quarter of the size is 0.2
    torch.testing.assert_close(inside, torch.tensor([1.0, 0.0, 1.0, torch.nan]), equal_nan=True)
    torch.testing.assert_close(near, torch.tensor([1.0, 1.0, torch.nan, torch.nan]), equal_nan=True)


def test_every_peak_is_that_of_its_map(finished, capsys):
    tool.main(finished.folder / "best.pt", limit=5, device="cpu")
    out = capsys.readouterr().out
    assert "5 photos" in out
    trained = load(finished.folder / "best.pt")
    data = data_of(trained)
    photos = data.splits["val"]
    records = [photos.records[i * len(photos) // 5] for i in range(5)]
    seen = trained.predict([photos.catalog.load(record) for record in records], why=True)
    found = tool.measure(trained, limit=5)
    assert list(found) == [
        f"look {number}: {name}" for number in (1, 2, 3) for name in ("why", "class activation", "the middle")
    ]
    side = trained.config.data.source_size
    for row, (record, each) in enumerate(zip(records, seen, strict=True)):
        box, _ = photos.catalog.annotate(record)
        for number, cells in enumerate(each.why, start=1):
            x0, y0, x1, y1 = each.boxes_xyxy[number - 2] if number > 1 else (0.0, 0.0, side, side)
            index = int(cells.argmax())
            x = x0 + (x1 - x0) * (index % cells.shape[1] + 0.5) / cells.shape[1]
            y = y0 + (y1 - y0) * (index // cells.shape[1] + 0.5) / cells.shape[0]
            inside = box[0] <= x <= box[2] and box[1] <= y <= box[3]
            assert found[f"look {number}: why"][0][row] == inside
        middle = box[0] <= side / 2 <= box[2] and box[1] <= side / 2 <= box[3]
        assert found["look 1: the middle"][0][row] == middle


def test_photos_without_boxes_are_refused(racnn, tmp_path):
    layouts.write_class_folders(tmp_path / "birds")
    assert racnn("train", tmp_path / "birds", "--out", tmp_path / "run", *SMALL).code == 0
    with pytest.raises(ConfigError, match="no boxes"):
        tool.measure(load(tmp_path / "run" / "best.pt"), limit=5)
