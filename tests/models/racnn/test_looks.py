"""Looks on a frozen trunk: what is fitted, from what, and that a run which is stopped ends with the same bits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import tiny_values

from racnn.config import parse_config
from racnn.data import build_data, eval_loader
from racnn.engine.checkpoint import digest, load_checkpoint, read_rows, write_rows
from racnn.engine.predictor import load, network_digest
from racnn.engine.trainer import fit
from racnn.errors import ConfigError
from racnn.models import RACNN
from racnn.models.racnn import looks
from racnn.models.racnn.apn import ObjectProposal, PartProposal
from racnn.models.racnn.heads import fit_head
from racnn.ops.regions import whole

CPU = torch.device("cpu")
FROZEN = {
    "backbone": "tiny",
    "view_sizes": [32, 32, 32],
    "shared_backbone": True,
    "apn": "response",
    "descriptor": "root",
    "mask": False,
}


def values(out, **changes):
    found = tiny_values(out, schedule=[{"kind": "looks"}], **changes)
    found["model"] = {**FROZEN, **found["model"]}
    return found


def run(out, **changes):
    config = parse_config(values(out, **changes), origin="test")
    return fit(config, device=CPU)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("looks") / "run"
    best, report = run(folder)
    return folder, best, report


def test_the_trunk_stays_as_it_was_and_all_else_is_fitted(fitted):
    _folder, best, _report = fitted
    trained = load(best).model
    torch.manual_seed(0)
    fresh = RACNN(num_classes=trained.num_classes, **FROZEN)
    assert digest(trained.backbones.state_dict()) == digest(fresh.backbones.state_dict())
    for name in ("classifiers.0.weight", "classifiers.2.bias", "apns.0.direction", "fusion.weight"):
        assert not torch.equal(trained.state_dict()[name], fresh.state_dict()[name]), name
    assert trained.apns[0].direction.norm() == pytest.approx(1.0, abs=1e-5)


def test_heads_are_those_of_the_descriptors_in_use(fitted):
    _folder, best, _report = fitted
    trained = load(best)
    data = build_data(trained.config.data, seed=0, val_names=trained.val_names)
    batches = list(eval_loader(data.splits["train"], trained.config.data))
    images, labels = (torch.cat([batch[key] for batch in batches]) for key in ("image", "label"))
    with torch.no_grad():
        output = trained.model(images)
    head = fit_head(output.descriptors[0], labels, trained.model.num_classes)
    torch.testing.assert_close(trained.model.classifiers[0].weight, head.weight, rtol=1e-3, atol=1e-3)
    # the fused answer is the weighted sum of the looks' answers, and nothing else
    parts = torch.stack(output.logits)
    flat = parts - parts.mean(dim=2, keepdim=True)
    fused = (output.fused - output.fused.mean(dim=1, keepdim=True)).flatten()
    weights = torch.linalg.lstsq(flat.flatten(1).T, fused[:, None]).solution
    torch.testing.assert_close((flat.flatten(1).T @ weights)[:, 0], fused, rtol=1e-3, atol=1e-3)
    assert (weights > 0).all()


def test_early_exit_is_chosen_out_of_fold_and_every_command_takes_it(fitted, racnn, tmp_path):
    _folder, best, report = fitted
    trained = load(best)
    assert trained.early_exit is not None
    assert trained.early_exit.network == network_digest(trained)
    assert set(report["early_exit"]) == {"threshold", "later", "top1", "lost", "cost", "stopped"}
    result = racnn("evaluate", best, "--early-exit", "--json", tmp_path / "report.json")
    assert "chosen in training by answers out of fold" in result.out
    chosen = json.loads((tmp_path / "report.json").read_text())["early_exit"]["choice"]
    assert chosen["threshold"] == trained.early_exit.threshold
    assert racnn("inspect", best).code == 0
    assert racnn("export-weights", best, "--out", tmp_path / "net.safetensors").code == 0
    assert load(tmp_path / "net.safetensors").early_exit == trained.early_exit
    photo = Path(__file__).parents[3] / "docs" / "demo.png"
    assert racnn("predict", tmp_path / "net.safetensors", photo, "--early-exit").code == 0
    assert racnn("visualize", best, photo, "--out", tmp_path / "pictures").code == 0


def test_a_choice_for_other_weights_is_not_taken(fitted, tmp_path):
    from racnn.engine.checkpoint import save_checkpoint

    _folder, best, _report = fitted
    content = load_checkpoint(best)
    content["model"]["fusion.bias"] = content["model"]["fusion.bias"] + 1.0
    save_checkpoint(tmp_path / "other.pt", content)
    assert load(tmp_path / "other.pt").early_exit is None


def test_the_same_run_ends_with_the_same_bits(fitted, tmp_path):
    _folder, best, _report = fitted
    again, _ = run(tmp_path / "again")
    assert digest(load_checkpoint(again)["model"]) == digest(load_checkpoint(best)["model"])


@pytest.mark.slow
def test_a_killed_run_goes_on_from_the_looks_it_had_read(fitted, tmp_path):
    """Killed at every file of descriptors, it reads no look twice and ends with the same bits."""
    _folder, best, _report = fitted
    file = tmp_path / "looks.yaml"
    file.write_text(yaml.safe_dump(values(tmp_path / "run")))
    command = [sys.executable, "-m", "racnn", "train", "--config", str(file), "--device", "cpu"]
    folder = tmp_path / "run" / "descriptors"
    seen = 0
    for more in ([], ["--resume"], ["--resume"]):
        process = subprocess.Popen([*command, *more], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        limit = time.monotonic() + 100
        while process.poll() is None and len(list(folder.glob("*.safetensors"))) <= seen:
            assert time.monotonic() < limit
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        _, err = process.communicate()
        assert b"Traceback" not in err
        seen = len(list(folder.glob("*.safetensors")))
    stamps = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert stamps
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all((folder / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())
    ended = load_checkpoint(tmp_path / "run" / "best.pt")
    assert digest(ended["model"]) == digest(load_checkpoint(best)["model"])


def test_rows_of_something_else_or_damaged_are_not_taken(tmp_path):
    file = tmp_path / "rows" / "look.safetensors"
    rows = {"descriptors": torch.rand(4, 3), "labels": torch.arange(4)}
    write_rows(file, "key", rows)
    found = read_rows(file, "key")
    assert found is not None
    assert all(torch.equal(found[name], rows[name]) for name in rows)
    assert read_rows(file, "another") is None
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    assert read_rows(file, "key") is None
    assert read_rows(tmp_path / "missing", "key") is None


def test_a_full_disk_costs_only_what_was_to_be_kept(fitted, tmp_path, monkeypatch, capsys):
    from racnn.engine import evaluator

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluator, "write_rows", full)
    best, _ = run(tmp_path / "run")
    assert "No space left on device" in capsys.readouterr().out
    assert digest(load_checkpoint(best)["model"]) == digest(load_checkpoint(fitted[1])["model"])


def test_overwrite_removes_the_descriptors(fitted, tmp_path, racnn):
    run(tmp_path / "run")
    file = tmp_path / "one.yaml"
    file.write_text(
        yaml.safe_dump(
            tiny_values(
                tmp_path / "run",
                schedule=[{"kind": "classification", "scales": [1], "epochs": 1, "lr": 0.01}],
            )
        )
    )
    assert racnn("train", "--config", file, "--overwrite").code == 0
    assert not (tmp_path / "run" / "descriptors").exists()


def test_one_look_has_no_fusion_and_nothing_to_stop_early(tmp_path):
    best, report = run(tmp_path / "run", model__view_sizes=[32])
    assert report["top1"].keys() == {"scale_1", "mean"}
    trained = load(best)
    assert not trained.fused
    assert trained.early_exit is None


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"apn": "compact"}, "model.apn response"),
        ({"zoom_from": "parent"}, "zoom_from source"),
        ({"backbone": "vgg11"}, "needs model.weights"),
    ],
)
def test_what_cannot_be_fitted_is_refused(model, said, tmp_path):
    found = values(tmp_path)
    found["model"].update(model)
    with pytest.raises(ConfigError, match=said):
        parse_config(found, origin="test")


def test_regions_that_are_read_cannot_be_trained(tmp_path):
    found = values(tmp_path)
    found["schedule"] = [{"kind": "ranking", "epochs": 1, "lr": 0.1}]
    with pytest.raises(ConfigError, match="there are none"):
        parse_config(found, origin="test")


def test_heads_are_not_judged_by_photos_that_the_trunk_has_learnt(tmp_path):
    found = values(tmp_path)
    classify = {"kind": "classification", "epochs": 1, "lr": 0.01}
    found["schedule"] = [classify, {"kind": "looks"}]
    with pytest.raises(ConfigError, match="have not seen, and the trunk was trained on these before"):
        parse_config(found, origin="test")
    found["schedule"] = [{"kind": "looks"}, classify]
    parse_config(found, origin="test")
    found["schedule"] = [classify, {"kind": "looks", "photos": "held_out"}]
    found["data"]["held_out_fraction"] = 0.4
    parse_config(found, origin="test")


class TestProposals:
    def test_without_evidence_it_is_the_middle(self):
        region = PartProposal(bounds=(0.2, 0.8), side=0.4)(torch.zeros(2, 5, 5))
        torch.testing.assert_close(region, torch.tensor([[0.0, 0.0, 0.4]] * 2))

    def test_the_object_is_where_the_direction_shows(self):
        proposal = ObjectProposal(channels=2, bounds=(0.1, 0.95), trim=0.0, margin=1.0)
        proposal.direction.copy_(torch.tensor([1.0, 0.0]))
        inner = torch.zeros(1, 2, 8, 8)
        inner[:, 1] = 1.0
        inner[:, :, 2:4, 4:6] = torch.tensor([1.0, 0.0])[:, None, None]
        torch.testing.assert_close(proposal(inner), torch.tensor([[0.25, -0.25, 0.25]]))

    def test_before_it_is_fitted_it_proposes_the_most_it_may(self):
        proposal = ObjectProposal(channels=2, bounds=(0.1, 0.9))
        torch.testing.assert_close(proposal(torch.rand(3, 2, 6, 6)), torch.tensor([[0.0, 0.0, 0.9]] * 3))

    def test_it_can_be_exported(self):
        """Each proposal by itself; of the whole network the CPU's crop cannot be yet."""
        generator = torch.Generator().manual_seed(0)
        fitted = ObjectProposal(channels=4, bounds=(0.1, 0.95))
        fitted.direction.copy_(torch.tensor([1.0, -1.0, 0.5, 0.2]))
        for proposal, shape in ((fitted, (2, 4, 9, 9)), (PartProposal(bounds=(0.2, 0.8)), (2, 9, 9))):
            first, other = torch.rand(2, *shape, generator=generator)
            graph = torch.export.export(proposal, (first,)).module()
            assert torch.equal(graph(other), proposal(other))

    def test_the_part_is_where_the_evidence_is(self):
        evidence = torch.zeros(1, 9, 9)
        evidence[0, 2, 6] = 5.0
        region = PartProposal(bounds=(0.2, 0.8), side=0.4)(evidence)
        assert region[0, 2] == pytest.approx(0.4)
        assert region[0, 0] == pytest.approx(2 * 6.5 / 9 - 1, abs=0.25)

    def test_evidence_adds_up_to_the_logits(self):
        torch.manual_seed(0)
        model = RACNN(num_classes=3, **FROZEN).eval()
        features = torch.rand(2, 96, 4, 4)
        descriptor = model.describe(features)
        assert descriptor.norm(dim=1).tolist() == pytest.approx([1.0, 1.0])
        mean = features.mean(dim=(2, 3))
        torch.testing.assert_close(descriptor, F.normalize(mean.sqrt(), dim=1), atol=1e-3, rtol=1e-2)
        cells = torch.einsum("bc,bchw->bhw", model.gain(features), features)
        torch.testing.assert_close(cells.mean(dim=(1, 2)), (mean * model.gain(features)).sum(dim=1))


def test_what_is_read_of_a_look_is_what_the_network_makes_of_it(fitted):
    _folder, best, _report = fitted
    trained = load(best)
    data = build_data(trained.config.data, seed=0, val_names=trained.val_names)
    batches = list(eval_loader(data.splits["train"], trained.config.data))
    first = looks.read_look(trained.model, batches, 1, device=CPU)
    with torch.no_grad():
        output = trained.model(torch.cat([batch["image"] for batch in batches]))
    torch.testing.assert_close(first["descriptors"], output.descriptors[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first["next_region"], output.regions[1], rtol=1e-4, atol=1e-4)
    second = looks.read_look(trained.model, batches, 2, region=first["next_region"], device=CPU)
    assert "next_region" not in second
    torch.testing.assert_close(second["descriptors"], output.descriptors[1], rtol=1e-3, atol=1e-4)
    weight = trained.model.classifiers[1].weight
    contrast = weight[output.logits[1].argmax(dim=1)] - weight.mean(dim=0)
    told = looks.read_look(
        trained.model, batches, 2, region=first["next_region"], contrast=contrast.detach(), device=CPU
    )
    torch.testing.assert_close(told["next_region"], output.regions[2], rtol=1e-4, atol=1e-4)
    assert torch.equal(whole(2), torch.tensor([[0.0, 0.0, 1.0]] * 2))


class TestWhichRegionOne:
    """What the photos have in common, or where their classes show: by how much evidence regions hold."""

    def test_evidence_held_is_its_share_beyond_that_of_the_view(self):
        evidence = torch.zeros(2, 4, 4)
        evidence[0, 1, 2] = 3.0
        evidence[1, 0, 0], evidence[1, 3, 3] = 1.0, 1.0
        region = torch.tensor([[0.0, 0.0, 0.5], [0.0, 0.0, 0.5]])  # the four cells in the middle of 16
        assert looks.evidence_held(evidence, region) == pytest.approx((1.0 + 0.0) / 2 - 0.25)
        assert looks.evidence_held(evidence, torch.tensor([[0.0, 0.0, 1.0]] * 2)) == pytest.approx(0.0)

    @pytest.mark.parametrize("side", [1, 5])
    def test_a_small_object_is_sought_where_its_class_shows(self, side):
        """A large one where the photos have it in common, which shows all of it."""
        num, classes, width = 60, 3, 96
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        model = RACNN(num_classes=classes, **FROZEN)
        labels = torch.arange(num) % classes
        channels = model.apns[0].mean.numel()
        features = 0.1 * torch.rand(num, width, 10, 10, generator=generator)
        inner = 0.1 * torch.rand(num, channels, 10, 10, generator=generator)
        inner[:, 0, :, :5] += 1.0  # two grounds
        inner[:, 1, :, 5:] += 1.0 if side == 1 else 0.0
        inner[:, 0, :, 5:] += 0.0 if side == 1 else 1.0
        for photo in range(num):
            row, column = 3 * photo % (10 - side), 7 * photo % (10 - side)
            inside = (photo, slice(None), slice(row, row + side), slice(column, column + side))
            inner[inside] = 0.1
            inner[photo, 2, row : row + side, column : column + side] = 1.0
            features[photo, labels[photo], row : row + side, column : column + side] += 20.0 / side**2
        found = {
            "features": features,
            "inner": inner,
            "labels": labels,
            "descriptors": model.describe(features),
        }
        said = []
        context = SimpleNamespace(
            model=model, num_photos=lambda _: num, read=lambda *_, **__: found, log=said.append
        )
        looks.Looks(kind="looks").resolved(3).find_object(context)
        assert (
            f"region 1 is {'where their classes show' if side == 1 else 'what the photos have in common'}"
            in said[-1]
        )
        region = model.apns[0](inner)
        centre = torch.tensor([[7 * i % (10 - side), 3 * i % (10 - side)] for i in range(num)]) + side / 2
        assert ((region[:, :2] + 1) * 5 - centre).abs().max() < 1.5
