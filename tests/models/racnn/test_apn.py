"""Proposals start in the middle, stay within bounds, and learn through every layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from racnn.models.racnn.apn import CompactAPN, PaperAPN

CHANNELS, CELLS = 24, 8
BOUNDS = [(0.2, 0.95), (0.3, 0.8)]


def compact(bounds: tuple[float, float] = (0.2, 0.95)) -> CompactAPN:
    return CompactAPN(channels=CHANNELS, bounds=bounds, width=8, hidden=16)


def paper(bounds: tuple[float, float] = (0.2, 0.95)) -> PaperAPN:
    return PaperAPN(channels=CHANNELS, cells=CELLS, bounds=bounds, pool=True)


def paper_unpooled(bounds: tuple[float, float] = (0.2, 0.95)) -> PaperAPN:
    return PaperAPN(channels=CHANNELS, cells=CELLS, bounds=bounds, pool=False)


def compact_unnormalised(bounds: tuple[float, float] = (0.2, 0.95)) -> CompactAPN:
    return CompactAPN(channels=CHANNELS, bounds=bounds, width=8, hidden=16, normalised=False)


APNS = [compact, compact_unnormalised, paper, paper_unpooled]
BuildAPN = Callable[..., CompactAPN | PaperAPN]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _features(batch: int = 4, scale: float = 1.0) -> Tensor:
    return F.relu(torch.randn(batch, CHANNELS, CELLS, CELLS)) * scale


def _perturbed(apn: CompactAPN | PaperAPN, std: float = 0.5) -> CompactAPN | PaperAPN:
    nn.init.normal_(apn.out.weight, std=std)
    nn.init.normal_(apn.out.bias, std=std)
    return apn


@pytest.mark.parametrize("build", APNS)
class TestEveryAPN:
    @pytest.mark.parametrize("bounds", BOUNDS)
    @pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
    def test_proposal_starts_in_the_middle_of_its_bounds(
        self, build: BuildAPN, bounds: tuple[float, float], scale: float
    ) -> None:
        region = build(bounds)(_features(scale=scale))
        torch.testing.assert_close(region, torch.tensor([[0.0, 0.0, sum(bounds) / 2]] * 4))

    @pytest.mark.parametrize("bounds", BOUNDS)
    @pytest.mark.parametrize("std", [0.5, 50.0])
    def test_proposal_lies_inside_with_a_side_within_bounds(
        self, build: BuildAPN, bounds: tuple[float, float], std: float
    ) -> None:
        region = _perturbed(build(bounds), std)(_features(32))
        assert (region[:, :2].abs() + region[:, 2:]).max() <= 1 + 1e-6
        assert region[:, 2].min() >= bounds[0] - 1e-6
        assert region[:, 2].max() <= bounds[1] + 1e-6
        if std < 1:  # large weights saturate: then all images may get the same corner
            assert region.std(dim=0).min() > 0, "the proposal does not look at the features"

    def test_proposal_is_the_float32_one_under_autocast(self, build: BuildAPN) -> None:
        apn, features = _perturbed(build()), _features()
        expected = apn(features)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert apn.hidden(torch.zeros(1, apn.hidden.in_features)).dtype == torch.bfloat16  # it is on
            region = apn(features)
        assert region.dtype == torch.float32
        assert torch.equal(region, expected)

    def test_bfloat16_features_give_a_float32_proposal(self, build: BuildAPN) -> None:
        apn, features = _perturbed(build()), _features().bfloat16()
        region = apn(features)
        assert region.dtype == torch.float32
        assert torch.equal(region, apn(features.float()))

    def test_batch_is_a_loop_of_singles(self, build: BuildAPN) -> None:
        apn, features = _perturbed(build()), _features() * torch.tensor([1.0, 5, 0.2, 3]).view(4, 1, 1, 1)
        alone = torch.cat([apn(one[None]) for one in features])
        torch.testing.assert_close(apn(features), alone)

    def test_first_gradient_reaches_the_last_layer_and_then_all(self, build: BuildAPN) -> None:
        apn, features = build(), _features()
        apn(features).sum().backward()
        assert apn.out.weight.grad is not None
        assert apn.out.weight.grad.abs().sum() > 0
        assert apn.hidden.weight.grad is not None
        assert apn.hidden.weight.grad.abs().sum() == 0  # the last layer is zero
        apn.zero_grad()
        _perturbed(apn)(features).sum().backward()
        for name, parameter in apn.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name

    def test_proposal_depends_on_where_the_features_are(self, build: BuildAPN) -> None:
        apn = _perturbed(build())
        features = torch.zeros(2, CHANNELS, CELLS, CELLS)
        features[0, :, 1:3, 5:7] = 1.0
        features[1, :, 5:7, 1:3] = 1.0
        first, second = apn(features)
        assert (first - second).abs().max() > 0.01


class TestCompact:
    @pytest.mark.parametrize("scale", [1e-3, 1e3])
    def test_proposal_does_not_depend_on_the_scale_of_the_features(self, scale: float) -> None:
        apn, features = _perturbed(compact()), _features()
        torch.testing.assert_close(apn(features * scale), apn(features), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(("build", "keeps"), [(compact, True), (compact_unnormalised, False)])
    def test_its_hidden_units_keep_a_derivative_while_it_learns(self, build: BuildAPN, keeps: bool) -> None:
        """From features as EfficientNet's last layer gives them: many channels, nearly all zeros, none negative."""
        features = (torch.rand(32, 1280, 5, 5) > 0.93).float() * 2.0
        apn, seen = CompactAPN(channels=1280, bounds=(0.2, 0.95), normalised=build().normalised), []
        apn.out.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach()))
        optimizer = torch.optim.AdamW(apn.parameters(), lr=0.001)
        for _ in range(30):
            loss = F.mse_loss(apn(features), torch.tensor([[0.1, -0.2, 0.7]]).expand(32, 3))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        at_an_end = (seen[-1].abs() > 0.99).float().mean().item()
        assert (at_an_end < 0.1) if keeps else (at_an_end > 0.5)

    @pytest.mark.parametrize("build", [compact, compact_unnormalised])
    @pytest.mark.parametrize("size", [(7, 7), (5, 9), (14, 28), (1, 3)])
    def test_pooled_map_is_adaptive_average_pooling_of_any_size(
        self, size: tuple[int, int], build: BuildAPN
    ) -> None:
        apn, seen = build(), []
        apn.hidden.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        features = torch.rand(2, CHANNELS, *size) + 0.1
        assert apn(features).shape == (2, 3)
        mean = features.mean(dim=(1, 2, 3), keepdim=True)
        expected = F.adaptive_avg_pool2d(F.relu(apn.reduce(features / mean)), 7).flatten(1)
        if build is compact:
            centred = expected - expected.mean(dim=1, keepdim=True)
            expected = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(seen[0], expected)

    def test_compact_is_much_smaller_than_the_papers(self) -> None:
        def count(apn: nn.Module) -> int:
            return sum(p.numel() for p in apn.parameters())

        with torch.device("meta"):
            small = CompactAPN(channels=512, bounds=(0.2, 0.95))
            large = PaperAPN(channels=512, cells=28, bounds=(0.2, 0.95), pool=True)
        assert large.hidden.in_features == 512 * 14 * 14
        assert count(large) > 50 * count(small)


class TestPaper:
    def test_proposal_is_two_layers_over_the_max_pooled_map(self) -> None:
        apn, features = _perturbed(paper((0.3, 0.8))), _features()
        hidden = torch.tanh(F.max_pool2d(features, 2).flatten(1) @ apn.hidden.weight.T + apn.hidden.bias)
        raw = hidden @ apn.out.weight.T + apn.out.bias
        tl = 0.3 + 0.5 * torch.sigmoid(raw[:, 2:])
        expected = torch.cat([(1 - tl) * torch.tanh(raw[:, :2]), tl], dim=1)
        torch.testing.assert_close(apn(features), expected)
