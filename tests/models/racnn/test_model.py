"""The recursion: what each scale sees, what it says, and which weights a loss can reach."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from racnn import RACNN, RACNNOutput
from racnn.errors import ConfigError
from racnn.models.racnn.apn import PaperAPN
from racnn.models.racnn.losses import classification_losses, ranking_losses
from racnn.ops.crop import zoom
from racnn.ops.mask import frame_steepness
from racnn.ops.regions import compose, to_boxes_xyxy, whole

VIEWS = (32, 24, 16)
CLASSES = 5


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _model(**options: Any) -> RACNN:
    """Return a small network in eval mode whose proposals depend on the image."""
    settings: dict[str, Any] = {"num_classes": CLASSES, "backbone": "tiny", "view_sizes": VIEWS}
    model = RACNN(**settings | options).eval()
    for apn in model.apns:
        nn.init.normal_(apn.out.weight, std=0.5)
        nn.init.normal_(apn.out.bias, std=0.5)
    return model


def _images(batch: int = 2, height: int = 40, width: int = 56) -> Tensor:
    return torch.rand(batch, 3, height, width)


def _grad_sum(module: nn.Module) -> float:
    return sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)


def _trains_only(model: RACNN, *modules: nn.Module) -> None:
    model.requires_grad_(False)
    for module in modules:
        module.requires_grad_(True)


class TestOutput:
    @pytest.mark.parametrize("apn", ["compact", "paper"])
    @pytest.mark.parametrize("views", [(32,), (32, 24), (32, 24, 16), (32, 24, 16, 16)])
    def test_every_number_of_scales_runs(self, views: tuple[int, ...], apn: str) -> None:
        model, num = _model(view_sizes=views, apn=apn), len(views)
        output = model(_images(3))
        features = [scale.features for scale in output.scales]
        assert len(model.backbones) == len(model.classifiers) == num
        assert len(model.apns) == len(output.proposals) == num - 1
        assert [tuple(x.shape) for x in output.logits] == [(3, CLASSES)] * num
        assert [tuple(x.shape) for x in output.proposals] == [(3, 3)] * (num - 1)
        assert [tuple(x.shape) for x in output.regions] == [(3, 3)] * num
        assert [tuple(x.shape) for x in output.views] == [(3, 3, side, side) for side in views]
        assert [tuple(x.shape) for x in features] == [(3, 96, side // 4, side // 4) for side in views]
        assert [tuple(x.shape) for x in output.descriptors] == [(3, 96)] * num
        assert output.fused is not None
        assert output.fused.shape == (3, CLASSES)

    @pytest.mark.parametrize("scales", [1, 2, 3])
    def test_scales_runs_only_so_many(self, scales: int) -> None:
        model, images = _model(), _images()
        ran = []
        for number, backbone in enumerate(model.backbones):
            backbone.register_forward_hook(lambda *_, number=number: ran.append(number))
        output = model(images, num_scales=scales)
        assert ran == list(range(scales))
        assert len(output.logits) == len(output.regions) == len(output.views) == scales
        assert len(output.proposals) == min(scales, 2)
        assert (output.fused is None) == (scales < 3)
        for ours, full in zip(output.logits, model(images).logits, strict=False):
            assert torch.equal(ours, full)

    @pytest.mark.parametrize("scales", [1, 2])
    def test_the_last_scale_proposes_what_the_next_one_would_crop(self, scales: int) -> None:
        model, images = _model(), _images()
        output, further = model(images, num_scales=scales), model(images, num_scales=scales + 1)
        assert torch.equal(output.proposals[-1], further.proposals[scales - 1])
        assert torch.equal(output.scales[-1].next_region, further.regions[-1])

    def test_descriptor_is_the_mean_of_the_features_and_logits_its_linear_layer(self) -> None:
        model = _model()
        output = model(_images())
        for scale in range(3):
            descriptor = output.scales[scale].features.mean(dim=(2, 3))
            torch.testing.assert_close(output.descriptors[scale], descriptor)
            torch.testing.assert_close(output.logits[scale], model.classifiers[scale](descriptor))

    def test_regions_start_in_the_middle_of_the_default_bounds(self) -> None:
        output = RACNN(num_classes=2, backbone="tiny", view_sizes=(16, 16, 16, 16)).eval()(_images(1))
        sides = [region[0].tolist() for region in output.proposals]
        assert sides == [pytest.approx([0, 0, tl]) for tl in (0.575, 0.55, 0.55)]

    def test_regions_keep_the_given_bounds(self) -> None:
        model = _model(bounds=[(0.4, 0.41), (0.6, 0.62)])
        for region, (low, high) in zip(model(_images(8)).proposals, model.bounds, strict=True):
            assert low <= region[:, 2].min() <= region[:, 2].max() <= high

    def test_bounds_of_another_number_of_regions_are_refused(self) -> None:
        with pytest.raises(AssertionError):
            RACNN(num_classes=2, backbone="tiny", view_sizes=VIEWS, bounds=[(0.2, 0.9)])

    def test_boxes_are_the_places_of_the_finer_views_in_pixels(self) -> None:
        output = RACNN(num_classes=2, backbone="tiny", view_sizes=(16, 16, 16)).eval()(_images(1))
        boxes = [to_boxes_xyxy(region, (40, 80)) for region in output.regions[1:]]
        assert len(boxes) == 2
        assert boxes[0][0].tolist() == pytest.approx([40 - 23, 20 - 11.5, 40 + 23, 20 + 11.5])
        half = 0.575 * 0.55
        expected = [40 - 40 * half, 20 - 20 * half, 40 + 40 * half, 20 + 20 * half]
        assert boxes[1][0].tolist() == pytest.approx(expected)

    def test_boxes_lie_inside_the_image_and_in_each_other(self) -> None:
        outer, inner = (to_boxes_xyxy(r, (40, 80)) for r in _model()(_images(8)).regions[1:])
        limit = torch.tensor([0.0, 0, 80, 40])
        for inside, around in ((outer, limit), (inner, outer)):
            assert (inside[:, :2] >= around[..., :2] - 1e-4).all()
            assert (inside[:, 2:] <= around[..., 2:] + 1e-4).all()

    def test_package_gives_the_network_lazily(self) -> None:
        from racnn.models.racnn import model as module

        assert RACNN is module.RACNN
        assert RACNNOutput is module.RACNNOutput


class TestViews:
    @pytest.mark.parametrize("zoom_from", ["source", "parent"])
    def test_places_are_the_regions_composed(self, zoom_from: str) -> None:
        output = _model(zoom_from=zoom_from)(_images())
        assert torch.equal(output.regions[0], whole(2))
        for s in range(2):
            assert torch.equal(output.regions[s + 1], compose(output.regions[s], output.proposals[s]))

    @pytest.mark.parametrize("antialias", [True, False])
    def test_view_is_the_zoom_of_the_normalised_image(self, antialias: bool) -> None:
        model, images = _model(mask=False, antialias=antialias), _images()
        output = model(images)
        for view, place, side in zip(output.views, output.regions, VIEWS, strict=True):
            expected = zoom(model.normalise(images), place, (side, side), antialias=antialias)
            assert torch.equal(view, expected)

    def test_view_from_the_parent_is_the_zoom_of_the_previous_view(self) -> None:
        model = _model(mask=False, zoom_from="parent")
        output = model(_images())
        for s in (1, 2):
            expected = zoom(output.views[s - 1], output.proposals[s - 1], (VIEWS[s], VIEWS[s]))
            assert torch.equal(output.views[s], expected)

    @pytest.mark.parametrize("zoom_from", ["source", "parent"])
    def test_finer_views_lie_under_their_own_mask_alone(self, zoom_from: str) -> None:
        model, images = _model(zoom_from=zoom_from, steepness=1.5), _images()
        output, source = model(images), model.normalise(images)
        assert torch.equal(output.views[0], zoom(source, whole(2), (32, 32)))
        for s in (1, 2):
            image, region = (
                (source, output.regions[s])
                if zoom_from == "source"
                else (output.views[s - 1], output.proposals[s - 1])
            )
            steepness = frame_steepness(1.5, image.shape[-1])
            expected = zoom(image, region, (VIEWS[s], VIEWS[s]), steepness=steepness)
            assert torch.equal(output.views[s], expected)

    def test_image_of_the_first_views_size_is_not_resampled(self) -> None:
        model, images = _model(), _images(2, 32, 32)
        assert torch.equal(model(images).views[0], model.normalise(images))

    def test_larger_image_of_another_shape_shows_the_same_places(self) -> None:
        model = _model(mask=False)
        small = nn.functional.interpolate(_images(2, 6, 9), (48, 72), mode="bilinear")
        large = nn.functional.interpolate(small, (96, 144), mode="bilinear")
        first, second = model(small), model(large)
        assert second.views[0].shape == (2, 3, 32, 32)
        torch.testing.assert_close(second.views[0], first.views[0], atol=0.15, rtol=0)
        torch.testing.assert_close(second.regions[2], first.regions[2], atol=0.1, rtol=0)

    def test_uint8_and_float_images_are_the_same(self) -> None:
        model, images = _model(), torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8)
        from_bytes, from_floats = model(images), model(images.float() / 255)
        assert torch.equal(from_bytes.logits[2], from_floats.logits[2])
        assert from_bytes.views[0].abs().max() < 3.0  # normalised from [0, 1], not from [0, 255]

    def test_to_pixels_undoes_normalise(self) -> None:
        model, images = _model(), _images()
        torch.testing.assert_close(model.to_pixels(model.normalise(images)), images)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        pixel = model.normalise(images)[1, :, 3, 5]
        torch.testing.assert_close(pixel, (images[1, :, 3, 5] - mean) / std)

    def test_jitter_shakes_the_regions_within_their_bounds(self) -> None:
        model, images = _model(bounds=[(0.5, 0.55), (0.3, 0.8)]), _images(8)
        still, again = model(images), model(images)
        assert torch.equal(still.proposals[0], again.proposals[0])
        noise = torch.rand(8, 2, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
        jittered = model(images, noise=noise)
        assert not torch.allclose(jittered.proposals[0], still.proposals[0], atol=1e-3)
        assert 0.5 <= jittered.proposals[0][:, 2].min() <= jittered.proposals[0][:, 2].max() <= 0.55
        assert ((jittered.proposals[0] - still.proposals[0])[:, :2].abs() <= 0.1 * 0.55 + 0.05).all()
        for s in range(2):
            assert torch.equal(jittered.regions[s + 1], compose(jittered.regions[s], jittered.proposals[s]))
        second = model(images, noise=noise * torch.tensor([[[0.0], [1.0]]]))  # each region has its own
        assert torch.equal(second.proposals[0], still.proposals[0])
        assert not torch.allclose(second.proposals[1], still.proposals[1], atol=1e-3)

    def test_compute_dtype_is_that_of_the_backbones_alone(self) -> None:
        model = _model()
        model.compute_dtype = torch.bfloat16
        output = model(_images())
        assert {scale.features.dtype for scale in output.scales} == {torch.bfloat16}
        rest = (*output.logits, *output.descriptors, *output.proposals, *output.regions, *output.views)
        assert {x.dtype for x in rest} == {torch.float32}


class TestWeights:
    def test_separate_backbones_share_no_parameter_and_start_alike(self) -> None:
        model = _model()
        assert len({p.data_ptr() for b in model.backbones for p in b.parameters()}) == 3 * len(
            list(model.backbones[0].parameters())
        )
        for other in model.backbones[1:]:
            for key, value in model.backbones[0].state_dict().items():
                assert torch.equal(value, other.state_dict()[key])

    def test_shared_backbone_is_one_with_a_classifier_a_scale(self) -> None:
        model = _model(shared_backbone=True)
        assert len(model.backbones) == 1
        assert model.backbone(1) is model.backbone(2) is model.backbone(3)
        assert len(model.classifiers) == 3
        assert len(model(_images()).logits) == 3

    def test_backbone_counts_from_one(self) -> None:
        model = _model()
        assert [model.backbone(s) is model.backbones[s - 1] for s in (1, 2, 3)] == [True] * 3

    def test_every_scale_starts_from_the_weights_file(self, tmp_path: Path) -> None:
        state = _model().backbones[0].state_dict()
        torch.save(state, tmp_path / "w.pth")
        for backbone in _model(weights=str(tmp_path / "w.pth")).backbones:
            assert torch.equal(backbone.state_dict()["features.0.weight"], state["features.0.weight"])

    def test_copy_scale_copies_backbone_and_classifier_and_keeps_them_apart(self) -> None:
        model = _model()
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        last = [p.clone() for p in model.backbone(3).parameters()]
        model.copy_scale(1, 2)
        pairs = [(model.backbone(1), model.backbone(2)), (model.classifiers[0], model.classifiers[1])]
        for source, target in pairs:
            for key, value in source.state_dict().items():
                assert torch.equal(value, target.state_dict()[key])
                assert value.data_ptr() != target.state_dict()[key].data_ptr()
        assert all(torch.equal(a, b) for a, b in zip(last, model.backbone(3).parameters(), strict=True))

    def test_paper_apn_pools_at_the_first_scale_only(self) -> None:
        first, second = _model(apn="paper").apns
        assert isinstance(first, PaperAPN)
        assert isinstance(second, PaperAPN)
        assert first.pool
        assert not second.pool
        assert first.hidden.in_features == 96 * 4 * 4
        assert second.hidden.in_features == 96 * 6 * 6

    def test_checkpoint_holds_no_constants(self) -> None:
        assert not {"mean", "std"} & _model().state_dict().keys()


class TestOtherRegions:
    @pytest.mark.parametrize("zoom_from", ["source", "parent"])
    @pytest.mark.parametrize("number", [1, 2])
    def test_the_proposed_region_gives_the_answer_of_the_pass(self, number: int, zoom_from: str) -> None:
        model, images = _model(zoom_from=zoom_from), _images()
        for s in (1, 2):  # scales that say different things, or the wrong one would not show
            nn.init.normal_(model.classifiers[s].weight, std=float(s))
        output = model(images)
        parent = output.scales[number - 1]
        assert parent.proposal is not None
        said = model.classify_proposal(number + 1, model.normalise(images), parent, parent.proposal)
        torch.testing.assert_close(said, output.logits[number])
        everything = whole(len(images))
        other = model.classify_proposal(number + 1, model.normalise(images), parent, everything)
        assert not torch.allclose(other, said, rtol=1e-3)

    @pytest.mark.parametrize("scale", [2, 3])
    def test_a_scale_that_is_shown_its_own_place_says_what_it_said(self, scale: int) -> None:
        model, images = _model(), _images()
        for s in (1, 2):
            nn.init.normal_(model.classifiers[s].weight, std=float(s))
        output = model(images)
        source = model.normalise(images)
        region = output.regions[scale - 1]
        said = model.forward_scale(scale, model.crop(scale, source, region), region).logits
        torch.testing.assert_close(said, output.logits[scale - 1])
        view = model.crop(scale, source, output.regions[0])
        other = model.forward_scale(scale, view, output.regions[0]).logits
        assert not torch.allclose(other, said, rtol=1e-3)


class TestFusion:
    def test_fusion_starts_as_the_weighted_sum_of_the_logits(self) -> None:
        model, images = _model(), _images(1)
        before = model(images)
        model.init_fusion([d.norm().item() for d in before.descriptors], [0.2, 0.5, 0.7])
        expected = 0.2 * before.logits[0] + 0.5 * before.logits[1] + 0.7 * before.logits[2]
        torch.testing.assert_close(model(images).fused, expected)

    def test_fusion_does_not_see_the_length_of_a_descriptor(self) -> None:
        model = _model()
        descriptors = model(_images()).descriptors
        longer = [descriptors[0] * 7, descriptors[1], descriptors[2] * 0.1]
        torch.testing.assert_close(model.fuse(longer), model.fuse(descriptors))

    def test_fusion_of_normalised_parts_by_hand(self) -> None:
        model = _model()
        descriptors = model(_images()).descriptors
        parts = torch.cat([d / d.norm(dim=1, keepdim=True) for d in descriptors], dim=1)
        expected = parts @ model.fusion.weight.T + model.fusion.bias
        torch.testing.assert_close(model.fuse(descriptors), expected)


class TestGradients:
    labels = torch.tensor([1, 3])

    def test_classification_of_scale_two_reaches_its_own_weights_alone(self) -> None:
        model = _model()
        model.apns.requires_grad_(False)
        output = model(_images(), num_scales=2)
        classification_losses({2: output.logits[1]}, self.labels, [2])["loss"].backward()
        assert _grad_sum(model.backbones[1]) > 0
        assert _grad_sum(model.classifiers[1]) > 0
        for other in (model.backbones[0], model.backbones[2], model.classifiers[0], model.apns, model.fusion):
            assert all(p.grad is None for p in other.parameters())

    def test_apn_does_not_teach_the_backbone_it_reads(self) -> None:
        model = _model()
        model(_images(), num_scales=2).proposals[0].sum().backward()
        assert _grad_sum(model.apns[0]) > 0
        assert all(p.grad is None for p in model.backbones.parameters())

    @pytest.mark.parametrize("zoom_from", ["source", "parent"])
    @pytest.mark.parametrize("pair", [1, 2])
    def test_ranking_moves_only_its_own_apn(self, pair: int, zoom_from: str) -> None:
        model = _model(zoom_from=zoom_from)
        _trains_only(model, *model.apns)
        output = model(_images())
        ranking_losses(output.logits, self.labels, [pair], margin=2.0)["loss"].backward()
        assert _grad_sum(model.apns[pair - 1]) > 0
        assert _grad_sum(model.apns[2 - pair]) == 0
        frozen = [p for name, p in model.named_parameters() if not name.startswith("apns.")]
        assert all(p.grad is None for p in frozen)

    def test_ranking_reaches_a_fresh_apn_whose_last_layer_is_zero(self) -> None:
        model = RACNN(num_classes=CLASSES, backbone="tiny", view_sizes=(32, 24)).eval()
        _trains_only(model, *model.apns)
        ranking_losses(model(_images()).logits, self.labels, [1], margin=2.0)["loss"].backward()
        assert _grad_sum(model.apns[0].out) > 0

    def test_ranking_step_on_the_apn_makes_the_finer_scale_surer(self) -> None:
        model = _model(view_sizes=(32, 24))
        _trains_only(model, *model.apns)
        images = nn.functional.interpolate(_images(2, 8, 11), (64, 88), mode="bicubic")

        def loss() -> Tensor:
            return ranking_losses(model(images).logits, self.labels, [1], margin=2.0)["loss"]

        before = loss()
        before.backward()
        norm = sum(float(p.grad.square().sum()) for p in model.apns.parameters() if p.grad is not None)
        with torch.no_grad():
            for parameter in model.apns.parameters():
                assert parameter.grad is not None
                parameter -= 1e-2 / norm**0.5 * parameter.grad
        assert loss() < before

    def test_frozen_network_builds_no_graph(self) -> None:
        model = _model()
        model.requires_grad_(False)
        output = model(_images())
        everything = (*output.logits, *output.proposals, *output.views, *output.descriptors, output.fused)
        assert not any(x.requires_grad for x in everything if x is not None)

    def test_fusion_alone_trains_when_the_rest_is_frozen(self) -> None:
        model = _model()
        _trains_only(model, model.fusion)
        fused = model(_images()).fused
        nn.functional.cross_entropy(fused, self.labels).backward()
        assert _grad_sum(model.fusion) > 0
        others = [p for name, p in model.named_parameters() if not name.startswith("fusion.")]
        assert all(p.grad is None for p in others)


class TestEnlargedViews:
    def test_factor_one_is_what_the_scale_saw(self) -> None:
        model, images = _model(), _images()
        output = model(images)
        for scale in (1, 2, 3):
            view = model.enlarged_view(scale, images, output, 1.0)
            assert torch.equal(view, output.views[scale - 1])
            same, inner = model.extract_with_inner(scale, view)
            assert torch.equal(same, output.scales[scale - 1].features)
            assert torch.equal(same, model.extract(scale, view))
            assert inner.shape == same.shape
            assert not same.requires_grad
            assert not inner.requires_grad

    @pytest.mark.parametrize("zoom_from", ["source", "parent"])
    @pytest.mark.parametrize("scale", [1, 2, 3])
    def test_they_are_those_of_a_network_with_larger_views(self, scale: int, zoom_from: str) -> None:
        model, images = _model(zoom_from=zoom_from), _images()
        output = model(images)
        larger = model.enlarged_view(scale, images, output, 1.5)
        assert not larger.requires_grad
        sides = list(VIEWS)
        sides[scale - 1] = round(1.5 * sides[scale - 1])
        model.view_sizes = tuple(sides)
        for apn, proposal in zip(model.apns, output.proposals, strict=True):  # the same, whatever it now sees
            apn.register_forward_hook(lambda *_, proposal=proposal: proposal)
        torch.testing.assert_close(larger, model(images).views[scale - 1])

    @pytest.mark.parametrize("factor", [1.05, 1.3, 2.0])
    def test_the_enlarged_view_is_whole_cells(self, factor: float) -> None:
        model, images = _model(), _images()
        view = model.enlarged_view(1, images, model(images), factor)
        assert view.shape[-1] == 4 * model.extract(1, view).shape[-1]
        assert abs(view.shape[-1] - factor * VIEWS[0]) <= 2


class TestCheckedViews:
    def test_a_backbone_of_one_size_is_refused_before_it_is_trained(self) -> None:
        model = _model()

        def only_small(_: nn.Module, given: tuple[Tensor]) -> None:
            assert given[0].shape[-1] == VIEWS[0], "wrong size"

        model.backbones[0].register_forward_pre_hook(only_small)
        model.check_views([(1, 1.0), (2, 2.0)])
        with pytest.raises(
            ConfigError, match=r"scales: \[1\] has enlarge: 2, .* no view of 64 px .*set enlarge to 1"
        ):
            model.check_views([(1, 2.0)])

    def test_a_view_that_no_backbone_of_one_size_takes_is_refused(self) -> None:
        model = _model()

        def only_small(_: nn.Module, given: tuple[Tensor]) -> None:
            assert given[0].shape[-1] < VIEWS[1], "wrong size"

        model.backbones[1].register_forward_pre_hook(only_small)
        with pytest.raises(
            ConfigError, match=rf"model\.view_sizes: views of {VIEWS[1]} px .* scale 2 \(wrong size\)"
        ):
            model.check_views()

    def test_a_view_whose_map_is_not_known_beforehand_is_not_refused(self) -> None:
        model, asked = _model(), []

        def unknown(_: nn.Module, given: tuple[Tensor]) -> None:
            asked.append(given[0].device.type)
            raise NotImplementedError

        model.backbones[1].register_forward_pre_hook(unknown)
        model.check_views()
        assert asked == ["meta"]

    def test_a_map_of_another_size_than_the_papers_apn_is_tied_to_is_refused(self) -> None:
        model = _model(apn="paper", view_sizes=(VIEWS[0] * 4, VIEWS[1]))
        model.view_sizes = VIEWS  # as if the map had other cells than the view has strides
        with pytest.raises(ConfigError, match=r"model\.view_sizes: .* scale 1"):
            model.check_views()

    @pytest.mark.parametrize("apn", ["compact", "paper"])
    def test_trying_a_view_changes_nothing(self, apn: str) -> None:
        model = _model(apn=apn).train()  # the tiny backbone has batch norm
        before = {key: value.clone() for key, value in model.state_dict().items()}
        model.check_views([(1, 2.0), (2, 1.5)])
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        assert model.training
        assert all(module.training for module in model.modules())


@pytest.mark.parametrize("descriptor", ["mean", "root"])
def test_what_tells_two_classes_apart_adds_up_to_the_difference_of_their_logits(descriptor: str) -> None:
    model = _model(descriptor=descriptor)
    output = model(_images(3))
    first, second = torch.tensor([0, 1, 2]), torch.tensor([3, 4, 0])
    for number, scale in enumerate(output.scales, start=1):
        for_first = model.difference(number, scale.features, first, second)
        for_second = model.difference(number, scale.features, second, first)
        assert for_first.shape == for_second.shape == scale.features[:, 0].shape
        assert not (for_first * for_second).any(), "a cell speaks for one of them"
        bias = model.classifiers[number - 1].get_parameter("bias")
        logits = scale.logits - bias
        gap = (logits.gather(1, first[:, None]) - logits.gather(1, second[:, None]))[:, 0]
        net = (for_first - for_second).sum(dim=(1, 2))
        torch.testing.assert_close(net, gap, rtol=1e-3, atol=1e-5)


def test_rounded_weights_change_nothing_where_they_are_rounded_anyway() -> None:
    torch.manual_seed(0)
    model = RACNN(num_classes=3, backbone="tiny", view_sizes=(32, 32)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.round_weights()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model.compute_dtype = torch.bfloat16
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    found = model(images)
    model.round_weights()
    again = model(images)
    assert torch.equal(again.fused, found.fused)
    assert torch.equal(again.regions[1], found.regions[1])
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    for key in changed:
        assert key.startswith("backbones.")
        value = model.state_dict()[key]
        assert torch.equal(value, value.bfloat16().float())
