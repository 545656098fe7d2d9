"""The small decisions of training: the learning rate, and what is better."""

from itertools import pairwise

import pytest

from racnn.engine.loop import learning_rate
from racnn.engine.trainer import better
from racnn.models.racnn import make_phase

SHARES = [i / 1000 for i in range(1000)]


@pytest.mark.parametrize("warmup", [0.05, 0.3])
def test_the_learning_rate_rises_from_near_zero_to_one_and_falls_to_near_zero(warmup):
    rates = [learning_rate(done, warmup) for done in SHARES]
    peak = rates.index(max(rates))
    assert 0 < rates[0] < 0.02
    assert rates[peak] == pytest.approx(1.0, abs=1e-3)
    assert SHARES[peak] == pytest.approx(warmup, abs=2e-3)
    assert all(a < b for a, b in pairwise(rates[: peak + 1]))
    assert all(a > b for a, b in pairwise(rates[peak:]))
    assert 0 < rates[-1] < 1e-4


def test_without_warmup_the_learning_rate_starts_at_its_peak():
    assert learning_rate(0.0, 0.0) == 1.0
    assert learning_rate(0.5, 0.0) == pytest.approx(0.5)


def test_the_learning_rate_does_not_jump():
    rates = [learning_rate(done, 0.2) for done in SHARES]
    assert max(abs(a - b) for a, b in pairwise(rates)) < 0.01


@pytest.mark.parametrize(
    ("new", "old", "loose", "strict"),
    [
        ({"a": 2.0, "b": 2.0}, {"a": 1.0, "b": 1.0}, True, True),
        ({"a": 3.0, "b": 0.9}, {"a": 1.0, "b": 1.0}, True, False),  # the mean rose, one fell
        ({"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, True, True),  # one rose, one stayed
        ({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, False, False),  # equal is not better
        ({"a": 1.5, "b": 0.4}, {"a": 1.0, "b": 1.0}, False, False),
        ({"a": float("nan")}, {"a": 1.0}, False, False),
    ],
)
def test_better_is_a_higher_mean_and_for_ranking_no_item_that_falls(new, old, loose, strict):
    assert better(new, old, none_may_fall=False) is loose
    assert better(new, old, none_may_fall=True) is strict


LOG_PROB = {"scale_1": -1.0, "scale_2": -2.0, "scale_3": -3.0, "mean": -1.5, "fused": -0.5}


@pytest.mark.parametrize(
    ("kind", "scales", "items"),
    [
        ("classification", (2,), {"scale_2": -2.0}),
        ("classification", (1, 3), {"scale_1": -1.0, "scale_3": -3.0}),
        ("ranking", (1,), {"scale_2": -2.0, "scale_3": -3.0}),  # all views that region 1 moves
        ("ranking", (2,), {"scale_3": -3.0}),
        ("ranking", (1, 2), {"scale_2": -2.0, "scale_3": -3.0}),
        ("localise", (1,), {"scale_2": -2.0, "scale_3": -3.0}),
        ("fusion", (), {"fused": -0.5}),
        ("apn_init", (1,), {"loss": -0.25}),  # smaller is better
    ],
)
def test_a_phase_is_judged_by_what_it_trains(kind, scales, items):
    phase = make_phase(kind=kind, scales=scales, epochs=1, lr=0.1)
    assert phase.scores({"log_prob": LOG_PROB}, 0.25 if kind == "apn_init" else None) == items
