"""Losses give the numbers worked out by hand and teach nobody but whom they name."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from racnn.models.racnn import losses

LABELS = torch.tensor([2, 0, 1])


def _logits(seed: int, *, classes: int = 4) -> Tensor:
    return torch.randn(3, classes, generator=torch.Generator().manual_seed(seed)) * 2


def _of_probability(*probability: float) -> Tensor:
    """Return two-class logits that give class 0 these probabilities."""
    return torch.tensor([[math.log(p / (1 - p)), 0.0] for p in probability])


class TestClassification:
    def test_loss_is_the_cross_entropy_of_each_scale_and_their_sum(self) -> None:
        logits = {scale: _logits(scale) for scale in (1, 2, 3)}
        terms = losses.classification_losses(logits, LABELS, [1, 3])
        assert terms.keys() == {"classification_1", "classification_3", "loss"}
        torch.testing.assert_close(terms["classification_1"], F.cross_entropy(logits[1], LABELS))
        torch.testing.assert_close(terms["classification_3"], F.cross_entropy(logits[3], LABELS))
        torch.testing.assert_close(terms["loss"], terms["classification_1"] + terms["classification_3"])

    def test_loss_of_equal_logits_is_log_of_the_classes(self) -> None:
        terms = losses.classification_losses({1: torch.full((3, 7), 5.0)}, LABELS, [1])
        assert float(terms["loss"]) == pytest.approx(math.log(7))

    def test_label_smoothing_spreads_the_target_over_all_classes(self) -> None:
        logits = _logits(0)
        terms = losses.classification_losses({1: logits}, LABELS, [1], label_smoothing=0.2)
        target = 0.8 * F.one_hot(LABELS, 4) + 0.2 / 4
        expected = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
        torch.testing.assert_close(terms["loss"], expected)

    def test_class_weights_weigh_the_mean(self) -> None:
        logits, weights = _logits(0), torch.tensor([1.0, 3.0, 0.5, 2.0])
        terms = losses.classification_losses({1: logits}, LABELS, [1], class_weights=weights)
        each = F.cross_entropy(logits, LABELS, reduction="none") * weights[LABELS]
        torch.testing.assert_close(terms["loss"], each.mean())

    def test_gradient_goes_to_the_trained_scales_alone(self) -> None:
        logits = {scale: _logits(scale).requires_grad_() for scale in (1, 2, 3)}
        losses.classification_losses(logits, LABELS, [2])["loss"].backward()
        assert [scale for scale in logits if logits[scale].grad is not None] == [2]

    def test_loss_of_half_precision_logits_is_float32(self) -> None:
        logits = _logits(0).bfloat16()
        terms = losses.classification_losses({1: logits}, LABELS, [1])
        torch.testing.assert_close(terms["loss"], F.cross_entropy(logits.float(), LABELS))


class TestRanking:
    labels = torch.tensor([0, 0])

    def test_loss_by_hand(self) -> None:
        logits = [_of_probability(0.6, 0.3), _of_probability(0.5, 0.9), _of_probability(0.52, 0.7)]
        terms = losses.ranking_losses(logits, self.labels, [1, 2], margin=0.05)
        assert terms.keys() == {"ranking_1", "ranking_2", "loss"}
        assert float(terms["ranking_1"]) == pytest.approx((0.15 + 0.0) / 2, abs=1e-6)
        assert float(terms["ranking_2"]) == pytest.approx((0.03 + 0.25) / 2, abs=1e-6)
        assert float(terms["loss"]) == pytest.approx(0.075 + 0.14, abs=1e-6)

    def test_default_margin_is_the_papers(self) -> None:
        logits = [_of_probability(0.5, 0.5), _of_probability(0.5, 0.5)]
        assert float(losses.ranking_losses(logits, self.labels, [1])["loss"]) == pytest.approx(0.05)

    def test_loss_is_zero_once_the_finer_scale_is_surer_by_the_margin(self) -> None:
        logits = [_of_probability(0.4, 0.2), _of_probability(0.4501, 0.9).requires_grad_()]
        terms = losses.ranking_losses(logits, self.labels, [1], margin=0.05)
        terms["loss"].backward()
        assert float(terms["loss"].detach()) == 0.0
        assert logits[1].grad is not None
        assert logits[1].grad.abs().max() == 0

    def test_only_named_pairs_count(self) -> None:
        logits = [_of_probability(0.9, 0.9), _of_probability(0.1, 0.1), _of_probability(0.6, 0.6)]
        terms = losses.ranking_losses(logits, self.labels, [2], margin=0.05)
        assert terms.keys() == {"ranking_2", "loss"}
        assert float(terms["loss"]) == 0.0

    def test_gradient_makes_the_finer_scale_surer_and_leaves_the_coarser(self) -> None:
        coarse, fine = (_logits(s).requires_grad_() for s in range(2))
        before = losses.true_class_prob(fine, LABELS).detach()
        losses.ranking_losses([coarse, fine], LABELS, [1], margin=2.0)["loss"].backward()
        assert coarse.grad is None
        assert fine.grad is not None
        after = losses.true_class_prob(fine.detach() - 0.1 * fine.grad, LABELS)
        assert (after > before).all()

    def test_middle_scale_is_a_reference_for_the_pair_after_it(self) -> None:
        logits = [_logits(s).requires_grad_() for s in range(3)]
        losses.ranking_losses(logits, LABELS, [2], margin=2.0)["loss"].backward()
        assert logits[0].grad is None
        assert logits[1].grad is None
        assert logits[2].grad is not None

    def test_loss_does_not_depend_on_a_constant_added_to_the_logits(self) -> None:
        logits = [_logits(0), _logits(1)]
        shifted = [logits[0] + 40.0, logits[1] - 40.0]  # raw scores would differ by 80
        ours, theirs = (losses.ranking_losses(x, LABELS, [1], margin=1.0)["loss"] for x in (logits, shifted))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)

    def test_sureness_is_the_softmax_of_the_label(self) -> None:
        logits = _logits(0)
        expected = [
            math.exp(row[k]) / sum(map(math.exp, row)) for row, k in zip(logits.tolist(), LABELS, strict=True)
        ]
        assert losses.true_class_prob(logits, LABELS).tolist() == pytest.approx(expected, rel=1e-5)


class TestResponseMap:
    features = torch.rand(3, 5, 4, 6, generator=torch.Generator().manual_seed(0))

    def test_sum_of_the_channels(self) -> None:
        torch.testing.assert_close(losses.response_map(self.features), self.features.sum(dim=1))

    def test_class_activation_is_the_positive_part_against_the_mean_class(self) -> None:
        weight = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
        response = losses.response_map(self.features, weight=weight, labels=LABELS)
        assert response.shape == (3, 4, 6)
        for one, features, label in zip(response, self.features, LABELS.tolist(), strict=True):
            activation = sum((weight[label, c] - weight[:, c].mean()) * features[c] for c in range(5))
            torch.testing.assert_close(one, activation.clamp(min=0))
        assert response.max() > 0
        assert response.min() == 0

    def test_class_activation_does_not_see_what_all_classes_share(self) -> None:
        weight = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
        ours = losses.response_map(self.features, weight=weight, labels=LABELS)
        shared = losses.response_map(self.features, weight=weight + torch.randn(5), labels=LABELS)
        torch.testing.assert_close(ours, shared, atol=1e-5, rtol=1e-4)

    def test_map_is_detached_and_float32(self) -> None:
        features = self.features.bfloat16().requires_grad_()
        weight = torch.randn(4, 5, requires_grad=True)
        for response in (
            losses.response_map(features),
            losses.response_map(features, weight=weight, labels=LABELS),
        ):
            assert response.dtype == torch.float32
            assert not response.requires_grad


class TestAPNInit:
    @pytest.mark.parametrize("taught", [(0.0, -0.125, 0.5), (0.3, 0.1, 0.6)])
    def test_loss_is_zero_at_its_target_alone(self, taught: tuple[float, ...]) -> None:
        region = torch.tensor([taught])
        terms = losses.apn_init_losses(region, region.clone(), 2, bounds=(0.2, 0.9))
        assert terms.keys() == {"apn_init_2", "loss"}
        assert float(terms["loss"]) == pytest.approx(0.0, abs=1e-12)
        for i in range(3):
            away = region.clone()
            away[0, i] += 0.03
            assert losses.apn_init_losses(away, region, 2, bounds=(0.2, 0.9))["loss"] > 1e-4

    @pytest.mark.parametrize(("bounds", "side"), [((0.6, 0.9), 0.6), ((0.2, 0.4), 0.4)])
    def test_target_is_clamped_to_what_the_apn_can_propose(
        self, bounds: tuple[float, float], side: float
    ) -> None:
        taught, reachable = torch.tensor([[0.0, -0.125, 0.5]]), torch.tensor([[0.0, -0.125, side]])
        loss = losses.apn_init_losses(reachable, taught, 1, bounds=bounds)["loss"]
        assert float(loss) == pytest.approx(0.0, abs=1e-12)

    def test_loss_is_smooth_l1_and_its_gradient_leads_to_the_target(self) -> None:
        taught = torch.tensor([[0.0, -0.125, 0.5]])
        region = torch.tensor([[0.05, 0.275, 0.5]], requires_grad=True)  # off by 0.05, 0.4, 0
        loss = losses.apn_init_losses(region, taught, 1, bounds=(0.2, 0.9))["loss"]
        assert float(loss.detach()) == pytest.approx((0.5 * 0.05**2 / 0.1 + (0.4 - 0.05)) / 3, rel=1e-5)
        loss.backward()
        assert region.grad is not None
        torch.testing.assert_close(region.grad, torch.tensor([[0.5, 1.0, 0.0]]) / 3, atol=1e-6, rtol=1e-5)


class TestFusion:
    def test_loss_is_the_cross_entropy_of_the_fused_logits(self) -> None:
        fused = _logits(0).bfloat16()
        terms = losses.fusion_losses(fused, LABELS)
        assert terms.keys() == {"fusion", "loss"}
        torch.testing.assert_close(terms["loss"], F.cross_entropy(fused.float(), LABELS))
        assert torch.equal(terms["fusion"], terms["loss"])

    def test_class_weights_weigh_the_mean(self) -> None:
        weights = torch.tensor([1.0, 3.0, 0.5, 2.0])
        loss = losses.fusion_losses(_logits(0), LABELS, class_weights=weights)["loss"]
        each = F.cross_entropy(_logits(0), LABELS, reduction="none") * weights[LABELS]
        torch.testing.assert_close(loss, each.mean())

    def test_loss_of_a_batch_is_the_mean_of_those_of_its_photos(self) -> None:
        weights = torch.tensor([1.0, 3.0, 0.5, 2.0])
        whole = losses.fusion_losses(_logits(0), LABELS, class_weights=weights)["loss"]
        single = [
            losses.fusion_losses(_logits(0)[i : i + 1], LABELS[i : i + 1], class_weights=weights)["loss"]
            for i in range(len(LABELS))
        ]
        torch.testing.assert_close(torch.stack(single).mean(), whole)
