"""The table of tools/teacher.py says what the boxes read from a response map are worth."""

import pytest
import torch

import teacher
from racnn.data import eval_loader
from racnn.engine.evaluator import data_of
from racnn.engine.predictor import load
from racnn.errors import ConfigError
from racnn.evaluation.metrics import localisation
from racnn.models.racnn import make_phase
from racnn.models.racnn.pseudo_boxes import find_common_part
from racnn.ops.heatmap import component_region
from racnn.ops.regions import clamp, compose


def table(capsys, checkpoint, **options):
    """Return the rows by (response, level, trim)."""
    given = {"scale": 1, "split": "val", "levels": "0,0.5", "trims": "0,0.1", "enlarge": 1.0} | options
    given |= {"data": None, "device": "cpu"}
    capsys.readouterr()
    teacher.main(checkpoint, **given)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    return {(row[0], float(row[1]), float(row[2])): [float(value) for value in row[3:]] for row in rows}


@pytest.mark.parametrize(("scale", "enlarge", "trim"), [(1, 1.0, 0.0), (2, 1.0, 0.1), (2, 1.5, 0.0)])
def test_a_row_is_what_the_boxes_measure(scale, enlarge, trim, finished, capsys):
    trained = load(finished.folder / "best.pt", torch.device("cpu"))
    split = data_of(trained).splits["val"]
    (batch,) = list(eval_loader(split, trained.config.data))
    with torch.no_grad():
        output = trained.model(batch["image"], num_scales=scale)
        view = trained.model.enlarged_view(scale, batch["image"], output, enlarge)
        features, inner = trained.model.extract_with_inner(scale, view)
    region = component_region(features.float().sum(dim=1), 0.5, trim)
    region = clamp(region, *trained.model.bounds[scale - 1])
    expected = localisation(compose(output.regions[-1], region), batch["box"])
    rows = table(capsys, finished.folder / "best.pt", scale=scale, enlarge=enlarge)
    side, iou, coverage, *_ = rows["sum", 0.5, trim]
    assert side == pytest.approx(region[:, 2].mean().item(), abs=6e-4)
    assert iou == pytest.approx(expected["iou"], abs=6e-4)
    assert coverage == pytest.approx(100 * expected["coverage"], abs=0.06)

    train = eval_loader(data_of(trained).splits["train"], trained.config.data)
    phase = make_phase(kind="apn_init", epochs=1, lr=0.1, response="ddt", enlarge=enlarge)
    common = find_common_part(trained.model, train, scale, phase, device=torch.device("cpu"))
    region = clamp(component_region(common.response(inner), 0.5, trim), *trained.model.bounds[scale - 1])
    assert rows["ddt", 0.5, trim][0] == pytest.approx(region[:, 2].mean().item(), abs=6e-4)


def test_higher_levels_give_smaller_boxes(finished, capsys):
    rows = table(capsys, finished.folder / "best.pt", levels="0,0.3,0.8", split="train")
    for response in ("sum", "cam", "ddt"):
        sides = [rows[response, level, 0.0][0] for level in (0.0, 0.3, 0.8)]
        assert sides[0] > sides[1] > sides[2] >= 0.2 - 5e-4  # the bound of region 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": "test"}, "--split test: expected val or train"),
        ({"levels": "low"}, "--levels low: expected numbers"),
        ({"levels": "0,1"}, "--levels 0,1: each must be at least 0 and below 1"),
        ({"trims": "0,0.3"}, "--trims 0,0.3: each must be at least 0 and below 0.25"),
        ({"scale": 4}, "--scale 4: .* has 3 trained scale"),
    ],
)
def test_wrong_options_are_refused(options, said, finished, capsys):
    with pytest.raises(ConfigError, match=said):
        table(capsys, finished.folder / "best.pt", **options)
