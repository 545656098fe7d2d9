"""Soft attention: it starts as the mean, weighs cells wherever they are, and is drawn."""

import json
from dataclasses import replace

import pytest
import torch

from racnn.engine.loop import build_optimizer, train_only
from racnn.engine.predictor import load
from racnn.evaluation import draw
from racnn.models import RACNN
from racnn.models.attention import CellAttention
from racnn.models.racnn import make_phase
from why import measure as peaks


def features(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def learnt(channels=6, seed=1):
    """Return an attention that is no longer at its start."""
    torch.manual_seed(seed)
    module = CellAttention(channels, hidden=5)
    torch.nn.init.normal_(module.score.weight)
    return module


@pytest.mark.parametrize("shape", [(2, 6, 7, 7), (3, 6, 1, 1), (1, 6, 5, 9)])
def test_it_starts_as_the_mean_to_the_last_bit(shape):
    assert torch.equal(CellAttention(6)(features(*shape)), torch.ones(shape[0], *shape[2:]))


def test_a_network_starts_as_the_one_without():
    torch.manual_seed(0)
    plain = RACNN(num_classes=4, backbone="tiny", view_sizes=(32, 32, 32)).eval()
    attended = RACNN(num_classes=4, backbone="tiny", view_sizes=(32, 32, 32), pooling="attention").eval()
    missing = attended.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing
    assert all(key.startswith("attentions.") for key in missing)
    ours, theirs = (model(features(2, 3, 48, 48)) for model in (attended, plain))
    assert torch.equal(ours.fused, theirs.fused)
    for a, b in zip(ours.scales, theirs.scales, strict=True):
        assert torch.equal(a.descriptor, b.descriptor)
        assert torch.equal(a.region, b.region)
        assert torch.equal(a.attention, torch.ones_like(a.attention))
    assert theirs.attentions is None


def test_weights_have_mean_one_and_move_with_the_cells():
    module, maps = learnt(), features(2, 6, 4, 5)
    weights = module(maps)
    torch.testing.assert_close(weights.mean(dim=(1, 2)), torch.ones(2))
    assert weights.std() > 0.01
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    moved = maps.flatten(2)[..., order].unflatten(2, (4, 5))
    torch.testing.assert_close(module(moved).flatten(1), weights.flatten(1)[:, order])


def test_a_constant_for_all_cells_changes_nothing():
    module, maps = learnt(), features(2, 6, 4, 5)
    plain = module(maps)
    module.score.bias = torch.nn.Parameter(torch.tensor([70.0]))
    torch.testing.assert_close(module(maps), plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(module(1000.0 * maps), module(maps), rtol=1e-4, atol=1e-4)


def test_large_scores_choose_one_cell():
    module = learnt()
    module.score.weight.data.mul_(1e4)
    weights = module(features(1, 6, 4, 5)).detach()
    assert weights.isfinite().all()
    assert weights.max() == pytest.approx(20.0)


def test_the_descriptor_is_the_weighted_mean_and_the_evidence_adds_up_to_it():
    torch.manual_seed(0)
    model = RACNN(num_classes=4, backbone="tiny", view_sizes=(32, 32), pooling="attention").eval()
    for module in model.attentions:
        torch.nn.init.normal_(module.score.weight)
    view = features(2, 3, 32, 32)
    found = model.forward_scale(1, view, torch.tensor([[0.0, 0.0, 1.0]] * 2))
    raw = model.backbone(1)(view)
    torch.testing.assert_close(
        found.descriptor, (raw * found.attention[:, None]).sum(dim=(2, 3)) / raw[0, 0].numel()
    )
    torch.testing.assert_close(model.describe(model.extract(1, view)), found.descriptor)
    one, other = torch.tensor([0, 1]), torch.tensor([2, 3])
    both = [
        model.difference(1, found.weighed, *pair).sum(dim=(1, 2)) for pair in ((one, other), (other, one))
    ]
    bias = model.classifiers[0].bias
    margin = (found.logits - bias).gather(1, one[:, None]) - (found.logits - bias).gather(1, other[:, None])
    torch.testing.assert_close(both[0] - both[1], margin[:, 0])


@pytest.mark.parametrize("kind", ["classification", "apn_init", "ranking", "fusion"])
def test_it_learns_with_the_classifier_of_its_scale_alone(kind):
    torch.manual_seed(0)
    model = RACNN(num_classes=3, backbone="tiny", view_sizes=(32, 32, 32), pooling="attention")
    scales = {"fusion": (), "classification": (2,)}.get(kind, (1,))
    phase = make_phase(
        kind=kind, scales=scales, epochs=1, lr=0.5, **({"margin": 2.0} if kind == "ranking" else {})
    )
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train_only(model, phase)
    batch = {
        "image": torch.randint(0, 256, (6, 3, 40, 40), dtype=torch.uint8),
        "label": torch.arange(6) % 3,
        "pseudo_box": torch.tensor([-0.6, -0.2, 0.3, 0.4]).repeat(6, 1),
        "noise": torch.rand(6, phase.num_noise()),
    }
    phase.losses(model, batch)["loss"].backward()
    build_optimizer(model, phase).step()
    moved = {
        key.rsplit(".", 2)[0]
        for key, value in model.state_dict().items()
        if not torch.equal(value, before[key])
    }
    assert {key for key in moved if key.startswith("attentions")} == (
        {"attentions.1"} if kind == "classification" else set()
    )


def titles(found, monkeypatch):
    """Return the title that a picture of attention is drawn with."""
    with monkeypatch.context() as patched:
        patched.setattr(draw, "panel", lambda *given: given[-1])
        return found.show(attention=True)


def test_a_run_of_it_is_evaluated_and_drawn(tiny_file, racnn, tmp_path, finished, monkeypatch):
    schedule = [{"kind": "classification", "epochs": 1, "lr": 0.05}]
    config = tiny_file(
        tmp_path / "a.yaml", out=tmp_path / "run", schedule=schedule, model__pooling="attention"
    )
    assert racnn("train", "--config", config).code == 0
    best = tmp_path / "run" / "best.pt"
    photo = tmp_path / "a.png"
    found = load(best).predict(torch.randint(0, 256, (60, 80, 3), dtype=torch.uint8).numpy())
    assert len(found.attention) == 3
    assert found.attention[0].std() > 0.0
    assert "more than the mean" in titles(found, monkeypatch)
    alike = replace(found, attention=[torch.ones_like(each) for each in found.attention])
    assert "all cells count alike" in titles(alike, monkeypatch)
    found.show(attention=True).save(photo)
    assert racnn("evaluate", best).code == 0
    rows = peaks(load(best), limit=6)
    assert {name for name in rows if "attention" in name} == {f"look {i}: attention" for i in (1, 2, 3)}
    words = ("visualize", best, photo, "--attention", "--out", tmp_path / "seen")
    result = racnn(*words)
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "seen" / "regions.json").read_text())[0]["picture"] == "a.png"
    both = racnn(*words, "--why")
    assert both.code == 2
    assert "exclude each other" in both.err
    none = racnn("visualize", finished.folder / "best.pt", photo, "--attention", "--out", tmp_path / "none")
    assert none.code == 2
    assert "model.pooling: mean" in none.err
