"""Every gradient of the ranking phase has the same loss, reaches the APNs, and points where it should."""

import pytest
import torch

from racnn.config import load_config
from racnn.engine.loop import build_optimizer, train_only
from racnn.errors import ConfigError
from racnn.models import RACNN
from racnn.models.racnn import make_phase
from racnn.models.racnn import ranking_gradients as ranking
from racnn.models.racnn.losses import true_class_prob
from racnn.models.racnn.ranking_gradients import GRADIENTS, antithetic_slope, mask_over_view
from racnn.ops.mask import boxcar, pixel_centres

WIDE = (0.0, 1.0)


def make(**changes):
    torch.manual_seed(0)
    model = RACNN(num_classes=4, backbone="tiny", view_sizes=(32, 32, 32), steepness=0.5, **changes)
    for apn in model.apns:
        torch.nn.init.normal_(apn.out.weight, std=0.1)
    return model.eval()


def batch(size=6, side=40):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (size, 3, side, side), generator=generator, dtype=torch.uint8)
    noise = torch.rand(size, 24, generator=generator)
    return {"image": images, "label": torch.arange(size) % 4, "noise": noise}


def batch_of(phase, **options):
    """A batch with as much noise as the phase asks for."""
    some = batch(**options)
    return some | {"noise": some["noise"][:, : phase.num_noise()]}


def signs_of(batch, pairs):
    return torch.randint(0, 2, (batch, pairs, 3)) * 2.0 - 1.0


def phase_of(scales=(1, 2), **changes):
    config = {"kind": "ranking", "epochs": 1, "lr": 0.5, "scales": scales, "margin": 2.0} | changes
    return make_phase(**config)


def gradients(model, phase):
    """Return the losses, and the gradient of each APN's last bias: the mean pull on its raw region."""
    train_only(model, phase)
    losses = phase.losses(model, batch_of(phase))
    losses["loss"].backward()
    pulls = [apn.out.bias.grad.clone() for apn in model.apns]
    for apn in model.apns:
        apn.zero_grad()
    return {name: value.item() for name, value in losses.items()}, pulls


@pytest.mark.parametrize("zoom_from", ["source", "parent"])
@pytest.mark.parametrize("compare", ["prob", "log_prob"])
def test_the_loss_is_the_same_and_its_gradients_differ(compare, zoom_from):
    model, found = make(zoom_from=zoom_from), {}
    for gradient in GRADIENTS:
        losses, pulls = gradients(model, phase_of(gradient=gradient, compare=compare))
        found[gradient] = pulls
        assert losses == pytest.approx(found.setdefault("losses", losses), rel=1e-5)
        assert losses["loss"] == pytest.approx(losses["ranking_1"] + losses["ranking_2"])
        assert all(pull.isfinite().all() and pull.abs().sum() > 0 for pull in pulls), gradient
    for number in range(2):
        each = [found[gradient][number] for gradient in GRADIENTS]
        assert all(
            not torch.allclose(one, other, rtol=1e-3) for i, one in enumerate(each) for other in each[:i]
        )


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_photos_that_are_ranked_well_pull_nothing(gradient):
    _, pulls = gradients(make(), ranked_well(gradient))
    assert all(pull.abs().sum() == 0 for pull in pulls)


def ranked_well(gradient):
    """Return a phase whose margin no photo misses: a finer scale may be less sure by any amount."""
    phase = phase_of(gradient=gradient)
    return phase.model_copy(update={"margin": -5.0})


class TestSmoothed:
    @pytest.mark.parametrize("compare", ["prob", "log_prob"])
    def test_only_photos_that_are_ranked_badly_pull_along_their_slope(self, compare, monkeypatch):
        model, asked = make(), []
        for classifier in model.classifiers:
            torch.nn.init.normal_(classifier.weight, std=2.0)
        with torch.no_grad():
            output = model(batch()["image"])
        sure = [true_class_prob(logits, batch()["label"], compare) for logits in output.logits]
        behind = sure[0] - sure[1]
        margin = -float(behind.median())  # so that about half of the photos are ranked well
        active = (behind + margin > 0).float()
        assert 0 < active.sum() < len(active)

        def slope_of_one(score, region, signs, **options):
            asked.append((score(region), signs, options))
            return torch.tensor([1.0, 2.0, 3.0]).expand_as(region)

        monkeypatch.setattr(ranking, "antithetic_slope", slope_of_one)
        phase = phase_of((1,), gradient="smoothed", compare=compare, pairs=3, spread=0.2)
        phase = phase.model_copy(update={"margin": margin})
        train_only(model, phase)
        phase.losses(model, batch_of(phase))["loss"].backward()
        found = model.apns[0].out.bias.grad.clone()
        model.apns[0].zero_grad()
        region = model.apns[0](output.scales[0].features)
        (-(active * (region * torch.tensor([1.0, 2.0, 3.0])).sum(dim=1)).mean()).backward()
        torch.testing.assert_close(found, model.apns[0].out.bias.grad)
        ((scores, signs, options),) = asked
        torch.testing.assert_close(scores, sure[1])
        assert signs.shape == (6, 3, 3)
        assert signs.unique().tolist() == [-1.0, 1.0]
        assert options == {"spread": 0.2, "bounds": model.bounds[0]}

    def test_a_side_at_its_bound_has_the_slope_of_the_way_it_could_go(self):
        region = torch.tensor([[0.0, 0.0, 0.94]])
        torch.manual_seed(0)
        slope = antithetic_slope(lambda r: r[:, 2], region, signs_of(1, 50), spread=0.1, bounds=(0.2, 0.95))
        assert slope[0, 2] == pytest.approx(1.0, rel=1e-3)

    def test_slope_of_a_plane_is_its_normal(self):
        normal = torch.tensor([1.0, -2.0, 0.5])
        region = torch.tensor([[0.1, -0.2, 0.4], [0.0, 0.0, 0.6]])
        torch.manual_seed(0)
        slope = antithetic_slope(lambda r: r @ normal, region, signs_of(2, 4000), spread=0.2, bounds=WIDE)
        torch.testing.assert_close(slope, normal.expand(2, 3), atol=0.12, rtol=0)

    def test_a_flicker_finer_than_the_moves_does_not_show(self):
        region = torch.tensor([[0.13, -0.21, 0.5]]).double().expand(64, 3)

        def flickering(other):  # its derivative is up to 20, its slope over a tenth is 1
            return other[:, 0] + 0.02 * torch.sin(1000 * other[:, 0])

        torch.manual_seed(0)
        slope = antithetic_slope(flickering, region, signs_of(64, 1).double(), spread=0.2, bounds=WIDE)
        assert slope[:, 0] == pytest.approx([1.0] * 64, abs=0.25)

    def test_regions_are_asked_about_within_their_bounds_only(self):
        asked = []

        def score(region):
            asked.append(region)
            return region[:, 0]

        region = torch.tensor([[0.0, 0.05, 0.94], [0.79, -0.79, 0.21]])
        antithetic_slope(score, region, signs_of(2, 8), spread=0.3, bounds=(0.2, 0.95))
        every = torch.cat(asked)
        assert every[:, 2].min() >= 0.2 - 1e-6
        assert every[:, 2].max() <= 0.95 + 1e-6
        assert (every[:, :2].abs() + every[:, 2:] <= 1 + 1e-6).all()

    def test_regions_go_where_the_finer_scale_is_surer(self, monkeypatch):
        model, goal = make(), torch.tensor([0.4, -0.3, 0.35])
        for apn in model.apns:
            torch.nn.init.zeros_(apn.out.weight)  # as a new network has it: in the middle

        def surer_near_the_goal(_scale, _source, _parent, region):
            near = -4.0 * (region - goal).square().sum(dim=1)
            return torch.nn.functional.one_hot(torch.arange(len(region)) % 4, 4) * near[:, None] + 1.0

        monkeypatch.setattr(model, "classify_proposal", surer_near_the_goal)
        phase = phase_of(gradient="smoothed", compare="log_prob", optimizer="adamw", margin=9.0, pairs=2)
        train_only(model, phase)
        optimizer = build_optimizer(model, phase)
        for group in optimizer.param_groups:
            group["lr"] = 0.001
        start = (model(batch()["image"]).proposals[0] - goal).norm(dim=1).mean()
        for seed in range(80):
            optimizer.zero_grad()
            noise = torch.rand(6, phase.num_noise(), generator=torch.Generator().manual_seed(seed))
            phase.losses(model, batch() | {"noise": noise})["loss"].backward()
            optimizer.step()
        end = (model(batch()["image"]).proposals[0] - goal).norm(dim=1).mean()
        assert end < 0.1 * start


class TestEnergy:
    def test_gradient_is_the_energy_under_a_mask_that_moves(self):
        model, phase = make(), phase_of((1,), gradient="energy")
        train_only(model, phase)
        phase.losses(model, batch_of(phase))["loss"].backward()
        found = model.apns[0].out.bias.grad.clone()
        model.apns[0].zero_grad()

        output = model(batch()["image"], num_scales=2)
        loss = (
            true_class_prob(output.logits[0], batch()["label"])
            - true_class_prob(output.logits[1], batch()["label"])
        ).mean()
        (reached,) = torch.autograd.grad(loss, output.views[1], retain_graph=True)
        energy = (reached**2).sum(dim=1)  # [B, h, w]
        energy = energy / energy.sum(dim=(1, 2), keepdim=True)
        region = output.proposals[0]
        held = region.detach()
        x = held[:, :1] + held[:, 2:] * pixel_centres(32)
        y = held[:, 1:2] + held[:, 2:] * pixel_centres(32)
        steepness = 0.5 * 32 / 2
        across = boxcar(x, region[:, :1], region[:, 2:], steepness)
        down = boxcar(y, region[:, 1:2], region[:, 2:], steepness)
        (-(energy * down[:, :, None] * across[:, None]).sum(dim=(1, 2)).mean()).backward()
        torch.testing.assert_close(found, model.apns[0].out.bias.grad)

    def test_mask_moves_over_points_that_stay(self):
        region = torch.tensor([[0.1, -0.2, 0.5]], requires_grad=True)
        mask = mask_over_view(region, 8, steepness=6.0)
        x = 0.1 + 0.5 * pixel_centres(8)
        y = -0.2 + 0.5 * pixel_centres(8)
        edge = 6.0 * (x - 0.1 + 0.5), 6.0 * (x - 0.1 - 0.5), 6.0 * (y + 0.2 + 0.5), 6.0 * (y + 0.2 - 0.5)
        left, right, top, bottom = (torch.sigmoid(value) for value in edge)
        torch.testing.assert_close(mask[0, 0], (top - bottom)[:, None] * (left - right)[None])
        mask[0, 0, :, -1].sum().backward()  # the right edge is held better by a box further right
        assert region.grad[0, 0] > 0
        assert region.grad[0, 2] > 0


def test_a_mask_gradient_needs_a_mask():
    changes = ["model.mask=false", "schedule=[{kind: ranking, epochs: 1, lr: 0.1, gradient: mask}]"]
    with pytest.raises(ConfigError, match=r"gradient mask needs model\.mask"):
        load_config(None, changes)
