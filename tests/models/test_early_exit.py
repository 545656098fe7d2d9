"""A photo that stops early costs less and is answered as the full table of answers says."""

import json

import pytest
import torch

from racnn.errors import ConfigError
from racnn.evaluation.report import Predictions
from racnn.models import RACNN
from racnn.models.early_exit import (
    NEVER,
    EarlyExit,
    answers_by_depth,
    calibrate,
    calibrate_by_belief,
    early_exit_file,
    format_early_exit,
    load_early_exit,
    look_until_confident,
    outcome,
    scale_costs,
)

COSTS = (0.5, 0.3, 0.2)
CLASSES = 6


def predictions(num=200, seed=0, fused=True):
    """Scales that are surer the finer they are; a third of the photos is hard."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (num,), generator=generator)
    truth = torch.nn.functional.one_hot(labels, CLASSES).float()
    hard = (torch.rand(num, 1, generator=generator) < 0.33).float()
    logits = [
        (1 - 0.8 * hard) * gain * truth + torch.randn(num, CLASSES, generator=generator)
        for gain in (4.0, 5.0, 6.0)
    ]
    joined = torch.stack(logits).sum(dim=0) if fused else None
    empty = torch.zeros(num, 0)
    return Predictions(logits, joined, labels, [], [], empty, empty, [])


ANSWERS = [
    torch.tensor(rows).log()
    for rows in (
        [[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]],
        [[0.2, 0.8], [0.2, 0.8], [0.55, 0.45]],
        [[0.4, 0.6], [0.7, 0.3], [0.8, 0.2]],
    )
]


class TestOutcome:
    @pytest.mark.parametrize(
        ("threshold", "top1", "lost", "cost", "stopped"),
        [
            (0.75, 1.0, 0.0, (3 * 0.5 + 2 * 0.3 + 0.2) / 3, (1 / 3, 1 / 3, 1 / 3)),
            (0.65, 2 / 3, 1 / 3, (3 * 0.5 + 0.3) / 3, (2 / 3, 1 / 3, 0.0)),  # the third photo stops wrong
            (NEVER, 1 / 3, 0.0, 1.0, (0.0, 0.0, 1.0)),
            (0.0, 1 / 3, 1 / 3, 0.5, (1.0, 0.0, 0.0)),  # the first is won, the third lost
        ],
    )
    def test_counts_by_hand(self, threshold, top1, lost, cost, stopped):
        found = outcome(ANSWERS, torch.tensor([0, 1, 0]), threshold, COSTS)
        assert found.top1 == pytest.approx(top1)
        assert found.lost == pytest.approx(lost)
        assert found.cost == pytest.approx(cost)
        assert found.stopped == pytest.approx(stopped)


def parts_of(known):
    """Return logits, fused logits and labels of predictions."""
    return known.logits, known.fused, known.labels


class TestCalibrate:
    def test_nothing_is_lost_on_the_photos_it_is_chosen_on_and_cost_is_saved(self):
        known = predictions()
        early, curve = calibrate(*parts_of(known), COSTS, network="n")
        answers = answers_by_depth(known.logits, known.fused, early.pools)
        never, chosen = (outcome(answers, known.labels, t, COSTS) for t in (NEVER, early.threshold))
        assert chosen.lost == 0.0
        assert chosen.cost < 0.9 * never.cost
        assert never.cost == pytest.approx(1.0)
        assert [each.cost for each in curve] == sorted((each.cost for each in curve), reverse=True)
        assert curve[0] == never
        assert curve[-1].stopped[0] == 1.0

    def test_tolerance_buys_cost_and_is_kept(self):
        known = predictions()
        strict, _ = calibrate(*parts_of(known), COSTS, network="n")
        loose, _ = calibrate(*parts_of(known), COSTS, network="n", tolerance=0.05)
        answers = answers_by_depth(known.logits, known.fused, loose.pools)
        assert loose.threshold < strict.threshold
        assert outcome(answers, known.labels, loose.threshold, COSTS).lost <= 0.05

    @pytest.mark.parametrize(("labels", "stop"), [([1, 0, 0], False), ([0, 1, 0], True)])
    def test_a_photo_won_does_not_make_up_for_one_lost(self, labels, stop):
        """Going down, the first photo to stop is lost and the second won, or the other way round: nothing is lost."""
        first = torch.tensor([[3.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
        last = torch.tensor([[0.0, 9.0], [0.0, 9.0], [9.0, 0.0]])
        empty = torch.zeros(3, 0)
        known = Predictions([first, last], last, torch.tensor(labels), [], [], empty, empty, [])
        early, _ = calibrate(*parts_of(known), (0.5, 0.5), network="n")
        answers = answers_by_depth(known.logits, known.fused, early.pools)
        chosen = outcome(answers, known.labels, early.threshold, (0.5, 0.5))
        assert chosen.lost == 0.0
        assert chosen.stopped == pytest.approx((1 / 3, 2 / 3) if stop else (0.0, 1.0))

    def test_pools_hold_a_weight_for_each_scale_so_far(self):
        early, _ = calibrate(*parts_of(predictions()), COSTS, network="n")
        assert [len(weights) for weights in early.pools] == [1, 2]

    def test_answers_are_probabilities_and_the_last_is_the_full_one(self):
        for fused in (True, False):
            known = predictions(fused=fused)
            answers = answers_by_depth(known.logits, known.fused, ((1.0,), (0.5, 0.5)))
            for answer in answers:
                torch.testing.assert_close(answer.exp().sum(dim=1), torch.ones(len(known.labels)))
            mean = torch.stack([x.softmax(dim=1) for x in known.logits]).mean(dim=0)
            torch.testing.assert_close(answers[-1].exp(), known.fused.softmax(dim=1) if fused else mean)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = RACNN(num_classes=CLASSES, backbone="tiny", view_sizes=(32, 24, 16)).eval()
    for apn in model.apns:
        torch.nn.init.normal_(apn.out.weight, std=0.5)
    for classifier in model.classifiers:
        torch.nn.init.normal_(classifier.weight, std=1.0)
    return model


class TestLookUntilSure:
    images = torch.randint(0, 256, (12, 3, 40, 48), generator=torch.Generator().manual_seed(2))

    @pytest.mark.parametrize("sure_at_once", [0, 4, 9, 12])
    @pytest.mark.parametrize("fused", [True, False])
    @torch.no_grad()
    def test_is_what_the_table_of_all_answers_says(self, sure_at_once, fused, model):
        images = self.images.to(torch.uint8)
        output = model(images)
        true_class_prob = output.logits[0].softmax(dim=1).amax(dim=1).sort(descending=True).values
        threshold = torch.cat([torch.ones(1), true_class_prob, torch.zeros(1)])[
            sure_at_once : sure_at_once + 2
        ].mean()
        early = EarlyExit("n", float(threshold), ((1.0,), (0.5, 0.4)), COSTS)
        answers = answers_by_depth(output.logits, output.fused if fused else None, early.pools)
        expected = {}
        for i in range(len(images)):
            depth = next(d for d in range(3) if d == 2 or answers[d][i].exp().max() >= threshold)
            expected[i] = (
                depth + 1,
                answers[depth][i],
                [region[i] for region in output.regions[: depth + 1]],
            )
        seen = set()
        for index, answer, regions in look_until_confident(model, images, early, scales=3, fused=fused):
            for k, i in enumerate(index.tolist()):
                depth, wanted, where = expected[i]
                assert len(regions) == depth
                torch.testing.assert_close(answer[k], wanted, atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(
                    torch.stack([p[k] for p in regions]), torch.stack(where), atol=3e-5, rtol=0
                )
                seen.add(i)
        assert seen == set(range(len(images)))
        assert sum(depth == 1 for depth, *_ in expected.values()) == sure_at_once

    @torch.no_grad()
    def test_without_a_choice_all_scales_look_at_every_photo(self, model):
        ((index, answer, places),) = look_until_confident(
            model, self.images.to(torch.uint8), None, scales=2, fused=False
        )
        assert index.tolist() == list(range(12))
        assert len(places) == 2
        output = model(self.images.to(torch.uint8), num_scales=2)
        mean = torch.stack([x.softmax(dim=1) for x in output.logits]).mean(dim=0)
        torch.testing.assert_close(answer.exp(), mean)


class TestCosts:
    def test_equal_views_cost_the_same_and_a_larger_one_by_its_area(self):
        model = RACNN(num_classes=4, backbone="tiny", view_sizes=(64, 32, 32))
        first, second, third = scale_costs(model, source_size=64, scales=3)
        assert first + second + third == pytest.approx(1.0)
        assert first / third == pytest.approx(4.0, rel=0.1)
        assert second / third == pytest.approx(1.0, rel=0.1)

    def test_counts_only_the_scales_asked_for(self):
        model = RACNN(num_classes=4, backbone="tiny", view_sizes=(32, 32, 32))
        assert len(scale_costs(model, source_size=32, scales=2)) == 2


class TestFile:
    early = EarlyExit("abc", 0.9, ((1.0,),), (0.5, 0.5))

    def write(self, tmp_path, **changes):
        from dataclasses import asdict

        checkpoint = tmp_path / "best.pt"
        early_exit_file(checkpoint).write_text(json.dumps(asdict(self.early) | changes))
        return checkpoint

    def test_is_read_again(self, tmp_path):
        assert load_early_exit(self.write(tmp_path), "abc") == self.early

    @pytest.mark.parametrize(
        ("changes", "network", "told"),
        [
            ({}, "other", "made for other weights"),
            ({"threshold": "much"}, "abc", "damaged"),
            ({"pools": [1]}, "abc", "damaged"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, changes, network, told, tmp_path):
        with pytest.raises(ConfigError, match=told) as caught:
            load_early_exit(self.write(tmp_path, **changes), network)
        assert "--early-exit" in str(caught.value)

    def test_a_missing_one_says_how_to_make_it(self, tmp_path):
        with pytest.raises(ConfigError, match=r"racnn evaluate .*best\.pt --early-exit"):
            load_early_exit(tmp_path / "best.pt", "abc")


def test_text_names_threshold_accuracy_cost_and_stops():
    known = predictions()
    early, curve = calibrate(*parts_of(known), COSTS, network="n")
    chosen = outcome(
        answers_by_depth(known.logits, known.fused, early.pools), known.labels, early.threshold, COSTS
    )
    report = {
        "split": "test",
        "top1": {"mean": 0.5, "fused": 0.625},
        "early_exit": {"val_curve": [vars(each) for each in curve], **vars(chosen)},
    }
    lines = format_early_exit(report).splitlines()
    assert "62.50" in format_early_exit(report)
    assert lines[-1].split()[:2] == [f"{early.threshold:.3f}", f"{100 * chosen.top1:.2f}"]
    assert lines[2].split()[0] == "none"


class TestByBelief:
    def known(self, seed=0, num=400):
        """Return two looks that know the class in part, and all of them together, which knows it better."""
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 4, (num,), generator=generator)
        truth = torch.nn.functional.one_hot(labels, 4).float()
        looks = [strength * truth + torch.randn(num, 4, generator=generator) for strength in (2.0, 2.5, 2.5)]
        return looks, torch.stack(looks).sum(dim=0), labels

    def test_thresholds_cost_less_the_more_may_be_lost(self):
        looks, fused, labels = self.known()
        chosen = [
            calibrate_by_belief(looks, fused, labels, (0.4, 0.3, 0.3), network="n", tolerance=tolerance)
            for tolerance in (0.0, 0.003, 0.03, 1.0)
        ]
        made = [
            outcome(
                answers_by_depth(looks, fused, each.pools), labels, each.threshold, each.costs, each.later
            )
            for each in chosen
        ]
        costs = [each.cost for each in made]
        assert costs == sorted(costs, reverse=True)
        assert costs[0] > 0.6 > costs[2]
        assert costs[-1] < 0.45
        assert abs(made[-2].top1 - (fused.argmax(dim=1) == labels).float().mean()) < 0.05

    def test_the_two_thresholds_are_those_that_stop(self):
        early = EarlyExit("n", 0.9, ((1.0,), (0.5, 0.5)), (0.4, 0.3, 0.3), later=0.5)
        assert [early.at(depth) for depth in (1, 2, 3)] == [0.9, 0.5, 0.5]
        assert EarlyExit("n", 0.9, (), ()).at(2) == 0.9
        confident = torch.tensor([[0.7, 0.3]]).log()
        answers = [confident, confident, confident.flip(1)]
        labels = torch.tensor([0])
        assert outcome(answers, labels, 0.9, (0.4, 0.3, 0.3), later=0.5).stopped == (0.0, 1.0, 0.0)
        assert outcome(answers, labels, 0.9, (0.4, 0.3, 0.3)).stopped == (0.0, 0.0, 1.0)
