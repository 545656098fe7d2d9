"""What a user is told about a run: collapse, imbalance, and a look that does not pay."""

import pytest

from racnn.config import load_config, parse_config
from racnn.evaluation.diagnostics import collapse_warnings, diagnose, imbalance_warning
from racnn.recipes import packaged

BOUNDS = [(0.2, 0.95), (0.3, 0.8)]
RECIPE = load_config(None)


def with_peak():
    first = {"kind": "classification", "epochs": 1, "lr": 0.1}
    taught = {"kind": "apn_init", "scales": [1], "epochs": 1, "lr": 0.1, "target": "peak"}
    return parse_config({"schedule": [first, taught]}, origin="test")


@pytest.mark.parametrize("recipe", ["quick.yaml", "full.yaml"])
def test_looks_that_are_weighed_by_the_fusion_are_not_compared(recipe):
    config = load_config(packaged(recipe))
    assert diagnose(report((0.9, 0.8, 0.7, 0.95), (-0.5, -0.6, -0.7, -0.4)), config) == []


def statistics(at_bound, tl_mean):
    return {"at_bound": at_bound, "tl_mean": tl_mean, "tx_std": 0.1, "ty_std": 0.1, "tl_std": 0.05}


def test_regions_away_from_their_bounds_give_no_warning():
    regions = {"region_1": statistics(0.5, 0.9), "region_2": statistics(0.0, 0.3)}
    assert collapse_warnings(regions, [(0.2, 0.95)] * 2) == []


@pytest.mark.parametrize(("tl_mean", "told"), [(0.94, "grown to its upper"), (0.21, "shrunk to its lower")])
def test_a_region_at_a_bound_on_most_photos_is_warned_of(tl_mean, told):
    regions = {"region_1": statistics(0.0, 0.5), "region_2": statistics(0.75, tl_mean)}
    (line,) = collapse_warnings(regions, [(0.3, 0.8), (0.2, 0.95)])
    assert line.startswith(f"region_2 has {told} bound on 75 % of the photos")
    assert "0.2 to 0.95" in line


@pytest.mark.parametrize(
    ("counts", "balance", "warns"),
    [
        ([30, 3], "none", False),
        ([31, 3], "none", True),
        ([31, 3], "weights", False),
        ([31, 3], "sampling", False),
    ],
)
def test_imbalance_beyond_ten_to_one_is_told_unless_something_is_done(counts, balance, warns):
    said = imbalance_warning(counts, ["wren", "auk"], balance)
    assert (said is not None) == warns
    if said:
        assert "'wren' has 31" in said
        assert "'auk' has 3" in said
        assert "data.balance" in said


def report(top1, log_prob, sides=(0.6, 0.5), at_bound=(0.0, 0.0)):
    names = ["scale_1", "scale_2", "scale_3", "fused"]
    return {
        "num_images": 50,
        "top1": dict(zip(names, top1, strict=False)) | {"scale_1+2": 0.0, "mean": 0.0},
        "log_prob": dict(zip(names, log_prob, strict=False)) | {"mean": -9.0},
        "regions": {
            f"region_{n}": statistics(b, s) for n, (s, b) in enumerate(zip(sides, at_bound, strict=True), 1)
        },
    }


def useless(**rest):
    """Return a report in which the second look does not pay."""
    return report((0.80, 0.78, 0.88, 0.90), (-0.6, -0.7, -0.5, -0.4), **rest)


@pytest.mark.parametrize(
    ("top1", "log_prob"),
    [
        ((0.80, 0.86, 0.88, 0.90), (-0.8, -0.6, -0.5, -0.4)),
        ((0.80, 0.80, 0.80, 0.80), (-0.8, -0.6, -0.5, -0.9)),  # the finer scale is surer
        ((1.0, 1.0, 1.0, 1.0), (-0.01, -0.02, -0.03, -0.01)),  # nothing can be better
        ((0.1,), (-2.0,)),  # a single scale has no verdict
    ],
)
def test_a_run_in_which_every_look_pays_is_not_remarked_on(top1, log_prob):
    assert diagnose(report(top1, log_prob), RECIPE) == []


@pytest.mark.parametrize(
    ("spread", "told"), [("tx_std", False), ("ty_std", False), ("tl_std", False), (None, True)]
)
def test_a_region_that_is_the_same_on_every_photo_is_told_of(spread, told):
    found = report((0.80, 0.86, 0.88, 0.90), (-0.8, -0.6, -0.5, -0.4))
    found["regions"]["region_2"] |= {
        key: 0.02 if key == spread else 0.0 for key in ("tx_std", "ty_std", "tl_std")
    }
    lines = diagnose(found, RECIPE)
    assert [line.startswith("region_2 is the same on every photo") for line in lines] == [True] * told
    assert all("schedule." in line and ".lr)" in line for line in lines)


def test_a_finer_scale_that_does_not_pay_is_named_with_the_numbers_and_what_to_try():
    (line,) = diagnose(report((0.80, 0.86, 0.82, 0.90), (-0.8, -0.6, -0.7, -0.4)), RECIPE)
    assert line.startswith("scale_3 is not better than scale_2 on the 50 validation photos")
    assert "82.0 against 86.0 %, 2 photos" in line
    assert "-0.700 against -0.600" in line
    assert "--set schedule.3.target=component" in line


@pytest.mark.parametrize(
    ("config", "advice"),
    [
        (with_peak(), "--set schedule.1.target=component"),
        (
            parse_config({"schedule": [{"kind": "classification", "epochs": 1, "lr": 0.1}]}, origin="test"),
            "never taught",
        ),
    ],
)
def test_the_advice_fits_the_schedule(config, advice):
    (line,) = diagnose(useless(sides=(0.5, 0.5)), config)
    assert advice in line
    assert ".level" not in line


@pytest.mark.parametrize(
    ("teacher", "advice"),
    [
        ({"trim": 0.03}, "lower schedule.1.trim;"),
        ({"trim": 0.03, "level": 0.2}, "lower schedule.1.trim or lower schedule.1.level;"),
        ({}, "widen model.bounds[0];"),  # nothing is left to lower
    ],
)
def test_a_region_that_cuts_too_much_off_is_told_of_what_can_be_lowered(teacher, advice):
    first, second = ({"kind": "classification", "scales": [s], "epochs": 1, "lr": 0.1} for s in (1, 2))
    taught = {"kind": "apn_init", "scales": [1], "epochs": 1, "lr": 0.1} | teacher
    config = parse_config({"schedule": [first, taught, second]}, origin="test")
    (line,) = diagnose(useless(sides=(0.5, 0.5)), config)
    assert advice in line
    assert "from scale 1 (init_from: 1)" in line


def test_a_scale_that_starts_from_the_coarser_one_is_not_told_to():
    config = load_config(None, ["schedule.3.target=component"])  # the recipe has init_from already
    (line,) = diagnose(report((0.80, 0.86, 0.82, 0.90), (-0.8, -0.6, -0.7, -0.4)), config)
    assert "train scale_3 longer;" in line
    assert "init_from" not in line


def test_equal_accuracy_with_a_less_sure_finer_scale_does_not_pay():
    (line,) = diagnose(report((0.80, 0.80, 0.88, 0.90), (-0.6, -0.7, -0.5, -0.4)), RECIPE)
    assert line.startswith("scale_2 is not better than scale_1")
    assert "photo;" not in line  # no photo decides: the log-probability does


def test_a_region_that_keeps_the_whole_view_is_told_how_to_zoom():
    (line,) = diagnose(useless(sides=(0.9, 0.5)), RECIPE)
    assert "region_1 keeps nearly the whole view (mean side 0.90)" in line
    assert "raise schedule.1.trim or schedule.1.level" in line


def test_a_look_with_fewer_pixels_than_the_one_before_is_told_how_to_get_more():
    (line,) = diagnose(useless(sides=(0.7, 0.5)), RECIPE)  # views of 448/224/224 px
    assert (
        "region_1 (mean side 0.70) is 314 px wide in the view of scale_1, and scale_2 shows it with 224"
        in line
    )
    assert "model.view_sizes[1]" in line
    (line,) = diagnose(useless(sides=(0.5, 0.5)), RECIPE)
    assert "no closer look" not in line


def test_a_wide_third_look_is_told_of_its_pixels_too():
    """The recipe's region 2 is a square, which nothing in its phase makes smaller."""
    sides = (0.5, 0.8)
    small_last = load_config(None, ["model.view_sizes=[448, 224, 160]"])
    (line,) = diagnose(report((0.8, 0.86, 0.82, 0.9), (-0.8, -0.6, -0.7, -0.4), sides=sides), small_last)
    assert (
        "region_2 (mean side 0.80) is 179 px wide in the view of scale_2, and scale_3 shows it with 160"
        in line
    )
    assert ".level" not in line


def test_a_fused_answer_below_the_best_scale_is_told():
    (line,) = diagnose(report((0.80, 0.86, 0.90, 0.78), (-0.8, -0.6, -0.5, -0.6)), RECIPE)
    assert line.startswith("fused is not better than scale_3")
    assert "photos;" in line


@pytest.mark.parametrize(("top1", "log_prob"), [(0.88, -0.6), (0.78, -0.4)])
def test_that_it_is_not_by_chance_or_surer_of_the_truth_is_not_told(top1, log_prob):
    assert diagnose(report((0.80, 0.86, 0.90, top1), (-0.8, -0.6, -0.5, log_prob)), RECIPE) == []


def test_collapse_is_part_of_the_verdict():
    lines = diagnose(
        report((0.80, 0.86, 0.90, 0.92), (-0.8, -0.6, -0.5, -0.4), sides=(0.6, 0.31), at_bound=(0.0, 0.9)),
        RECIPE,
    )
    assert len(lines) == 1
    assert "region_2 has shrunk" in lines[0]


def test_a_collapsed_look_that_does_not_pay_has_one_piece_of_advice():
    collapsed, other = diagnose(useless(sides=(0.94, 0.5), at_bound=(0.9, 0.0)), RECIPE)
    assert "region_1 has grown" in collapsed
    assert other.endswith("region_1 has collapsed, see above")
