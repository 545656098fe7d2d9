"""Where a network's own evidence lies, and a location network that points there."""

import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from racnn.models.recurrent.network import Pointer, Recurrent, middles
from racnn.models.recurrent.phases import PolicyInit
from racnn.models.recurrent.places import covered_share, evidence, taught_places
from racnn.ops.regions import whole


def network(**options):
    torch.manual_seed(0)
    settings = {
        "num_classes": 4,
        "backbone": "tiny",
        "view_sizes": (32,) * 3,
        "patches": 1,
        "side": 0.5,
        "first": "whole",
        "memory": "residual",
        "units": 16,
        "coarse_map": 4,
    }
    return Recurrent(**settings | options)


def photos(num=6):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num, 3, 64, 64), dtype=torch.uint8, generator=generator), torch.arange(
        num
    ) % 4


@pytest.mark.parametrize("memory", ["residual", "lstm", "two_layer"])
@pytest.mark.parametrize("descriptor", ["mean", "root"])
def test_evidence_is_what_a_cell_adds_to_the_true_class(memory, descriptor):
    model, labels = network(memory=memory, descriptor=descriptor).double().eval(), photos()[1]
    features = torch.rand(6, 96, dtype=torch.float64) + 0.1
    coarse = torch.randn(6, 96, 4, 4, dtype=torch.float64)
    found = evidence(model, features, coarse, labels)
    assert not found.requires_grad
    assert all(value.grad is None for value in model.parameters())

    def contrast(given):
        state = model.remembered(given, whole(6).double(), model.start(given))
        logits = model.classifier(model.memory.reads(state))
        return logits.gather(1, labels[:, None])[:, 0] - logits.mean(dim=1)

    step = 1e-5
    for row, column in [(0, 0), (1, 3), (3, 2)]:
        cell = step * coarse[:, :, row, column]
        added = (contrast(features + cell) - contrast(features - cell)) / (2.0 * step)
        torch.testing.assert_close(found[:, row, column].double(), F.relu(added), rtol=1e-3, atol=1e-6)


def test_evidence_is_found_where_a_channel_is_silent():
    """The root of 0 has no slope."""
    model, labels = network(descriptor="root").eval(), photos()[1]
    features = torch.rand(6, 96)
    features[:, :40] = 0.0
    found = evidence(model, features, torch.rand(6, 96, 4, 4), labels)
    assert bool(found.isfinite().all())
    assert float(found.sum()) > 0.0


@pytest.mark.parametrize(("grid", "num", "side"), [(4, 5, 0.5), (3, 7, 0.3), (9, 4, 0.2)])
def test_a_glimpse_covers_as_much_as_its_side(grid, num, side):
    covered = covered_share(grid, num, side)
    torch.testing.assert_close(covered.sum(dim=1), torch.full((grid,), side * num))
    assert float(covered.min()) >= 0.0
    assert float(covered.max()) <= 1.0 + 1e-6
    torch.testing.assert_close(covered, covered.flip(0, 1))


def test_each_glimpse_is_sent_to_what_none_has_seen():
    shown = torch.zeros(2, 4, 4)
    shown[0, 0, 0], shown[0, 3, 3], shown[0, 0, 3] = 3.0, 2.0, 1.0
    shown[1, 1:3, 1:3] = 1.0
    (one, two, three), worth = taught_places(shown, 3, side=0.5, grid=3)
    assert torch.stack(worth).tolist() == [[True, True], [True, False], [True, False]]
    assert one.tolist() == [[-1.0, -1.0], [0.0, 0.0]]
    assert two[0].tolist() == [1.0, 1.0]
    assert three[0].tolist() == [1.0, -1.0]
    assert shown[0, 0, 0] == 3.0  # what was given is as it was


@pytest.mark.parametrize("cell", [(0, 0), (1, 3), (2, 2)])
def test_of_places_that_see_as_much_the_nearest_is_taught_and_of_nothing_none(cell):
    """Nothing may lean to a corner: what is mirrored is taught the mirrored place."""
    shown = torch.zeros(3, 5, 5)
    shown[0, *cell], shown[1, cell[0], 4 - cell[1]] = 1.0, 1.0
    (place, after), (worth, still) = taught_places(shown, 2, side=0.5, grid=5)
    assert worth.tolist() == [True, True, False]
    assert still.tolist() == [False] * 3
    assert place[0].tolist() == [-place[1][0].item(), place[1][1].item()]
    middle = torch.tensor([2.0 * (cell[1] + 0.5) / 5.0 - 1.0, 2.0 * (cell[0] + 0.5) / 5.0 - 1.0])
    assert bool(
        ((0.5 * place[0] - middle).abs() <= 0.3 + 1e-6).all()
    )  # whole cell in sight, and as near as the grid has it
    assert after.shape == (3, 2)


@pytest.mark.parametrize("by", ["bias", "query"])
def test_a_pointer_looks_at_the_cell_that_answers_its_query(by):
    pointer = Pointer(units=8, channels=5, num=4, side=0.5)
    coarse = torch.rand(3, 5, 4, 4)
    coarse[:, 0] = 0.0
    for number, (row, column) in enumerate([(0, 0), (1, 2), (3, 3)]):
        coarse[number, 0, row, column] = 1.0
    found = torch.tensor([[200.0, 0.0, 0.0, 0.0, 0.0]])
    with torch.no_grad():
        for layer in (pointer.query, pointer.key, pointer.bias):
            layer.weight.zero_()
            layer.bias.zero_()
        if by == "bias":
            pointer.bias.weight.copy_(found)
        else:
            pointer.query.bias[3] = math.sqrt(len(pointer.query.bias))
            pointer.key.weight[3] = found[0]
    place = pointer(torch.randn(3, 8), coarse)
    # middles at -0.75, -0.25, 0.25, 0.75, of glimpses whose own are within 0.5
    torch.testing.assert_close(place, torch.tensor([[-1.0, -1.0], [0.5, -0.5], [1.0, 1.0]]))
    assert middles(4, 0.5).abs().max() == 1.0


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_teaching_moves_the_location_network_alone_and_brings_it_there(device, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    model = network().to(device)
    images, labels = (value.to(device) for value in photos())
    batch = {"image": images, "label": labels}
    phase = PolicyInit(kind="policy_init", epochs=1, lr=0.1).resolved(3)
    assert phase.trained(model) == ([model.location], [])
    for value in model.parameters():
        value.requires_grad_(False)
    for value in model.location.parameters():
        value.requires_grad_(True)
    before = phase.losses(model, batch)["loss"]
    before.backward()
    if device == "meta":
        assert before.is_meta
        return
    optimizer = torch.optim.Adam(model.location.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        phase.losses(model, batch)["loss"].backward()
        optimizer.step()
    assert phase.losses(model, batch)["loss"].item() < 0.3 * before.item()
