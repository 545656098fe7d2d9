"""The loops that the zoom is compared with do what they are said to do, and agree with it where they can."""

import pytest
import torch
import torch.nn.functional as F

from bench import zoom as bench
from bench.loops import PublishedZoom, published_loop, sliced_loop
from racnn.ops.crop import zoom
from racnn.ops.mask import box_mask, frame_steepness
from racnn.ops.regions import from_boxes_xyxy

SIDE = 40
BOXES = torch.tensor([[3, 5, 28, 30], [0, 0, 40, 40], [14, 2, 24, 12], [7, 9, 38, 40]])


@pytest.fixture
def images():
    return torch.rand(len(BOXES), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def regions():
    return from_boxes_xyxy(BOXES.float(), (SIDE, SIDE))


def inside(box, view):
    """Return the samples of a view whose kernels stay within the box, but for the edges of the image."""
    x0, y0, x1, y1 = box.tolist()
    per_sample = (x1 - x0) / view
    reach = max(per_sample, 1.0)
    centres = (torch.arange(view) + 0.5) * per_sample
    free = (centres >= reach) & (centres <= x1 - x0 - reach)
    before, after = centres < (x1 - x0) / 2, centres > (x1 - x0) / 2
    columns = free | (before & (x0 == 0)) | (after & (x1 == SIDE))
    rows = free | (before & (y0 == 0)) | (after & (y1 == SIDE))
    return rows[:, None] & columns


class TestSlicedLoop:
    @pytest.mark.parametrize("steepness", [None, 30.0, frame_steepness(10.0, SIDE)])
    @pytest.mark.parametrize("view", [8, 20, 64])
    def test_zoom_of_whole_pixels_is_a_resized_slice(self, images, regions, view, steepness):
        ours = zoom(images, regions, (view, view), steepness=steepness)
        theirs = sliced_loop(images, regions, side=view, steepness=steepness)
        for one, other, box in zip(ours, theirs, BOXES, strict=True):
            where = inside(box, view)
            assert where.sum() > 0.3 * view**2
            torch.testing.assert_close(one[:, where], other[:, where], rtol=1e-4, atol=1e-4)

    def test_zoom_of_a_box_of_the_view_s_size_is_the_slice_to_its_edges(self, images, regions):
        view = 10
        ours = zoom(images[2:3], regions[2:3], (view, view), steepness=30.0)
        theirs = sliced_loop(images[2:3], regions[2:3], side=view, steepness=30.0)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

    def test_gradients_in_the_image_agree_too(self, images, regions):
        where = torch.stack([inside(box, 20) for box in BOXES])[:, None]
        found = []
        for cut in (
            lambda i: zoom(i, regions, (20, 20), steepness=30.0),
            lambda i: sliced_loop(i, regions, side=20, steepness=30.0),
        ):
            leaf = images.clone().requires_grad_()
            (cut(leaf) * where).square().sum().backward()
            found.append(leaf.grad)
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


class TestPublishedLoop:
    def test_forward_is_a_masked_photo_sliced_and_resized(self, images, regions):
        views = published_loop(images, regions, side=16, k=10.0)
        masked = images * box_mask(regions, (SIDE, SIDE), frame_steepness(10.0, SIDE))
        for view, photo, (x0, y0, x1, y1) in zip(views, masked, BOXES.tolist(), strict=True):
            crop = photo[None, :, y0:y1, x0:x1]
            expected = F.interpolate(crop, (16, 16), mode="bilinear", align_corners=True)[0]
            torch.testing.assert_close(view, expected)

    def test_its_view_is_roughly_ours(self, regions):
        ramp = torch.linspace(0, 1, SIDE)
        images = torch.stack([ramp.expand(SIDE, SIDE), ramp[:, None].expand(SIDE, SIDE)]).repeat(4, 1, 1, 1)
        theirs = published_loop(images, regions, side=16, k=10.0)
        ours = zoom(images, regions, (16, 16), steepness=frame_steepness(10.0, SIDE))
        middle = (..., slice(2, -2), slice(2, -2))
        torch.testing.assert_close(theirs[middle], ours[middle], rtol=0, atol=0.05)

    def test_the_backward_pass_by_hand_is_the_derivative_with_the_slice_held(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(2, 2, 9, 9, generator=generator, dtype=torch.float64).requires_grad_()
        squares = torch.tensor([[4.3, 5.1, 2.9], [3.2, 4.0, 2.6]], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda i, s: PublishedZoom.apply(i, s, 5, 1.5), (images, squares))

    def test_gradients_are_finite_at_the_paper_s_steepness(self):
        images, regions = torch.rand(1, 3, 448, 448), torch.tensor([[-0.2, 0.3, 0.5]])
        images.requires_grad_(), regions.requires_grad_()
        published_loop(images, regions, side=16, k=10.0).square().sum().backward()
        for leaf in (images, regions):
            assert leaf.grad.shape == leaf.shape
            assert leaf.grad.isfinite().all()
            assert leaf.grad.abs().sum() > 0


class TestZoom:
    def test_regions_lie_on_whole_pixels_within_bounds(self):
        regions = bench.whole_pixel_regions(500, 40, (0.2, 0.95), torch.Generator().manual_seed(0))
        sides = regions[:, 2] * 40
        torch.testing.assert_close(sides, sides.round())
        edges = (regions[:, :2] - regions[:, 2:] + 1.0) * 20
        torch.testing.assert_close(edges, edges.round(), rtol=0, atol=1e-4)
        assert (sides.round().min(), sides.round().max()) == (8, 38)
        assert (regions[:, :2].abs() + regions[:, 2:]).max() <= 1.0 + 1e-6

    @pytest.mark.parametrize("to_images", [True, False])
    def test_a_call_leaves_the_gradients_of_one_pass(self, images, regions, to_images):
        seen = []

        def cut(photos, places):
            seen[:] = [photos, places]
            return photos * places.sum()

        call = bench.there_and_back(cut, images, regions, torch.ones_like(images), to_images=to_images)
        for _ in range(2):
            call()
            if to_images:
                torch.testing.assert_close(seen[0].grad, torch.full_like(images, regions.sum().item()))
            else:
                assert seen[0].grad is None
            assert seen[1].grad is not None
