"""Every way of looking, from one configuration: it trains, goes on where it was stopped, is evaluated, drawn and exported."""

import csv
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pieces import train_in_pieces

from level_heads import measure
from racnn.engine.checkpoint import digest, load_checkpoint
from racnn.engine.evaluator import data_of, predict_split
from racnn.engine.predictor import load
from racnn.engine.trainer import fit
from racnn.models import RACNN

CPU = torch.device("cpu")
SCHEDULE = [
    {"kind": "classification", "epochs": 1, "lr": 0.05},
    {"kind": "apn_init", "scales": [1], "epochs": 1, "optimizer": "adamw", "lr": 0.01},
    {"kind": "apn_init", "scales": [2], "epochs": 1, "optimizer": "adamw", "lr": 0.01, "target": "peak"},
    {"kind": "classification", "scales": [3], "epochs": 1, "lr": 0.05},
    {"kind": "localise", "epochs": 1, "lr": 0.001},
    {"kind": "ranking", "epochs": 1, "lr": 0.001, "gradient": "smoothed"},
    {"kind": "fusion", "epochs": 1, "lr": 0.01},
]
SYSTEMS = {
    "affine": {"sampler": "affine"},
    "parallel": {"regions": "parallel", "bounds": [[0.2, 0.9], [0.1, 0.5]]},
    "stn": {"sampler": "affine", "regions": "parallel"},
    "draw": {"sampler": "gaussian", "sigma": 0.7},
    "attention": {"pooling": "attention"},
    "cbam": {"gates": "cbam"},
    "sca": {"gates": "sca", "gated_stages": [2, 3]},
}
EACH = pytest.mark.parametrize("name", SYSTEMS)


def unsettled(model):
    """Move what starts without an effect, so that it has one."""
    torch.manual_seed(1)
    for key, value in model.named_parameters():
        if key.startswith(("apns", "attentions")) or ".gates." in key:
            torch.nn.init.normal_(value, std=0.3)
    return model


@EACH
@pytest.mark.slow
def test_it_trains_goes_on_and_is_evaluated_drawn_and_exported(name, tiny, racnn, tmp_path):
    changes = {f"model__{key}": value for key, value in SYSTEMS[name].items()}
    config = {"schedule": SCHEDULE, "run__num_preview": 2, "data__synthetic__num_train": 48, **changes}
    fit(tiny(tmp_path / "whole", **config), device=CPU)
    stopped = []
    train_in_pieces(tiny(tmp_path / "pieces", **config), stopped, every=2)
    assert set(stopped) >= {"classification", "apn_init", "localise", "ranking"}
    one, other = (
        digest(load_checkpoint(tmp_path / each / "last.pt")["model"]) for each in ("whole", "pieces")
    )
    assert one == other
    best, photo = tmp_path / "whole" / "best.pt", tmp_path / "photo.png"
    assert racnn("evaluate", best).code == 0
    load(best).predict(np.full((60, 80, 3), 90, np.uint8)).show().save(photo)
    assert racnn("visualize", best, photo, "--out", tmp_path / "seen").code == 0
    pytest.importorskip("onnx", reason="needs the extra export")
    assert racnn("export", best, "--out", tmp_path / "network.onnx").code == 0


@EACH
def test_a_step_runs_on_the_meta_device(name, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    model = RACNN(num_classes=3, backbone="tiny", view_sizes=(32, 32, 32), **SYSTEMS[name]).to("meta")
    output = model(torch.zeros(4, 3, 48, 48, dtype=torch.uint8, device="meta"))
    output.fused.sum().backward()
    assert output.fused.is_meta
    width = 4 if SYSTEMS[name].get("sampler") == "affine" else 3
    assert [region.shape for region in output.regions] == [(4, 3), (4, width), (4, width)]


class TestParallel:
    @pytest.fixture
    def model(self):
        torch.manual_seed(0)
        return unsettled(
            RACNN(
                num_classes=3, backbone="tiny", view_sizes=(32, 24, 16), regions="parallel", sampler="affine"
            )
        ).eval()

    def test_every_region_is_proposed_from_the_first_view(self, model):
        photos = torch.rand(2, 3, 48, 48)
        with torch.no_grad():
            output = model(photos)
            for number in (1, 2):
                assert torch.equal(output.regions[number], model.apns[number - 1](output.scales[0].features))
            model.apns[0].out.bias.add_(1.0)
            moved = model(photos)
        assert not torch.equal(moved.regions[1], output.regions[1])
        assert torch.equal(moved.regions[2], output.regions[2])
        assert all(torch.equal(frame, output.regions[0]) for frame in output.frames)

    def test_a_look_teaches_the_network_of_its_own_region_alone(self, model):
        model.train().logits = None
        model(torch.rand(2, 3, 48, 48)).logits[2].sum().backward()
        touched = [any(p.grad is not None for p in apn.parameters()) for apn in model.apns]
        assert touched == [False, True]

    def test_two_views_have_nothing_to_be_parallel(self, tiny):
        with pytest.raises(ValueError, match="of two there is one region"):
            tiny(model__regions="parallel", model__view_sizes=[32, 32], schedule=SCHEDULE[:1])
        with pytest.raises(ValueError, match="not in the view before"):
            tiny(model__regions="parallel", model__zoom_from="parent", schedule=SCHEDULE[:1])


def taxonomy(path, names, groups):
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["kind", "genus", "family"])
        table.writerows([name, *each] for name, each in zip(names, groups, strict=True))
    return path


GROUPS = [(f"g{number // 2}", f"f{number // 4}") for number in range(8)]


def mgcnn(tmp_path, **changes):
    """Return the configuration of heads and regions a level, with the taxonomy that it needs."""
    from racnn.data.sources.drawing import SPECIES

    return {
        "schedule": [{"kind": "looks"}],
        "data__levels": str(taxonomy(tmp_path / "levels.csv", SPECIES, GROUPS)),
        "model__apn": "response",
        "model__regions": "parallel",
        "model__level_heads": ["genus", "family"],
        "model__view_sizes": [32] * 5,
        "run__num_preview": 2,
        **changes,
    }


@pytest.mark.parametrize("own_regions", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_heads_a_level_are_fitted_evaluated_and_exported(own_regions, tiny, racnn, tmp_path):
    changes = {} if own_regions else {"model__regions": "nested", "model__view_sizes": [32, 32]}
    fit(tiny(tmp_path / "run", **mgcnn(tmp_path, **changes)), device=CPU)
    best = tmp_path / "run" / "best.pt"
    model = load(best).model
    assert model.levels.groups[1].tolist() == [0, 0, 0, 0, 4, 4, 4, 4]
    assert model.levels.joined[0].weight.abs().sum() > 0.0
    trained = load(best)
    seen = predict_split(trained, data_of(trained).splits["val"], descriptors=True)
    rows = measure(trained, seen.descriptors, seen.labels)
    assert list(rows) == ["classes", "genus", "family"]
    assert rows["classes"][2] == (seen.fused.argmax(dim=1) == seen.labels).float().mean()
    assert all(0.0 <= share <= 1.0 for name in ("genus", "family") for share in rows[name])
    model.levels.trust.fill_(1.0)  # then levels say what their heads say, the coarsest last
    alone = measure(SimpleNamespace(model=model), seen.descriptors, seen.labels)
    assert alone["family"][2] == alone["family"][1] == rows["family"][1]
    found = racnn("evaluate", best, "--levels", tmp_path / "levels.csv")
    assert found.code == 0, found.err
    assert "family" in found.out
    if not own_regions:  # with them in tests/export, of a smaller network
        pytest.importorskip("onnx", reason="needs the extra export")
        assert racnn("export", best, "--out", tmp_path / "network.onnx").code == 0
