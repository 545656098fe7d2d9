"""tools/why.py counts peaks as one would by eye."""

import pytest
import torch

import why as tool
from racnn.engine.predictor import load
from racnn.errors import ConfigError


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


def test_every_look_has_its_rows(finished, capsys):
    tool.main(finished.folder / "best.pt", limit=5, device="cpu")
    out = capsys.readouterr().out
    assert "5 photos" in out
    for number in (1, 2, 3):
        for name in ("why", "class activation", "the middle"):
            assert f"look {number}: {name}" in out
    found = tool.measure(load(finished.folder / "best.pt"), limit=5)
    assert {len(inside) for inside, _ in found.values()} == {5}
    boxes_hold_middles = found["look 1: the middle"][0]
    assert set(boxes_hold_middles.tolist()) <= {0.0, 1.0}


def test_photos_without_boxes_are_refused(finished, monkeypatch):
    def nowhere(at, boxes, points):
        return torch.full((len(at),), torch.nan), torch.full((len(at),), torch.nan)

    monkeypatch.setattr(tool, "hits", nowhere)
    with pytest.raises(ConfigError, match="no boxes"):
        tool.measure(load(finished.folder / "best.pt"), limit=5)
