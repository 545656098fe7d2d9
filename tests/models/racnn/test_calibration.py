"""The scales are weighed by held-out photos: what explains them counts, what does not loses its say."""

import pytest
import torch
import torch.nn.functional as F

from racnn.models.calibration import pool_weights

CLASSES = 6


def answers(num, right, true_class_prob, seed):
    """Return logits that name the true class of ``i % CLASSES`` in a share ``right`` of the photos, else any class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % CLASSES
    guessed = torch.randint(CLASSES, (num,), generator=generator)
    said = torch.where(torch.rand(num, generator=generator) < right, labels, guessed)
    return true_class_prob * F.one_hot(said, CLASSES).float(), labels


def test_a_scale_that_guesses_loses_its_say():
    good, labels = answers(600, right=0.9, true_class_prob=3.0, seed=0)
    noise, _ = answers(600, right=0.0, true_class_prob=3.0, seed=1)
    first, second = pool_weights([noise, good], labels)
    assert 0 < first < 0.2
    assert second > 0.8


def test_the_pool_explains_the_labels_better_than_the_mean():
    scales = [answers(600, right, 3.0, seed) for seed, right in enumerate((0.3, 0.8, 0.9))]
    labels, logits = scales[0][1], torch.stack([scale for scale, _ in scales])
    weights = torch.tensor(pool_weights(list(logits), labels))
    pooled = F.cross_entropy(torch.einsum("s,snc->nc", weights, logits), labels)
    assert pooled < F.cross_entropy(logits.mean(dim=0), labels) - 0.1
    assert weights[0] < weights[1] < weights[2]


def test_equal_scales_count_the_same():
    logits, labels = answers(200, right=0.8, true_class_prob=2.0, seed=0)
    first, second = pool_weights([logits, logits.clone()], labels)
    assert first == pytest.approx(second)


def test_few_photos_hardly_move_the_mean():
    good, labels = answers(3, right=1.0, true_class_prob=1.0, seed=0)
    weights = pool_weights([good, good.roll(1, dims=1), good], labels)
    assert weights == pytest.approx([1 / 3] * 3, abs=0.2)
    assert weights[1] < weights[0]


def test_too_shy_answers_are_made_surer():
    shy, labels = answers(600, right=0.99, true_class_prob=1.0, seed=0)
    assert sum(pool_weights([shy, shy], labels)) > 2.0
