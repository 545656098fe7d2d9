"""The table of tools/slopes.py compares a derivative with what moves of the region do."""

import pytest
import torch

import slopes as tool
from racnn.data import eval_loader
from racnn.engine.evaluator import data_of
from racnn.engine.predictor import load
from racnn.errors import ConfigError
from racnn.ops.regions import bounding_region, clamp

BOUNDS = (0.1, 0.9)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_slope_of_a_parabola_is_its_derivative_at_any_step(axis):
    region = torch.tensor([[0.1, -0.2, 0.4], [-0.1, 0.1, 0.3]])
    for step in (0.01, 0.3):
        slope = tool.slope(lambda place: (place**2).sum(dim=1), region, axis, step, BOUNDS)
        torch.testing.assert_close(slope, 2.0 * region[:, axis], atol=1e-4, rtol=1e-4)


def test_a_move_that_the_image_cuts_short_counts_as_far_as_it_went():
    region = torch.tensor(
        [[0.45, 0.0, 0.5], [0.5, 0.0, 0.5], [0.0, 0.0, 0.5]]
    )  # near the edge, at it, away from it
    slope = tool.slope(lambda place: 3.0 * place[:, 0], region, 0, 0.4, BOUNDS)
    torch.testing.assert_close(slope[[0, 2]], torch.tensor([3.0, 3.0]))
    slope = tool.slope(lambda place: place[:, 0], torch.tensor([[0.0, 0.0, 0.9]]), 2, 0.4, (0.89, 0.9))
    assert slope.isnan().all()
    pushed = tool.slope(lambda place: place[:, 0], torch.tensor([[0.6, 0.0, 0.4]]), 2, 0.4, BOUNDS)
    assert pushed.isnan().all()  # growing would move the centre: that is no slope of tl


def test_the_derivative_of_a_network_is_the_slope_of_small_steps(finished):
    trained = load(finished.folder / "best.pt")
    data = data_of(trained)
    batches = eval_loader(data.splits["val"], trained.config.data)
    exact, (small,) = tool.measure(trained, batches, 1, [1e-3])
    inside = small.isfinite()
    assert inside.float().mean() > 0.5
    assert tool.correlation(exact[inside], small[inside]) > 0.95


@pytest.mark.parametrize("number", [1, 2])
def test_a_place_is_worth_what_the_scale_says_of_it(finished, number):
    trained = load(finished.folder / "best.pt")
    model, photos = trained.model, data_of(trained).splits["val"].without_augmentation()
    said = tool.elsewhere(trained, eval_loader(photos, trained.config.data), number)
    places = ["as it is proposed", "in the middle", *["around the true box"] * (number == 1), *tool.MOVES]
    assert list(said) == places
    images = torch.stack([photos[0, i]["image"] for i in range(len(photos))])
    labels = torch.tensor([photos[0, i]["label"] for i in range(len(photos))])
    with torch.no_grad():
        output = model(images, num_scales=number + 1)
        region = output.proposals[number - 1].clone()
        region[:, :2] = 0.0
        middle = model.classify_proposal(
            number + 1, model.normalise(images), output.scales[number - 1], region
        )
    for logits, name in ((output.logits[number], "as it is proposed"), (middle, "in the middle")):
        log_prob, right = said[name]
        expected = logits.log_softmax(dim=1)[torch.arange(len(labels)), labels]
        torch.testing.assert_close(log_prob, expected, rtol=1e-3, atol=1e-4)
        assert torch.equal(right, (logits.argmax(dim=1) == labels).float())


def test_the_true_box_is_left_out_where_a_photo_has_none(finished):
    trained = load(finished.folder / "best.pt")
    batches = list(eval_loader(data_of(trained).splits["val"], trained.config.data))
    batches[-1]["box"][-1] = float("nan")
    said = tool.elsewhere(trained, batches, 1)
    assert "around the true box" not in said
    assert len(said) == 2 + len(tool.MOVES)


def test_the_regions_are_where_their_names_say(finished, monkeypatch):
    trained = load(finished.folder / "best.pt")
    photos = data_of(trained).splits["val"].without_augmentation()
    given, logits = [], torch.zeros(len(photos), len(trained.class_names))
    monkeypatch.setattr(
        trained.model, "classify_proposal", lambda _n, _s, _p, region: given.append(region) or logits
    )
    said = tool.elsewhere(trained, eval_loader(photos, trained.config.data), 1)
    at = dict(zip(said, given, strict=True))
    own = at["as it is proposed"]
    assert torch.equal(at["in the middle"][:, 2], own[:, 2])
    truth = torch.stack([photos[0, i]["box"] for i in range(len(photos))])
    assert torch.equal(at["around the true box"], clamp(bounding_region(truth), *trained.model.bounds[0]))
    left, right, up, down = (
        at[f"a tenth of its side {way}"] for way in ("to the left", "to the right", "up", "down")
    )
    assert (left[:, 0] < own[:, 0]).all()
    assert (right[:, 0] > own[:, 0]).all()
    assert (up[:, 1] < own[:, 1]).all()
    assert (down[:, 1] > own[:, 1]).all()
    assert (at["a fifth smaller"][:, 2] < own[:, 2]).any()
    assert (at["a fifth larger"][:, 2] > own[:, 2]).any()


def test_there_is_a_row_for_every_place_coordinate_and_step(finished, capsys):
    tool.main(finished.folder / "best.pt", 1, "val", "0.1,0.02", 8, None, "cpu")
    places, slopes = capsys.readouterr().out.split("\n\n")
    assert "8 photos; scale 2 where region 1 is" in places
    assert len(places.splitlines()) == 2 + 9
    assert places.splitlines()[2].endswith("+0.000 +- 0.000")
    head, _, *rows = slopes.splitlines()
    assert head == "log p of scale 2 as region 1 moves"
    assert [row.split()[:3:2] for row in rows] == [
        [c, s] for c in ("tx", "ty", "tl") for s in ("0.02", "0.10")
    ]
    assert all(row.split()[-1] == "1.00" for row in rows[1::2])  # the largest step goes with itself


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": "test"}, "--split test: expected val or train"),
        ({"steps": "0,1"}, "--steps 0,1: each must be above 0"),
        ({"steps": "x"}, "--steps x: expected numbers"),
        ({"region": 3}, r"--region 3: .* has 3 trained scale\(s\)"),
    ],
)
def test_wrong_options_are_refused(options, said, finished):
    given = {"region": 1, "split": "val", "steps": "0.1", "limit": 8, "data": None, "device": "cpu"} | options
    with pytest.raises(ConfigError, match=said):
        tool.main(finished.folder / "best.pt", **given)
