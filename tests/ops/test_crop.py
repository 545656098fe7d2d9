"""The zoom is resizing, slicing and grid sampling where these are defined, and differentiable in its region."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from racnn.ops.crop import zoom
from racnn.ops.mask import boxcar, pixel_centres
from racnn.ops.regions import compose, squash, whole

SIZES = [
    ((20, 33), (20, 33)),
    ((20, 33), (9, 12)),
    ((20, 33), (41, 70)),
    ((33, 20), (12, 45)),
    ((17, 40), (3, 39)),
    ((8, 8), (1, 1)),
]


def _image(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _regions(num: int, *, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    raw = torch.randn(num, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return squash(raw, 0.15, 0.95).to(dtype)


def _grid_sample(image: Tensor, region: Tensor, size: tuple[int, int]) -> Tensor:
    tx, ty, tl = region.unbind(dim=1)
    zero = torch.zeros_like(tl)
    theta = torch.stack([torch.stack([tl, zero, tx], 1), torch.stack([zero, tl, ty], 1)], 1)  # [B, 2, 3]
    grid = F.affine_grid(theta, [len(image), image.shape[1], *size], align_corners=False)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)


def _smooth(height: int, width: int) -> Tensor:
    x, y = pixel_centres(width, dtype=torch.float64), pixel_centres(height, dtype=torch.float64)[:, None]
    planes = [torch.sin(2.5 * x + 1.0 * y), torch.cos(1.5 * x - 2.0 * y), 0.5 * x - y]
    return torch.stack(planes)[None]


class TestSampling:
    @pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-7), (torch.float32, 1e-5)])
    @pytest.mark.parametrize("antialias", [True, False])
    @pytest.mark.parametrize(("source", "target"), SIZES)
    def test_zoom_of_whole_image_is_resize(
        self,
        source: tuple[int, int],
        target: tuple[int, int],
        antialias: bool,
        dtype: torch.dtype,
        close: float,
    ) -> None:
        image = _image(2, 3, *source, dtype=dtype)
        view = zoom(image, whole(2, dtype=dtype), target, antialias=antialias)
        expected = F.interpolate(image, target, mode="bilinear", align_corners=False, antialias=antialias)
        torch.testing.assert_close(view, expected, rtol=10 * close, atol=close)

    @pytest.mark.parametrize(("source", "target"), SIZES)
    def test_zoom_without_antialias_is_grid_sample(
        self, source: tuple[int, int], target: tuple[int, int]
    ) -> None:
        image, region = _image(6, 2, *source), _regions(6)
        view = zoom(image, region, target, antialias=False)
        torch.testing.assert_close(view, _grid_sample(image, region, target))

    def test_antialias_changes_nothing_where_the_region_holds_fewer_pixels_than_the_view(self) -> None:
        image, region = _image(4, 2, 20, 30), _regions(4)
        region[:, 2] = region[:, 2].clamp(max=0.5)
        region[:, :2] = region[:, :2].clamp(-0.4, 0.4)
        plain = zoom(image, region, (10, 15), antialias=False)
        torch.testing.assert_close(zoom(image, region, (10, 15)), plain)

    @pytest.mark.parametrize("antialias", [True, False])
    def test_zoom_of_a_region_on_pixel_borders_is_slicing(self, antialias: bool) -> None:
        image = _image(1, 3, 24, 36)
        # rows 3..15 of 24 and columns 4..22 of 36: half of each side
        region = torch.tensor([[(4 + 22) / 36 - 1, (3 + 15) / 24 - 1, 0.5]], dtype=torch.float64)
        view = zoom(image, region, (12, 18), antialias=antialias)
        torch.testing.assert_close(view, image[:, :, 3:15, 4:22])

    @pytest.mark.parametrize("antialias", [True, False])
    def test_constant_image_stays_constant(self, antialias: bool) -> None:
        region = torch.cat([_regions(20), torch.tensor([[0.8, -0.8, 0.2], [-0.5, 0.5, 0.5]])])
        view = zoom(torch.full((22, 1, 13, 29), 0.7).double(), region, (6, 11), antialias=antialias)
        torch.testing.assert_close(view, torch.full_like(view, 0.7))

    @pytest.mark.parametrize("steepness", [None, 30.0])
    def test_batch_is_a_loop_of_singles(self, steepness: float | None) -> None:
        image, region = _image(5, 3, 21, 34), _regions(5)
        together = zoom(image, region, (8, 13), steepness=steepness)
        alone = [zoom(image[i : i + 1], region[i : i + 1], (8, 13), steepness=steepness) for i in range(5)]
        torch.testing.assert_close(together, torch.cat(alone))

    def test_zoom_of_a_composed_region_is_a_zoom_of_a_zoom(self) -> None:
        image = _smooth(90, 120)
        outer = torch.tensor([[0.3, -0.2, 0.6]], dtype=torch.float64)
        inner = torch.tensor([[-0.25, 0.4, 0.5]], dtype=torch.float64)
        twice = zoom(zoom(image, outer, (96, 96)), inner, (20, 24))
        once = zoom(image, compose(outer, inner), (20, 24))
        torch.testing.assert_close(once, twice, atol=5e-3, rtol=0)
        assert (once - zoom(image, compose(inner, outer), (20, 24))).abs().max() > 0.05


class TestMask:
    def test_mask_multiplies_the_view_by_the_boxcar_of_both_axes(self) -> None:
        image, region = _image(3, 2, 25, 40) + 0.5, _regions(3)
        steepness = 12.0
        ratio = zoom(image, region, (7, 10), steepness=steepness) / zoom(image, region, (7, 10))

        def axis(num: int, tl: float) -> np.ndarray:
            offset = tl * ((2 * np.arange(num) + 1) / num - 1)
            return 1 / (1 + np.exp(-steepness * (offset + tl))) - 1 / (1 + np.exp(-steepness * (offset - tl)))

        for one, tl in zip(ratio.numpy(), region[:, 2].tolist(), strict=True):
            np.testing.assert_allclose(one, np.broadcast_to(np.outer(axis(7, tl), axis(10, tl)), one.shape))


class TestPrecision:
    def test_bfloat16_image_is_sampled_in_float32(self) -> None:
        image, region = _image(2, 3, 30, 50, dtype=torch.float32), _regions(2, dtype=torch.float32)
        view = zoom(image.bfloat16(), region, (12, 12))
        assert view.dtype == torch.bfloat16
        assert torch.equal(view, zoom(image.bfloat16().float(), region, (12, 12)).bfloat16())
        torch.testing.assert_close(view.float(), zoom(image, region, (12, 12)), atol=0.01, rtol=0)

    def test_zoom_under_autocast_is_the_float32_one(self) -> None:
        image, region = _image(2, 3, 30, 50, dtype=torch.float32), _regions(2, dtype=torch.float32)
        expected = zoom(image, region, (12, 12), steepness=30.0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (image[0] @ image[0].mT).dtype == torch.bfloat16  # autocast is on
            view = zoom(image, region, (12, 12), steepness=30.0)
        assert view.dtype == torch.float32
        assert torch.equal(view, expected)

    def test_float64_image_is_sampled_in_float64(self) -> None:
        image, region = _image(1, 1, 20, 30), _regions(1, dtype=torch.float32)
        view = zoom(image, region, (7, 7), antialias=False)
        torch.testing.assert_close(view, _grid_sample(image, region.double(), (7, 7)))
        assert view.dtype == torch.float64


class TestGradient:
    @pytest.mark.parametrize("steepness", [None, 6.0])
    @pytest.mark.parametrize("antialias", [True, False])
    def test_zoom_gradcheck_in_image_and_region(self, antialias: bool, steepness: float | None) -> None:
        image = _image(2, 2, 9, 14).requires_grad_()
        region = _regions(2, seed=3).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda i, r: zoom(i, r, (4, 5), antialias=antialias, steepness=steepness), (image, region)
        )


def test_held_samples_leave_the_derivative_of_the_mask_alone() -> None:
    image, region = _image(2, 3, 20, 26), _regions(2).requires_grad_()
    weight = _image(2, 3, 7, 9, seed=3)
    view = zoom(image, region, (7, 9), steepness=8.0, move_samples=False)
    (found,) = torch.autograd.grad((view * weight).sum(), region)
    torch.testing.assert_close(view, zoom(image, region, (7, 9), steepness=8.0))
    plain = zoom(image, region.detach(), (7, 9))
    x = region.detach()[:, :1] + region.detach()[:, 2:] * pixel_centres(9, dtype=torch.float64)
    y = region.detach()[:, 1:2] + region.detach()[:, 2:] * pixel_centres(7, dtype=torch.float64)

    def masked(moved: Tensor) -> Tensor:
        across = boxcar(x, moved[:, :1], moved[:, 2:], 8.0)[:, None, None, :]
        down = boxcar(y, moved[:, 1:2], moved[:, 2:], 8.0)[:, None, :, None]
        return (plain * across * down * weight).sum()

    expected = torch.autograd.functional.jacobian(masked, region.detach())
    torch.testing.assert_close(found, expected)
    (exact,) = torch.autograd.grad((zoom(image, region, (7, 9), steepness=8.0) * weight).sum(), region)
    assert not torch.allclose(exact, expected, rtol=0.1)


class TestBothWaysToSample:
    """A GPU multiplies by whole matrices, a CPU adds up the pixels that count: the same numbers and derivatives."""

    @pytest.mark.parametrize("antialias", [True, False])
    @pytest.mark.parametrize("steepness", [None, 7.0])
    @pytest.mark.parametrize("size", [(9, 5), (30, 50), (17, 23)])
    def test_they_agree(self, antialias: bool, steepness: float | None, size: tuple[int, int]) -> None:
        generator = torch.Generator().manual_seed(3)
        values = torch.rand(4, 3, 17, 23, dtype=torch.float64, generator=generator)
        places = torch.tensor(
            [[0.0, 0.0, 1.0], [0.3, -0.4, 0.5], [-0.85, 0.8, 0.15], [0.4, 0.0, 0.6]], dtype=torch.float64
        )  # the whole, where samples fall on pixels; a part; a corner; one at the edge
        upstream = torch.rand(4, 3, *size, dtype=torch.float64, generator=generator)
        found = []
        for dense in (False, True):
            image, region = values.clone().requires_grad_(), places.clone().requires_grad_()
            view = zoom(image, region, size, antialias=antialias, steepness=steepness, dense=dense)
            found.append((view, *torch.autograd.grad((view * upstream).sum(), (image, region))))
        for few, all_ in zip(*found, strict=True):
            torch.testing.assert_close(few, all_, rtol=1e-9, atol=1e-9)

    def test_no_photo_gives_no_view(self) -> None:
        assert zoom(torch.zeros(0, 3, 8, 9), torch.zeros(0, 3), (4, 5)).shape == (0, 3, 4, 5)

    def test_a_region_that_is_not_a_number_shows_in_its_own_view_alone(self) -> None:
        regions = torch.tensor([[0.0, 0.0, 0.5], [float("nan"), 0.0, float("nan")]])
        view = zoom(torch.rand(2, 3, 8, 9), regions, (4, 5))
        assert view[0].isfinite().all()
        assert view[1].isnan().any()
