"""What photos have in common is found whatever its sign, length and place, and is where the classifiers see the class."""

from functools import reduce

import pytest
import torch
from torch import Tensor

from racnn.ops.ddt import CommonPart, DescriptorSums, common_part, descriptor_sums, evident_part

CHANNELS = 7


def photos(num: int = 12) -> tuple[Tensor, Tensor]:
    """Return features of noise with an object in each, [num, 7, 5, 6], and where it is, [num, 5, 6]."""
    generator = torch.Generator().manual_seed(0)
    features = 0.3 * torch.rand(num, CHANNELS, 5, 6, generator=generator)
    place = torch.zeros(num, 5, 6)
    for photo in range(num):
        row, column = photo % 3, photo % 4
        place[photo, row : row + 3, column : column + 2] = 1.0
    ground, thing = torch.eye(CHANNELS)[0], torch.eye(CHANNELS)[3]
    features += torch.where(place[:, None] > 0, thing[None, :, None, None], ground[None, :, None, None])
    return features, place


def found(features: Tensor, activation: Tensor) -> CommonPart:
    return common_part(descriptor_sums(features, activation))


def test_the_object_is_found_where_it_is():
    features, place = photos()
    response = found(features, place).response(features)
    assert response.shape == place.shape
    assert torch.equal(response > 0, place > 0)


def test_the_sign_is_that_of_the_class_not_of_the_larger_or_the_stronger_part():
    features, place = photos()
    stronger = torch.where(place[:, None] > 0, 1.0, 5.0) * features
    for strength in (features, stronger):
        assert torch.equal(found(strength, place).response(strength) > 0, place > 0)
        assert torch.equal(found(strength, 1.0 - place).response(strength) > 0, place == 0)


def test_the_direction_is_the_first_singular_vector_of_all_unit_descriptors():
    features, place = photos()
    cells = features.double().permute(0, 2, 3, 1).reshape(-1, CHANNELS)
    cells = cells / cells.norm(dim=1, keepdim=True)
    centred = cells - cells.mean(dim=0)
    expected = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    part = found(features, place)
    torch.testing.assert_close(part.mean, cells.mean(dim=0), rtol=1e-5, atol=1e-6)
    assert abs(float(part.direction @ expected)) == pytest.approx(1.0, abs=1e-6)
    along = (centred @ part.direction).clamp(min=0).view_as(place)
    torch.testing.assert_close(part.response(features), along.float(), rtol=1e-4, atol=1e-5)


def test_batches_add_up_to_the_whole():
    features, place = photos()
    whole = descriptor_sums(features, place)
    parts = [descriptor_sums(*part) for part in zip(features.split(5), place.split(5), strict=True)]
    for one, other in zip(whole, reduce(DescriptorSums.plus, parts), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert int(whole.cells) == place.numel()


@pytest.mark.parametrize("size", [(3, 3), (10, 12)])
def test_an_activation_of_another_size_gives_the_same_sign(size: tuple[int, int]):
    features, place = photos()
    resized = torch.nn.functional.adaptive_avg_pool2d(place, size)
    torch.testing.assert_close(found(features, resized).direction, found(features, place).direction)


def test_half_precision_and_an_empty_cell_are_fine():
    features, place = photos()
    features[0, :, 0, 5] = 0.0
    part = found(features.bfloat16(), place)
    response = part.response(features.bfloat16())
    assert response.dtype == torch.float32
    assert torch.isfinite(response).all()
    assert torch.equal(response[1:] > 0, place[1:] > 0)


def scenes(num: int = 12) -> tuple[Tensor, Tensor]:
    """Return features [num, 7, 9, 9] of two grounds that take turns in halves, with an object of one to two cells, and where it is."""
    generator = torch.Generator().manual_seed(1)
    features = 0.2 * torch.rand(num, CHANNELS, 9, 9, generator=generator)
    place = torch.zeros(num, 9, 9)
    for photo in range(num):
        features[photo, 0, :, :5] += 1.0
        features[photo, 1, :, 5:] += 1.0
        row, column = 1 + 5 * photo % 8, 3 * photo % 7
        place[photo, row, column : column + 2] = 1.0
    features[:, 3] += place
    return features, place


class TestEvidentPart:
    def test_a_small_object_is_found_where_what_is_common_is_its_surroundings(self):
        features, place = scenes()
        within = place.bool()
        common = found(features, place).response(features)
        evident = evident_part(features, place).response(features)
        assert common[within].mean() < common[~within].mean()
        assert evident[within].min() > 2 * evident[~within].max()

    def test_evidence_need_not_be_all_of_the_object_nor_only_there(self):
        features, place = scenes()
        left = place.clone()
        left[:, :, 1:] *= 1.0 - place[:, :, :-1]  # of two cells the left one
        astray = left + 0.1 * torch.rand(place.shape, generator=torch.Generator().manual_seed(2))
        evident = evident_part(features, astray).response(features)
        assert evident[place.bool()].min() > evident[~place.bool()].max()

    def test_without_any_evidence_it_shows_nothing(self):
        features, place = scenes()
        part = evident_part(features, torch.zeros_like(place))
        assert part.direction.isfinite().all()
        assert part.response(features).max() == 0.0
