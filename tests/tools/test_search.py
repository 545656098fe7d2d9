"""tools/search.py: what other places are worth, and that nothing is foreseen of a photo by itself."""

import csv

import layouts
import pytest
import torch

import search as tool
from racnn.errors import ConfigError
from racnn.models.racnn.heads import deal_folds

SMALL = ["--backbone", "tiny", "--set", "model.weights=null", "--set", "model.view_sizes=[32, 32, 32]"]
SMALL += ["--set", "data.source_size=48", "--set", "data.num_workers=0", "--set", "run.num_preview=0"]


def places(num=200, seed=0):
    """Return made-up places: a photo whose first number is positive gains by the second place, the others lose."""
    generator = torch.Generator().manual_seed(seed)
    shown = torch.rand(num, 76, generator=generator) - 0.5
    gain = shown[:, :1].sign()
    log_prob = torch.cat([torch.zeros(num, 1), gain, torch.full((num, 7), -1.0)], dim=1) - 2.0
    labels = torch.arange(num) % 5
    logits = torch.zeros(num, 9, 5).scatter(
        2, labels[:, None, None].expand(-1, 9, 1), log_prob[..., None] + 2.0
    )
    return tool.Places(labels, logits, log_prob, shown, deal_folds(labels))


def test_what_can_be_foreseen_is():
    train, val = places(), places(seed=1)
    by_folds, penalty = tool.foreseen_by_folds(train)
    for found, choice in ((train, by_folds), (val, tool.foresee(train, val.shown, penalty))):
        assert ((choice == 1) == (found.shown[:, 0] > 0)).float().mean() > 0.8
        top1, gain, *_rest = tool.worth(found, choice)
        assert gain > 0.3
        assert top1 > 0.4


def test_what_is_chance_is_not():
    train = places()
    noise = torch.rand(train.shown.shape, generator=torch.Generator().manual_seed(2))
    by_folds, _ = tool.foreseen_by_folds(
        tool.Places(train.labels, train.logits, train.log_prob, noise, train.folds)
    )
    assert abs(((by_folds == 1) == (train.shown[:, 0] > 0)).float().mean() - 0.5) < 0.15


def test_moves_stay_inside_the_photo():
    region = torch.tensor([[0.5, 0.0, 0.5], [0.0, 0.0, 0.4], [0.0, 0.0, 0.9]])
    torch.testing.assert_close(
        tool.move(region, (0.15, 0.0, 1.0)),
        torch.tensor([[0.5, 0.0, 0.5], [0.12, 0.0, 0.4], [0.1, 0.0, 0.9]]),
    )
    assert tool.move(region, (0.0, 0.0, 1.5))[2].tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("region", [1, 2])
def test_a_run_of_quick(region, racnn, tmp_path, capsys):
    folder = layouts.write_class_folders(tmp_path / "birds")
    out = tmp_path / "run"
    assert racnn("train", folder, "--out", out, *SMALL).code == 0
    tool.main(out / "best.pt", region=region, limit=50, data=None, csv=tmp_path / "found.csv", device="cpu")
    assert f"scale {region + 1}, by where region {region} is" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "found.csv").open()))
    assert len(rows) == 2 * (3 + len(tool.MOVES) - 1)
    best = [float(row["log_prob_gain"]) for row in rows if row["choice"] == "best by the true class"]
    assert all(float(row["log_prob_gain"]) <= best[row["split"] == "val"] + 1e-4 for row in rows), (
        "nothing is better than the best"
    )


def test_a_run_without_descriptors_is_told(finished):
    with pytest.raises(ConfigError, match="holds no descriptors of a run of quick"):
        tool.main(finished.folder / "best.pt", region=1, limit=50, data=None, csv=None, device="cpu")
