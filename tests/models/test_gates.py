"""Gates inside a trunk: at first they are not there, then they weigh channels and cells."""

import copy

import pytest
import torch

from racnn.engine.loop import build_optimizer, train_only
from racnn.errors import ConfigError
from racnn.models import RACNN, build_backbone
from racnn.models.attention import CBAM, GATES, SCA
from racnn.models.racnn import make_phase

KIND = pytest.mark.parametrize("kind", GATES)


def maps(*shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def learnt(module, seed=1):
    """Return a module whose weights have no effect of 0 any more."""
    torch.manual_seed(seed)
    for value in module.parameters():
        torch.nn.init.normal_(value, std=0.5)
    return module


@KIND
@pytest.mark.parametrize("shape", [(2, 12, 5, 9), (1, 3, 1, 1), (3, 40, 7, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_start_as_if_they_were_not_there_to_the_last_bit(kind, shape, dtype):
    gate = GATES[kind](shape[1], 6)
    given = 100.0 * maps(*shape).to(dtype)
    found = gate(given, maps(shape[0], 6).float())
    assert found.dtype == dtype
    assert torch.equal(found, given)


@KIND
@pytest.mark.parametrize(
    ("name", "side"), [("tiny", 32), ("vgg11", 32), ("vgg11_bn", 32), ("timm/tf_efficientnet_lite0", 64)]
)
def test_a_trunk_with_them_is_at_first_the_one_without(kind, name, side):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    plain = build_backbone(name).eval()
    view = maps(2, 3, side, side).float()
    for frozen in (0, 1):
        gated = copy.deepcopy(plain)
        gated.freeze(frozen)
        gated.add_gates(kind)
        assert next(iter(gated.gates)) == str(frozen + 1)
        query = maps(2, gated.channels).float()
        with torch.no_grad():
            assert torch.equal(gated(view, query), plain(view))
            assert torch.equal(gated.forward_rest(gated.frozen_part()(view), query), plain(view))
            for ours, theirs in zip(
                gated.forward_with_inner(view, query), plain.forward_with_inner(view), strict=True
            ):
                assert torch.equal(ours, theirs)


@KIND
def test_the_inner_map_and_the_features_are_gated_alike_however_they_are_asked_for(kind):
    torch.manual_seed(0)
    backbone = build_backbone("tiny").eval()
    backbone.add_gates(kind, [1, 3])
    learnt(backbone.gates)
    view = maps(2, 3, 32, 32).float()
    with torch.no_grad():
        features = backbone(view)
        assert torch.equal(backbone.forward_with_inner(view)[0], features)
        assert torch.equal(backbone.forward_rest(view), features)
        assert not torch.equal(features, backbone.features(view))


class TestCBAM:
    def test_factors_lie_between_0_and_2(self):
        gate = learnt(CBAM(8)).double()
        given = maps(4, 8, 6, 5)
        for strength in (1.0, 30.0):
            for value in gate.parameters():
                value.data.mul_(strength)
            factor = gate(given) / given
            assert factor.min() >= 0.0
            assert factor.max() <= 4.0  # of both together
        assert factor.std() > 0.1

    def test_channels_are_weighed_alike_wherever_the_cells_lie(self):
        gate = learnt(CBAM(8)).double()
        torch.nn.init.zeros_(gate.cell.weight)
        given = maps(2, 8, 6, 5)
        order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
        moved = given.flatten(2)[..., order].unflatten(2, (6, 5))
        torch.testing.assert_close(gate(moved).flatten(2), gate(given).flatten(2)[..., order])
        assert (gate(given) / given).amax() < 2.0

    def test_cells_are_weighed_by_their_surroundings(self):
        gate = CBAM(8).double()
        torch.nn.init.normal_(gate.cell.weight)
        given = maps(1, 8, 20, 20)
        moved = torch.roll(given, (3, 2), dims=(2, 3))
        inside = (slice(None), slice(None), slice(6, 12), slice(6, 12))
        there = (slice(None), slice(None), slice(9, 15), slice(8, 14))
        torch.testing.assert_close(gate(moved)[there], gate(given)[inside])

    def test_it_is_what_the_paper_writes_down_but_for_the_doubled_sigmoids(self):
        gate = learnt(CBAM(8)).double()
        given = maps(2, 8, 6, 5)
        even = given / given.mean(dim=(1, 2, 3), keepdim=True)

        def small_network(pooled):
            return (pooled @ gate.hidden.weight.T + gate.hidden.bias).clamp(min=0.0) @ gate.channel.weight.T

        channel = torch.sigmoid(small_network(even.mean(dim=(2, 3))) + small_network(even.amax(dim=(2, 3))))
        refined = 2.0 * channel[:, :, None, None] * even
        both = torch.stack([refined.amax(dim=1), refined.mean(dim=1)], dim=1)
        cell = torch.sigmoid(torch.nn.functional.conv2d(both, gate.cell.weight, padding=3))
        torch.testing.assert_close(
            gate(given), 4.0 * channel[:, :, None, None] * cell * given, rtol=1e-5, atol=1e-6
        )


class TestSCA:
    def test_both_weights_have_mean_one(self):
        gate, given, query = learnt(SCA(8, 6)), maps(2, 8, 4, 5).float(), maps(2, 6).float()
        channel = gate.channel(given, query)
        torch.testing.assert_close(channel.mean(dim=1), torch.ones(2))
        torch.testing.assert_close(gate.cell(given, query).mean(dim=(1, 2)), torch.ones(2))
        assert channel.std() > 0.01

    def test_channels_come_first(self):
        gate, given = learnt(SCA(8, 6)), maps(2, 8, 4, 5).float()
        by_channel = given * gate.channel(given)[:, :, None, None]
        torch.testing.assert_close(gate(given), by_channel * gate.cell(by_channel)[:, None])
        by_cell = given * gate.cell(given)[:, None]
        other_way = by_cell * gate.channel(by_cell)[:, :, None, None]
        assert (gate(given) - other_way).abs().max() > 1e-3

    def test_the_query_steers_both(self):
        gate, given = learnt(SCA(8, 6)), maps(2, 8, 4, 5).float()
        one, other = maps(2, 6).float(), 5.0 * maps(2, 6, seed=3).float()
        assert not torch.allclose(gate.channel(given, one), gate.channel(given, other))
        assert not torch.allclose(gate.cell(given, one), gate.cell(given, other))

    def test_a_look_is_steered_by_the_one_before_and_teaches_it_nothing(self):
        torch.manual_seed(0)
        model = RACNN(num_classes=3, backbone="tiny", view_sizes=(32, 32), gates="sca").eval()
        for backbone in model.backbones:
            learnt(backbone.gates)
        photos = maps(2, 3, 48, 48).float()
        output = model(photos)
        view = output.views[1].detach()
        unsteered = model.forward_scale(2, view, output.regions[1].detach())
        assert not torch.allclose(unsteered.logits, output.logits[1])
        query = output.descriptors[0].detach()
        again = model.forward_scale(2, view, output.regions[1].detach(), query=query)
        torch.testing.assert_close(again.logits, output.logits[1])
        output.logits[1].sum().backward()
        assert all(value.grad is None for value in model.backbones[0].parameters())
        assert all(value.grad is not None for value in model.backbones[1].gates.parameters())


@KIND
@pytest.mark.parametrize("trained", ["classification", "apn_init"])
def test_they_learn_with_their_trunk_alone(kind, trained):
    torch.manual_seed(0)
    model = RACNN(num_classes=3, backbone="tiny", view_sizes=(32, 32, 32), gates=kind)
    scales = (2,) if trained == "classification" else (1,)
    phase = make_phase(kind=trained, scales=scales, epochs=1, lr=0.5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train_only(model, phase)
    batch = {
        "image": torch.randint(0, 256, (6, 3, 40, 40), dtype=torch.uint8),
        "label": torch.arange(6) % 3,
        "noise": torch.rand(6, phase.num_noise()),
    }
    if trained == "apn_init":
        batch["pseudo_box"] = torch.tensor([-0.6, -0.2, 0.3, 0.4]).repeat(6, 1)
    for _ in range(2):  # at first only last layers have a derivative
        phase.losses(model, batch)["loss"].backward()
        build_optimizer(model, phase).step()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    gates = {key for key in moved if ".gates." in key}
    assert {key.split(".")[1] for key in gates} == ({"1"} if trained == "classification" else set())


@KIND
def test_activations_that_are_computed_again_give_the_same_derivatives(kind):
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        backbone = build_backbone("tiny").train()
        backbone.add_gates(kind)
        learnt(backbone.gates)
        if again:
            backbone.save_memory()
        backbone(maps(2, 3, 32, 32).float(), maps(2, backbone.channels).float()).square().mean().backward()
        found.append({key: value.grad for key, value in backbone.named_parameters()})
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        assert torch.equal(value, found[1][key]), key


@pytest.mark.parametrize(
    ("backbone", "frozen", "stages", "said"),
    [
        ("tiny", 0, [4], "gated_stages: 4, but the stages of this backbone that are not frozen are 1 to 3"),
        ("tiny", 2, [2], "are 3 to 3"),
        ("torchvision/vit_b_16", 0, [], "stages of this backbone are not known"),
    ],
)
def test_stages_that_cannot_be_gated_are_refused(backbone, frozen, stages, said):
    with torch.device("meta"), pytest.raises(ConfigError, match=said):
        RACNN(
            num_classes=2,
            backbone=backbone,
            view_sizes=(224, 224),
            frozen_stages=frozen,
            gates="cbam",
            gated_stages=stages,
        )


def test_what_does_nothing_is_refused(tiny):
    looks = [{"kind": "looks"}]
    for changes, said in (
        ({"model__gated_stages": [2]}, "does nothing with none"),
        ({"model__gates": "cbam", "model__apn": "response", "schedule": looks}, "which gates learn by"),
        ({"model__pooling": "attention", "model__apn": "response", "schedule": looks}, "which it learns by"),
        ({"model__gates": "sca", "model__apn": "response", "schedule": looks}, "steers by the look before"),
    ):
        with pytest.raises(ConfigError, match=said):
            tiny(**changes)
