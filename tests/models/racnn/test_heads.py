"""Heads in closed form: against textbook formulas, chosen by folds, and where there is little to choose by."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from racnn.models.racnn.heads import (
    NUM_FOLDS,
    UNSEEN,
    _Sums,
    best_slope,
    deal_folds,
    discriminant,
    fit_head,
)


def blobs(num_classes=4, each=12, width=6, spread=0.6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, width, generator=generator)
    labels = torch.arange(num_classes).repeat_interleave(each)
    return centres[labels] + spread * torch.randn(len(labels), width, generator=generator), labels


def test_the_discriminant_is_the_textbook_one():
    x, labels = blobs()
    weight, bias = discriminant(_Sums.of(x, labels, 4), strength=0.5)
    rows = x.double().numpy()
    means = np.stack([rows[labels == c].mean(axis=0) for c in range(4)])
    within = sum(np.cov(rows[labels == c].T, bias=True) * 12 for c in range(4)) / 48
    inverse = np.linalg.inv(within + 0.5 * within.diagonal().mean() * np.eye(6))
    densities = np.stack(
        [-0.5 * np.einsum("nd,de,ne->n", rows - m, inverse, rows - m) for m in means], axis=1
    )
    logits = F.linear(x.double(), weight, bias)
    # densities differ from logits by what is the same for all classes of a photo
    np.testing.assert_allclose(
        (logits - logits.mean(dim=1, keepdim=True)).numpy(),
        densities - densities.mean(axis=1, keepdims=True),
        rtol=1e-8,
        atol=1e-8,
    )


def test_sums_of_parts_add_up_and_can_be_taken_away():
    x, labels = blobs()
    parts = [_Sums.of(x[i::3], labels[i::3], 4) for i in range(3)]
    whole = _Sums.total(parts)
    for name in ("counts", "first", "second"):
        torch.testing.assert_close(getattr(whole, name), getattr(_Sums.of(x, labels, 4), name))
        others = getattr(_Sums.total(parts[1:]), name)
        torch.testing.assert_close(getattr(whole.minus(parts[0]), name), others, atol=1e-9, rtol=1e-9)


def test_folds_share_out_each_class_in_blocks():
    labels = torch.tensor([0] * 10 + [1] * 7 + [2])
    folds = deal_folds(labels)
    for label in (0, 1):
        of_class = folds[labels == label]
        counts = of_class.bincount(minlength=NUM_FOLDS)
        assert counts.max() - counts.min() <= 1
        assert (of_class[1:] != of_class[:-1]).sum() == NUM_FOLDS - 1, "a burst is torn apart"
    assert torch.equal(deal_folds(labels), folds)


def test_answers_out_of_fold_have_not_seen_the_photo():
    x, labels = blobs(spread=1.5)
    head = fit_head(x, labels, 4, strengths=(1.0,))
    fold = head.folds == 2
    others = _Sums.of(x[~fold], labels[~fold], 4)
    weight, bias = discriminant(others, 1.0)
    answers = F.linear(x[fold].double(), weight, bias).float()
    slope = (head.answers[fold] / answers).mean()
    torch.testing.assert_close(head.answers[fold], slope * answers, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head.fold_weights[2], slope * weight.float(), rtol=1e-4, atol=1e-4)
    noise = torch.Generator().manual_seed(1)
    shuffled = fit_head(torch.randn(x.shape, generator=noise), labels, 4)
    assert (shuffled.answers.argmax(dim=1) == labels).float().mean() < 0.5, "noise was learnt by heart"


def test_the_temperature_is_folded_in():
    x, labels = blobs(spread=2.0)
    head = fit_head(x, labels, 4)
    slope, loss = best_slope(head.answers, labels)
    assert slope == pytest.approx(1.0, abs=0.01)
    assert loss < F.cross_entropy(3.0 * head.answers, labels)
    assert loss < F.cross_entropy(0.3 * head.answers, labels)


def test_the_strength_is_the_one_that_answers_best_out_of_fold():
    x, labels = blobs(num_classes=3, each=4, width=40, spread=4.0)
    losses = {}
    for strength in (0.001, 1.0, 300.0):
        one = fit_head(x, labels, 3, strengths=(strength,))
        losses[strength] = F.cross_entropy(one.answers, labels).item()
    assert len({round(loss, 3) for loss in losses.values()}) == 3
    assert fit_head(x, labels, 3, strengths=tuple(losses)).strength == min(losses, key=losses.get)


def test_classes_count_the_same_however_many_photos_they_have():
    x, labels = blobs(num_classes=2, each=40, spread=1.5)
    few = torch.cat([torch.arange(40), torch.arange(40, 46)])
    head = fit_head(x[few], labels[few], 2)
    middle = (x[labels == 0].mean(dim=0) + x[few][40:].mean(dim=0)) / 2
    difference = F.linear(middle[None], head.weight, head.bias)[0]
    assert (difference[0] - difference[1]).abs() < 0.2


def test_where_all_are_answered_right_the_first_error_is_no_infinite_surprise():
    x, labels = blobs(num_classes=2, each=20, spread=0.05)
    head = fit_head(x, labels, 2)
    assert (head.answers.argmax(dim=1) == labels).all()
    surest = F.linear(x, head.weight, head.bias).softmax(dim=1).amax(dim=1)
    assert 0.9 < surest.mean() < 0.9999
    slope, loss = best_slope(head.answers, labels)
    assert slope == pytest.approx(1.0, abs=0.02)
    assert loss > 0.0


def test_one_photo_a_class_is_enough():
    x = torch.eye(3)
    head = fit_head(x, torch.arange(3), 3)
    assert torch.equal(F.linear(x, head.weight, head.bias).argmax(dim=1), torch.arange(3))
    assert not head.answered.any()
    margins = F.linear(x, head.weight, head.bias).topk(2).values
    assert (margins[:, 0] - margins[:, 1]).mean() == pytest.approx(2.0, abs=1e-3)
    assert all(value.isfinite().all() for value in (head.weight, head.bias, head.fold_weights, head.answers))


def test_a_class_of_one_photo_among_others_is_not_judged_by():
    x, labels = blobs(num_classes=3, each=5)
    keep = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    head = fit_head(x[keep], labels[keep], 3)
    assert head.answered.tolist() == [True] * 10 + [False]
    assert head.answers[10, 2] < UNSEEN / 1e6 or head.answers[10, 2] == head.answers[10].min()
    assert F.linear(x[keep][10], head.weight, head.bias).argmax() == 2


def test_the_same_photos_give_the_same_bits():
    x, labels = blobs(num_classes=5, width=50)
    one, two = (fit_head(x, labels, 5) for _ in range(2))
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(one.answers, two.answers)


def test_groups_of_classes_are_answered_by_heads_that_have_seen_each_class():
    """Classes one after another, five a group: dealt by groups, a fold would hold all photos of one class."""
    torch.manual_seed(0)
    centres = torch.randn(20, 30)
    labels = torch.arange(20).repeat_interleave(15)
    groups = labels // 5 * 5
    descriptors = centres[labels] + 0.7 * torch.randn(300, 30)
    of_classes = fit_head(descriptors, labels, 20)
    by_groups = fit_head(descriptors, groups, 20)
    by_classes = fit_head(descriptors, groups, 20, folds=of_classes.folds)
    assert torch.equal(by_classes.folds, deal_folds(labels))
    new = torch.arange(20).repeat(50)
    given = centres[new] + 0.7 * torch.randn(1000, 30)
    right = (given @ by_classes.weight.T + by_classes.bias).argmax(dim=1) == new // 5 * 5
    found = [(head.answers.argmax(dim=1) == groups).float().mean() for head in (by_groups, by_classes)]
    assert abs(found[1] - right.float().mean()) < 0.05
    assert found[0] < found[1] - 0.2
