"""Networks that glimpse: who learns by what, where the eye goes, and that a run of one is a run like any other."""

import math
from contextlib import nullcontext
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from mnist import write_mnist
from pieces import train_in_pieces
from PIL import Image

from racnn.config import load_config, parse_config
from racnn.engine.checkpoint import digest, load_checkpoint
from racnn.engine.predictor import load
from racnn.engine.trainer import Trainer, fit
from racnn.errors import ConfigError
from racnn.evaluation.report import answer_in_words
from racnn.models import FAMILIES, build_model
from racnn.models.early_exit import EarlyExit, look_until_confident
from racnn.models.recurrent.network import MEMORIES, Glimpse, Recurrent, RecurrentOutput, foveated
from racnn.models.recurrent.phases import Policy, policy_losses
from racnn.recipes import packaged

SEEING = {"what", "where", "joined_what", "joined_where", "classifier"}
MEMORY = pytest.mark.parametrize("memory", MEMORIES)


def network(seed=0, **options):
    torch.manual_seed(seed)
    settings = {"num_classes": 4, "view_sizes": (8,) * 4, "patches": 2, "side": 0.25, "units": 16}
    return Recurrent(**settings | options)


def batch(num=6, side=32, looks=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randint(0, 256, (num, 3, side, side), dtype=torch.uint8, generator=generator),
        "label": torch.arange(num) % 4,
        "noise": torch.rand(num, 2 * looks, generator=generator),
    }


def phase(**changes):
    return Policy(kind="policy", epochs=1, lr=0.01, **changes).resolved(4)


def moved(model, loss):
    """Return the names of the parts that a loss has a derivative in."""
    model.zero_grad(set_to_none=True)
    loss.backward(retain_graph=True)
    return {
        name
        for name, value in model.named_parameters()
        if value.grad is not None and bool(value.grad.abs().sum() > 0)
    }


class TestThreeLosses:
    @pytest.mark.parametrize("memory", ["rnn", "lstm", "residual"])
    def test_each_moves_exactly_what_it_names(self, memory):
        model, given = network(memory=memory), batch()
        found = phase().losses(model, given)
        parts = {
            name: {key.split(".")[0] for key in moved(model, phase().losses(model, given)[name])}
            for name in ("classification", "policy", "baseline")
        }
        assert parts["classification"] == SEEING | {"memory"}
        assert parts["policy"] == {"location"}
        assert parts["baseline"] == {"baseline"}
        total = found["classification"] + found["baseline"] + 0.2 * found["policy"]
        torch.testing.assert_close(found["loss"], total)

    def test_of_two_layers_the_second_and_the_context_learn_where(self):
        model, given = network(memory="two_layer", first="context"), batch()
        sees = moved(model, phase().losses(model, given)["classification"])
        decides = moved(model, phase().losses(model, given)["policy"])
        seen = network(memory="two_layer", first="context", backbone="tiny")
        by_trial = moved(seen, phase().losses(seen, given)["policy"])
        assert by_trial
        assert not any(name.startswith("backbones") for name in by_trial)
        assert not any(name.startswith(("context", "memory.second", "location")) for name in sees)
        assert {name.split(".")[0] for name in sees} == SEEING | {"memory"}
        assert {
            ".".join(name.split(".")[:2]) if name.startswith("memory") else name.split(".")[0]
            for name in decides
        } == {
            "location",
            "context",
            "memory.second",
        }

    @pytest.mark.parametrize("reward", ["last", "each"])
    def test_the_policy_s_gradient_is_that_of_the_expected_reward(self, reward):
        """A reward of 1 where x is above a bar, or more the further above: its expectation is known, and so is its slope."""
        spread, bar, num = 0.1, 0.15, 200_001
        mean = torch.tensor([0.1, 0.0], dtype=torch.float64, requires_grad=True)
        noise = (torch.arange(num, dtype=torch.float64) + 0.5) / num
        place = 0.1 + spread * torch.special.ndtri(noise)
        own = SimpleNamespace(
            memory=SimpleNamespace(decides=lambda state: state[0]), first="context", moves="learned"
        )
        own.location = lambda decides: mean.expand(num, 2)
        own.baseline = lambda decides: decides.new_zeros(num, 1)
        drawn = torch.stack([noise, torch.full_like(noise, 0.5)], dim=1)
        used, _, log_density, expected = Recurrent._decide(own, (noise[:, None],), 1, drawn, spread)
        torch.testing.assert_close(used[100:-100, 0], place[100:-100].clamp(-1.0, 1.0))
        logits = torch.stack([torch.full_like(place, bar), place], dim=1)
        look = Glimpse(None, None, None, logits, None, log_density, expected, (), None, None)
        output = SimpleNamespace(looks=[look], logits=[logits.double()])
        policy_losses(output, torch.ones(num).long(), reward)["policy"].backward()

        def expected_reward(x):
            if reward == "each":
                return (x + place - 0.1 - bar).sigmoid().mean().item()
            return 0.5 * (1.0 + math.erf((x - bar) / (spread * math.sqrt(2.0))))

        step = 1e-5
        slope = (expected_reward(0.1 + step) - expected_reward(0.1 - step)) / (2.0 * step)
        assert -mean.grad[0].item() == pytest.approx(slope, rel=1e-3)
        assert mean.grad[1].item() == pytest.approx(0.0, abs=1e-6)

    @pytest.mark.parametrize(("reward", "earned"), [("last", 1.0), ("each", 0.25)])
    def test_equal_rewards_and_an_exact_baseline_give_none(self, reward, earned):
        model, given = network(), batch()
        output = model(given["image"], noise=given["noise"])
        labels = output.logits[-1].argmax(dim=1)
        for look in output.looks:
            look.logits = look.logits if reward == "last" else torch.zeros_like(look.logits)
        assert moved(model, policy_losses(output, labels, reward)["policy"]) == {
            f"location.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")
        }
        for look in output.looks[1:]:
            look.expected = torch.full_like(look.expected, earned)
        assert not moved(model, policy_losses(output, labels, reward)["policy"])

    def test_a_decision_earns_what_the_looks_after_it_make_of_it(self):
        logits = torch.tensor([[[0.0, 0.0]], [[0.0, 1.0]], [[2.0, 0.0]]])
        looks = [Glimpse(None, None, None, each, None, None, None, (), None, None) for each in logits]
        for look in looks[1:]:
            look.expected = torch.zeros(1)
            look.log_density = torch.zeros(1, requires_grad=True)
        output = RecurrentOutput(looks, complete=True)
        probable = logits.softmax(dim=2)[:, 0, 1]
        for reward, earned in [
            ("each", [(probable[1] + probable[2]) / 2, probable[2]]),
            ("last", [torch.tensor(0.0)] * 2),
        ]:
            policy_losses(output, torch.tensor([1]), reward)["policy"].backward()
            for look, value in zip(looks[1:], earned, strict=True):
                torch.testing.assert_close(look.log_density.grad[0], -value)
                look.log_density.grad = None

    def test_the_density_is_of_what_was_drawn_not_of_what_is_used(self):
        model = network()
        with torch.no_grad():
            model.location[2].bias.fill_(20.0)  # the corner
        noise = torch.full((1, 8), 0.999)
        output = model(batch(1)["image"], noise=noise, spread=0.5)
        away = torch.special.ndtri(torch.tensor(0.999))
        log_density = -away.square() - 2.0 * math.log(0.5 * math.sqrt(2.0 * math.pi))
        torch.testing.assert_close(output.looks[1].log_density, log_density[None], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(output.regions[1], torch.tensor([[0.75, 0.75, 0.25]]))


class TestWhereItLooks:
    @MEMORY
    def test_glimpses_never_stick_out_and_come_again_with_the_same_noise(self, memory):
        model, given = network(memory=memory), batch(20)
        one, same = (model(given["image"], noise=given["noise"], spread=0.8) for _ in range(2))
        other = model(given["image"], noise=1.0 - given["noise"], spread=0.8)
        for number, region in enumerate(one.regions):
            assert (region[:, :2].abs() + region[:, 2:]).max() <= 1.0 + 1e-6
            assert torch.equal(region, same.regions[number])
            assert not torch.equal(region, other.regions[number])

    def test_without_noise_it_goes_where_the_network_says(self):
        model, given = network(), batch()
        one, other = model(given["image"]), model(given["image"][:2])
        for number, look in enumerate(one.looks):
            assert look.log_density is None
            if number:
                torch.testing.assert_close(look.region[:, :2], 0.75 * look.mean)
            torch.testing.assert_close(look.logits[:2], other.looks[number].logits)
        assert one.regions[0].tolist() == [[0.0, 0.0, 0.25]] * 6

    def test_the_finest_patch_is_a_slice_and_the_next_twice_as_wide(self):
        model, photos = network(), batch()["image"]
        source = model.normalise(photos)
        place = torch.tensor([[2.0 * 12 / 24 - 1.0, 2.0 * 6 / 24 - 1.0]]).repeat(6, 1)  # pixels 12, 6 of 32
        fine, wide = model._cut(source, model._region(place, 1))
        torch.testing.assert_close(fine, source[:, :, 6:14, 12:20])
        expected = torch.nn.functional.interpolate(
            source[:, :, 2:18, 8:24], (8, 8), mode="bilinear", antialias=True
        )
        torch.testing.assert_close(wide[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1])

    @pytest.mark.parametrize(
        ("first", "region"), [("centre", [0.0, 0.0, 0.25]), ("whole", [0.0, 0.0, 1.0]), ("random", None)]
    )
    def test_where_the_first_look_is(self, first, region):
        model, given = network(first=first, patches=1), batch()
        output = model(given["image"], noise=given["noise"])
        if region is None:
            expected = torch.cat(
                [0.75 * (2.0 * given["noise"][:, :2] - 1.0), torch.full((6, 1), 0.25)], dim=1
            )
            torch.testing.assert_close(output.regions[0], expected)
        else:
            assert output.regions[0].tolist() == [region] * 6
        assert output.looks[0].expected is None

    def test_a_context_moves_the_eye_and_says_nothing_else(self):
        model = network(memory="two_layer", first="context")
        photos = batch()["image"]
        with torch.no_grad():
            before = model(photos)
            model.context[2].weight.mul_(-5.0)
            after = model(photos)
            assert not torch.allclose(before.regions[0], after.regions[0])
            kept = iter(before.regions)
            model._region = lambda place, number: next(kept)
            held = model(photos)
        for one, other in zip(before.logits, held.logits, strict=True):
            assert torch.equal(one, other)


@MEMORY
@pytest.mark.parametrize("backbone", ["patch", "tiny"])
def test_a_step_runs_on_the_meta_device_and_never_waits(memory, backbone, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    model = network(memory=memory, backbone=backbone).to("meta")
    given = {key: value.to("meta") for key, value in batch().items()}
    found = phase().losses(model, given)
    found["loss"].backward()
    assert found["loss"].is_meta
    assert all(value.grad is not None for value in model.parameters())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"view_sizes": [8, 12]}, "patches of one size"),
        ({"view_sizes": [12]}, "at least 2"),
        ({"first": "context"}, "needs model.memory two_layer"),
        ({"first": "whole"}, "is of one patch"),
        ({"frozen_stages": 1, "backbone": "tiny"}, "they would stay random"),
        ({"weights": "imagenet"}, "none that could be loaded"),
        ({"memory": "gru"}, "'rnn', 'lstm', 'residual' or 'two_layer'"),
    ],
)
def test_what_does_not_fit_is_refused(changes, said):
    values = {
        "model": {"family": "recurrent", **changes},
        "schedule": [{"kind": "policy", "epochs": 1, "lr": 0.1}],
    }
    with pytest.raises(ConfigError, match=said):
        parse_config(values, origin="test")
    with pytest.raises(ConfigError, match="trains all looks"):
        parse_config(
            {"model": {"family": "recurrent"}, "schedule": [{**values["schedule"][0], "scales": [1]}]},
            origin="test",
        )


def configuration(tmp_path, monkeypatch, **model):
    root = write_mnist(tmp_path / "mnist", monkeypatch)
    values = {
        "run": {"out": str(tmp_path / "run"), "precision": "fp32", "num_preview": 2},
        "data": {
            "dataset": "digits",
            "root": str(root),
            "source_size": 40,
            "batch_size": 16,
            "num_workers": 0,
            "augment": {"crop": 1.0, "flip": False, "color": 0.0},
        },
        "model": {"family": "recurrent", "view_sizes": [8] * 3, "patches": 2, "units": 32, **model},
        "schedule": [{"kind": "policy", "epochs": 2, "optimizer": "adamw", "lr": 0.002}],
    }
    path = tmp_path / "digits.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def write_photo(folder):
    path = folder / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(path)
    return path


def test_what_stops_early_is_what_was_answered_that_early():
    torch.manual_seed(0)
    model = network().eval()
    photos = batch(40)["image"]
    with torch.no_grad():
        output = model(photos)
        sure = output.logits[0].softmax(dim=1).amax(dim=1)
        early = EarlyExit(
            "any", float(sure.median()), ((1.0,), (0.5, 0.5), (0.2, 0.3, 0.5)), (0.25,) * 4, later=2.0
        )
        stopped = look_until_confident(model, photos, early, scales=4, fused=True)
    (first, answers, regions), (others, last, every) = stopped
    assert len(first) + len(others) == 40
    assert min(len(first), len(others)) > 10
    torch.testing.assert_close(answers, output.logits[0][first].log_softmax(dim=1))
    torch.testing.assert_close(last, output.fused[others].log_softmax(dim=1))
    assert len(regions) == 1
    for one, other in zip(every, output.regions, strict=True):
        torch.testing.assert_close(one, other[others])


@pytest.mark.parametrize("moves", ["random", "centre"])
def test_controls_look_where_they_say_and_learn_no_policy(moves):
    model, given = network(moves=moves, first="centre"), batch(30)
    found = phase().losses(model, given)
    assert float(found["policy"]) == float(found["baseline"]) == 0.0
    with torch.no_grad():
        output, alone = model(given["image"]), model(given["image"][3:5])
        other = model(255 - given["image"])
    for number, region in enumerate(output.regions):
        assert torch.equal(alone.regions[number], region[3:5])
        if moves == "centre":
            assert region.tolist() == [[0.0, 0.0, 0.25]] * 30
        else:
            assert region[:, :2].std(dim=0).min() > 0.2
            assert not torch.equal(other.regions[number], region)


class TestPlacesThatAreReadOnce:
    options: ClassVar = {
        "backbone": "tiny",
        "grid": 3,
        "first": "whole",
        "patches": 1,
        "descriptor": "root",
        "num_classes": 4,
    }

    @pytest.mark.parametrize("coarse_map", [0, 3])
    def test_steps_see_what_looking_would_show(self, coarse_map):
        model, given = network(**self.options, coarse_map=coarse_map).eval(), batch(5)
        places = model.read_places(given["image"])
        assert places.shape == (5, 10 + coarse_map**2, 96)
        for noise in (given["noise"], None):
            with torch.no_grad():
                looked = model(given["image"], noise=noise, spread=0.9)
                stored = model(places, noise=noise, spread=0.9, stored=places)
            for one, other in zip(looked.looks, stored.looks, strict=True):
                assert torch.equal(one.region, other.region)
                torch.testing.assert_close(one.logits, other.logits, rtol=1e-4, atol=1e-5)
        assert len(torch.cat(looked.regions[1:]).unique(dim=0)) <= 9

    def test_a_run_of_it_goes_on_bit_for_bit(self, tiny, tmp_path):
        phase = {"epochs": 2, "passes": 3, "optimizer": "adamw", "lr": 0.01}
        phases = [{"kind": kind, **phase} for kind in ("frozen_policy", "frozen_policy_init")]
        changes = {f"model__{key}": value for key, value in self.options.items() if key != "num_classes"}
        changes |= {"schedule": phases, "model__family": "recurrent", "model__dropout": 0.2}
        changes |= {"model__coarse_map": 5}
        config = tiny(tmp_path / "run", **changes)
        fit(config, device=torch.device("cpu"))
        stopped = []
        train_in_pieces(tiny(tmp_path / "pieces", **changes), stopped, every=5)
        # 56 drawings, 16 a batch, three times an epoch
        assert stopped == ["frozen_policy"] * 4 + ["frozen_policy_init"] * 4
        one, other = (load_checkpoint(tmp_path / run / "last.pt")["model"] for run in ("run", "pieces"))
        assert digest(one) == digest(other)
        torch.manual_seed(config.run.seed)
        trunk = build_model(config.model, num_classes=8).backbones.state_dict()
        assert all(torch.equal(one[f"backbones.{key}"], value) for key, value in trunk.items())

    def test_phases_in_a_row_read_them_once_and_teach_the_eye_alone(self, tiny, tmp_path, monkeypatch):
        photos, read = [], Recurrent.read_places
        monkeypatch.setattr(
            Recurrent, "read_places", lambda self, images: photos.append(len(images)) or read(self, images)
        )
        after = []
        monkeypatch.setattr(
            Trainer,
            "save_last",
            lambda self, *given, inner=Trainer.save_last: (
                after.append({key: value.clone() for key, value in self.model.state_dict().items()}),
                inner(self, *given),
            ),
        )
        common = {"epochs": 1, "passes": 3, "optimizer": "adamw", "lr": 0.01}
        changes = {f"model__{key}": value for key, value in self.options.items() if key != "num_classes"}
        phases = [{"kind": kind, **common} for kind in ("frozen_policy", "frozen_policy_init")]
        config = tiny(
            tmp_path / "run", **changes, schedule=phases, model__family="recurrent", model__coarse_map=5
        )
        fit(config, device=torch.device("cpu"))
        assert sum(photos) == 56
        assert not list((tmp_path / "run" / "views").glob("*"))
        changed = {key.split(".")[0] for key in after[0] if not torch.equal(after[0][key], after[-1][key])}
        assert changed == {"location"}

    def test_what_it_needs_is_told(self, tmp_path, monkeypatch):
        path = configuration(tmp_path, monkeypatch)
        with pytest.raises(ConfigError, match=r"reads all places of model\.grid"):
            load_config(path, ["schedule.0.kind=frozen_policy"])
        with pytest.raises(ConfigError, match=r"reads places of model\.coarse_map"):
            load_config(path, ["schedule.0.kind=policy_init"])
        with pytest.raises(ConfigError, match=r"set first: whole, a backbone"):
            load_config(path, ["model.coarse_map=8"])
        with pytest.raises(ConfigError, match="take at least 5"):
            load_config(path, ["model.coarse_map=4"])
        with pytest.raises(ConfigError, match=r"model\.first: context needs a small view"):
            load_config(
                path,
                [
                    "schedule.0.kind=frozen_policy",
                    "model.memory=two_layer",
                    "model.first=context",
                    "model.grid=3",
                    "model.backbone=tiny",
                ],
            )
        with pytest.raises(ConfigError, match="set reward: last"):
            load_config(path, ["schedule.0.answers=last"])
        with pytest.raises(ConfigError, match="does nothing with weight 0"):
            load_config(path, ["schedule.0.reward=last", "schedule.0.weight=0"])
        for key in ("compile", "activation_checkpointing"):
            with pytest.raises(ConfigError, match=f"run.{key}: belongs to backbones"):
                load_config(path, [f"run.{key}=true"])
        with pytest.raises(ConfigError, match="1 is one place"):
            load_config(path, ["model.grid=1"])
        with pytest.raises(ConfigError, match="backbone patch has none"):
            load_config(path, ["model.descriptor=root"])


@pytest.mark.parametrize(
    "model",
    [{}, {"memory": "two_layer", "first": "context", "backbone": "tiny", "answer": "added"}],
    ids=str,
)
def test_a_run_goes_on_bit_for_bit_is_evaluated_and_drawn(model, tmp_path, monkeypatch, racnn):
    path = configuration(tmp_path, monkeypatch, **model)
    fit(load_config(path), device=torch.device("cpu"))
    stopped = []
    train_in_pieces(load_config(path, [f"run.out={tmp_path / 'pieces'}"]), stopped)
    assert stopped == ["policy"] * 3
    one, other = (digest(load_checkpoint(tmp_path / run / "last.pt")["model"]) for run in ("run", "pieces"))
    assert one == other
    best, photo = tmp_path / "run" / "best.pt", tmp_path / "digit.png"
    words = [answer_in_words(key, load_config(path).model) for key in ("scale_1", "scale_3", "mean")]
    assert words == ["the first look", "the first 3 looks", "all looks together"]
    measured = racnn("evaluate", best, "--early-exit")
    assert measured.code == 0, measured.err
    assert "scale_3" in measured.out
    looked = racnn("predict", best, write_photo(tmp_path), "--early-exit", "--csv")
    assert looked.code == 0, looked.err
    found = load(best).predict(np.full((50, 60, 3), 90, np.uint8))
    assert len(found.views) == 3
    found.show().save(photo)
    assert racnn("visualize", best, photo, "--out", tmp_path / "seen").code == 0
    assert racnn("report", tmp_path / "run", "--out", tmp_path / "report.html").code == 0
    page = (tmp_path / "report.html").read_text()
    assert "the first 3 looks" in page
    assert not any(wrong in page for wrong in ("the whole photo", "by itself", "racnn advise"))
    exported = racnn("export", best, "--out", tmp_path / "x.onnx")
    assert exported.code == 2
    assert "recurrent" in exported.err


def test_a_glimpse_is_shown_as_one_picture_sharp_in_the_middle():
    fine, wide, widest = (torch.full((1, 1, 4, 4), value) for value in (1.0, 2.0, 3.0))
    fine[..., 1, 2] = 9.0
    picture = foveated([fine, wide, widest])
    assert picture.shape == (1, 3, 16, 16)
    assert torch.equal(picture[:, :1, 6:10, 6:10], fine)
    counts = {value: int((picture[0, 0] == value).sum()) for value in (1.0, 9.0, 2.0, 3.0)}
    assert counts == {1.0: 15, 9.0: 1, 2.0: 64 - 16, 3.0: 256 - 64}
    assert torch.equal(foveated([fine])[:, 2:], fine)


def test_the_picture_of_a_glimpse_is_the_photo_itself_where_the_eye_was():
    # bright left of the middle: the wide patch sees more of it than the fine one
    image = torch.zeros(1, 3, 32, 32)
    image[..., :12] = 1.0
    model = network(first="centre", moves="centre")
    view = model.to_pixels(model(image).views[0])
    assert view.shape == (1, 3, 16, 16)
    # 16 px of 32 across the middle: columns 8 to 23, of which the first four are bright, but for the blur of the wide patch
    assert torch.allclose(view[..., :2], torch.ones(()), atol=1e-5)
    assert torch.allclose(view[..., 6:], torch.zeros(()), atol=1e-5)


def test_a_coarse_map_is_no_finer_than_the_backbone_s():
    options = {"backbone": "tiny", "view_sizes": (16,) * 2, "patches": 1, "first": "whole"}
    network(**options, coarse_map=4).check_views()
    with pytest.raises(ConfigError, match=r"model\.coarse_map: 5 cells a side are more than the 4 x 4 of"):
        network(**options, coarse_map=5).check_views()


def test_keys_of_another_family_are_told_with_where_to_begin(tmp_path):
    path = tmp_path / "other.yaml"
    path.write_text("model: {apn: paper}\nschedule: [{kind: fusion, epochs: 1, lr: 0.1}]\n")
    with pytest.raises(ConfigError) as told:
        load_config(path, ["model.family=recurrent"])
    assert str(told.value) == (
        "--set model.family=recurrent: other.yaml is of family racnn, whose keys are its own; begin with a configuration of family "
        "recurrent, such as --config looker.yaml"
    )
    looker = packaged("looker.yaml")
    for settings in (
        ["model.family=recurrent", "data.batch_size=-1"],
        ["model.family=recurrent", "model=null"],
        ["model.family=nonsense"],
    ):
        with pytest.raises(ConfigError) as told:
            load_config(looker, settings)
        assert "begin with" not in str(told.value)
    for name, family in FAMILIES.items():
        assert load_config(packaged(family.example)).model.family == name


def test_answers_are_the_last_or_the_first_and_the_mean_of_the_later_ones():
    given, noise = batch(5)["image"], batch(5)["noise"]
    last, added = network(answer="last"), network(answer="added")
    said, found = last(given, noise=noise), added(given, noise=noise)
    own = [look.logits for look in said.looks]
    assert all(torch.equal(one, other) for one, other in zip(said.logits, own, strict=True))
    assert torch.equal(said.fused, own[-1])
    wanted = [own[0]] + [own[0] + torch.stack(own[1 : number + 1]).mean(dim=0) for number in (1, 2, 3)]
    for one, other in zip(found.logits, wanted, strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(found.fused, found.logits[-1])
    early = added(given, noise=noise, num_scales=2)
    torch.testing.assert_close(early.logits[-1], wanted[1])
    assert early.fused is None


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.grid=1", "--set model.grid=1: model.grid: 1 is one place"),
        (
            "model.first=context",
            "--set model.first=context: model.first: context needs model.memory two_layer",
        ),
        (
            "model.grid=0",
            "--set model.grid=0: schedule: a frozen_policy phase reads all places of model.grid",
        ),
    ],
)
def test_what_does_not_fit_together_names_the_setting_and_not_the_file(setting, said):
    with pytest.raises(ConfigError) as told:
        load_config(packaged("looker.yaml"), [setting])
    assert str(told.value).startswith(said)
