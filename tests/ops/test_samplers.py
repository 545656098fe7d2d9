"""Ways to cut a view: what each is where it is defined otherwise, at the edge, and who gets a derivative."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from racnn.config import parse_config
from racnn.errors import ConfigError
from racnn.ops.crop import SAMPLERS, cut, gaussian, zoom
from racnn.ops.regions import whole

NARROW = {"sigma": 1e-3}


def image(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def regions(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def sampler(name, **options):
    return lambda *given, **more: SAMPLERS[name](*given, **options, **more)


EACH = pytest.mark.parametrize("name", SAMPLERS)
INSIDE = regions([0.2, -0.3, 0.5], [0.0, 0.0, 1.0], [-0.7, 0.8, 0.2])
OUTSIDE = regions([0.9, 0.0, 0.5], [-1.5, 1.4, 0.3], [0.0, 3.0, 0.1], [0.0, 0.0, 2.0])


@EACH
@pytest.mark.parametrize("dense", [False, True])
def test_a_constant_image_gives_a_constant_view_wherever_the_region_lies(name, dense):
    flat = torch.full((len(OUTSIDE), 2, 13, 21), 0.7, dtype=torch.float64)
    view = SAMPLERS[name](flat, OUTSIDE, (6, 9), dense=dense)
    torch.testing.assert_close(view, torch.full_like(view, 0.7))


@EACH
def test_beyond_the_edge_is_the_edge(name):
    columns = torch.linspace(0.0, 1.0, 30, dtype=torch.float64).expand(1, 1, 20, 30)
    view = SAMPLERS[name](columns, regions([2.5, 0.0, 0.4]), (5, 5))
    assert view.min() > 0.95
    assert SAMPLERS[name](columns, regions([-2.5, 0.0, 0.4]), (5, 5)).max() < 0.05


@EACH
def test_a_batch_is_a_loop(name):
    photos = image(3, 2, 17, 29)
    together = SAMPLERS[name](photos, INSIDE, (7, 8), steepness=20.0)
    alone = [SAMPLERS[name](photos[i : i + 1], INSIDE[i : i + 1], (7, 8), steepness=20.0) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


@EACH
def test_both_ways_to_sample_agree(name):
    photos, upstream = image(3, 2, 17, 29), image(3, 2, 7, 40, seed=1)
    found = []
    for dense in (False, True):
        leaf = photos.clone().requires_grad_()
        view = SAMPLERS[name](leaf, INSIDE, (7, 40), dense=dense)
        found.append((view, *torch.autograd.grad((view * upstream).sum(), leaf)))
    for few, whole_rows in zip(*found, strict=True):
        torch.testing.assert_close(few, whole_rows, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["zoom", "gaussian"])
def test_what_moves_has_an_exact_derivative(name):
    places = regions([0.23, -0.31, 0.47]).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda i, r: SAMPLERS[name](i, r, (4, 5)), (image(1, 2, 9, 14).requires_grad_(), places), eps=1e-7
    )


class TestRectangles:
    def test_equal_sides_are_a_square(self):
        squares = torch.cat([INSIDE, INSIDE[:, 2:]], dim=1)
        for name in SAMPLERS:
            torch.testing.assert_close(
                SAMPLERS[name](image(3, 2, 17, 29), squares, (7, 8)),
                SAMPLERS[name](image(3, 2, 17, 29), INSIDE, (7, 8)),
            )

    @pytest.mark.parametrize("antialias", [True, False])
    def test_half_of_one_side_is_half_the_image(self, antialias):
        photo = image(1, 3, 12, 20)
        view = zoom(photo, regions([0.5, 0.0, 0.5, 1.0]), (12, 10), antialias=antialias)
        torch.testing.assert_close(view, photo[..., 10:])

    def test_the_sides_are_across_then_down(self):
        photo = image(1, 1, 16, 24)
        view = zoom(photo, regions([0.0, 0.5, 1.0, 0.5]), (8, 24))
        torch.testing.assert_close(view, photo[:, :, 8:])

    def test_each_side_has_its_derivative(self):
        place = regions([0.1, -0.2, 0.4, 0.7]).requires_grad_()
        assert torch.autograd.gradcheck(lambda r: zoom(image(1, 2, 9, 14), r, (4, 5), steepness=6.0), place)


class TestCut:
    def test_it_is_slicing(self):
        photo = image(1, 3, 24, 36)
        place = regions([(4 + 22) / 36 - 1, (3 + 15) / 24 - 1, 0.5])  # rows 3 to 15, columns 4 to 22
        torch.testing.assert_close(cut(photo, place, (12, 18)), zoom(photo, place, (12, 18), antialias=False))
        torch.testing.assert_close(cut(photo, place, (12, 18)), photo[:, :, 3:15, 4:22])

    def test_it_takes_the_nearest_whole_pixels(self):
        photo = image(1, 1, 24, 36)
        off = regions([(4.4 + 22.3) / 36 - 1, (2.7 + 14.6) / 24 - 1, (22.3 - 4.4) / 36])
        resized = F.interpolate(
            photo[:, :, 3:15, 4:22], (6, 9), mode="bilinear", antialias=True, align_corners=False
        )
        torch.testing.assert_close(cut(photo, off, (6, 9)), resized)
        assert torch.equal(cut(photo, off, (6, 9)), cut(photo, off + 1e-3, (6, 9)))

    def test_of_a_point_it_takes_one_pixel(self):
        photo = image(2, 1, 5, 8)
        view = cut(photo, regions([0.999, 0.999, 1e-6], [-1.0, -1.0, 1e-6]), (3, 3), antialias=False)
        torch.testing.assert_close(view[0], photo[0, :, -1:, -1:].expand(1, 3, 3))
        torch.testing.assert_close(view[1], photo[1, :, :1, :1].expand(1, 3, 3))

    def test_nothing_reaches_the_region(self):
        assert not cut(image(1, 1, 9, 9), regions([0.0, 0.0, 0.5]).requires_grad_(), (4, 4)).requires_grad


class TestGaussian:
    def test_a_narrow_one_of_the_whole_image_is_the_image(self):
        photo = image(2, 3, 11, 18)
        torch.testing.assert_close(gaussian(photo, whole(2, dtype=torch.float64), (11, 18), **NARROW), photo)

    @pytest.mark.parametrize("side", [30, 448])
    @pytest.mark.parametrize("sigma", [0.1, 0.15, 0.5, 1.5])
    def test_it_is_what_the_paper_writes_down(self, sigma, side):
        """The filters of the paper in numpy, with 1-based pixels, for a square image."""
        num = 6
        photo = image(1, 1, side, side)
        tx, ty, tl = 0.15, -0.1, 0.5
        stride = tl * side / num
        filters = []
        for t in (tx, ty):
            middle = ((t + 1) * side + 1) / 2
            centres = middle + (np.arange(1, num + 1) - num / 2 - 0.5) * stride
            pixels = np.arange(1, side + 1)
            bell = np.exp(-((pixels[None] - centres[:, None]) ** 2) / (2 * (sigma * stride) ** 2))
            filters.append(bell / bell.sum(axis=1, keepdims=True))
        expected = filters[1] @ photo[0, 0].numpy() @ filters[0].T
        view = gaussian(photo, regions([tx, ty, tl]), (num, num), sigma=sigma)[0, 0].numpy()
        np.testing.assert_allclose(view, expected, atol=1e-5)

    def test_a_shifted_image_at_a_shifted_place_is_the_same(self):
        photo = image(1, 1, 20, 40)
        shifted = torch.roll(photo, 6, dims=3)
        place, moved = regions([-0.1, 0.0, 0.3]), regions([-0.1 + 2 * 6 / 40, 0.0, 0.3])
        torch.testing.assert_close(gaussian(photo, place, (5, 7)), gaussian(shifted, moved, (5, 7)))

    def test_it_feels_further_than_a_triangle(self):
        """A bright dot two samples away pulls the region of a wide Gaussian, and not that of the zoom."""
        photo = torch.zeros(1, 1, 40, 40, dtype=torch.float64)
        photo[0, 0, 20, 30] = 1.0
        pulls = {}
        for name, options in (("zoom", {}), ("gaussian", {"sigma": 1.5})):
            place = regions([0.0, 0.0, 0.3]).requires_grad_()
            view = sampler(name, **options)(photo, place, (4, 4))
            pulls[name] = torch.autograd.grad(view.sum(), place)[0][0, 0].item()
        assert pulls["zoom"] == 0.0
        assert pulls["gaussian"] > 0.0


def test_keys_of_other_samplers_are_refused(tiny):
    for changes in ({"model__sigma": 0.7}, {"model__sampler": "gaussian", "model__antialias": False}):
        with pytest.raises(ConfigError, match=r"sampler gaussian|a Gaussian is as wide"):
            tiny(**changes)
    assert tiny(model__sampler="gaussian", model__sigma=0.7).model.sigma == 0.7


def test_what_checkpoints_before_the_samplers_hold_is_read(tiny):
    values = tiny().model_dump()
    del values["model"]["sampler"], values["model"]["sigma"]
    assert (
        parse_config(values | {"model": values["model"] | {"crop": "box"}}, origin="old").model
        == tiny().model
    )
    with pytest.raises(ConfigError, match="crop"):
        parse_config(values | {"model": values["model"] | {"crop": "other"}}, origin="old")


@pytest.mark.parametrize(
    ("model", "phase", "said"),
    [
        ({"sampler": "crop"}, {"kind": "localise"}, "lets none through"),
        ({"sampler": "crop"}, {"kind": "ranking", "gradient": "exact"}, "lets none through"),
        ({"sampler": "crop"}, {"kind": "ranking", "gradient": "energy"}, "lets none through"),
        ({"sampler": "crop"}, {"kind": "ranking", "gradient": "smoothed"}, None),
        ({"gates": "sca"}, {"kind": "cross_fit"}, "steers by the look before"),
        (
            {"pooling": "mean"},
            {"kind": "classification", "hold_attention": True},
            "of which there are none",
        ),
    ],
    ids=str,
)
def test_phases_that_need_what_a_way_of_looking_has_not_are_refused(model, phase, said, tiny):
    changes = {f"model__{key}": value for key, value in model.items()}
    schedule = [{"epochs": 1, "lr": 0.1, **phase}]
    if said is None:
        assert tiny(schedule=schedule, **changes).model.sampler == "crop"
        return
    with pytest.raises(ConfigError, match=said):
        tiny(schedule=schedule, **changes)
