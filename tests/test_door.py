"""What CONTRIBUTING.md says can be added is added here: a family, a kind of phase, a backbone, a dataset, a sampler."""

import json
from typing import Literal

import numpy as np
import pytest
import torch
import yaml
from conftest import tiny_values
from PIL import Image
from torch import nn
from torch.nn import functional as F
from toy import model as toy_model
from toy import phases as toy_phases

from racnn.config import parse_config
from racnn.data import DATASETS
from racnn.data.sources.synthetic import synthetic_catalog
from racnn.engine.checkpoint import digest, load_checkpoint
from racnn.engine.predictor import load
from racnn.engine.trainer import Trainer, fit
from racnn.errors import ConfigError
from racnn.models import BACKBONES, FAMILIES, Backbone, Family
from racnn.models.phase import FittedPhase
from racnn.models.racnn.phases import PHASES
from racnn.ops.crop import SAMPLERS, zoom
from racnn.ops.regions import whole

CPU = torch.device("cpu")
CLASSIFY = {"kind": "classification", "epochs": 1, "lr": 0.01}


@pytest.fixture
def toy(monkeypatch):
    family = Family(toy_model.ToyConfig, toy_model.build, toy_phases.PHASES, toy_phases.SCHEDULES)
    monkeypatch.setitem(FAMILIES, "toy", family)


def toy_values(out, **changes):
    values = tiny_values(out, run__save_every=1, **changes)
    values["model"] = {"family": "toy"}
    values["schedule"] = [{"kind": "together", "epochs": 2, "lr": 0.01, "keep": "if_better"}]
    return values


class TestFamily:
    def test_it_trains_evaluates_and_draws_by_the_commands(self, toy, racnn, tmp_path):
        values = toy_values(tmp_path / "run")
        values["schedule"] = "recipe"  # its own
        (tmp_path / "toy.yaml").write_text(yaml.safe_dump(values))
        assert racnn("train", "--config", tmp_path / "toy.yaml").code == 0
        best = tmp_path / "run" / "best.pt"
        before = load_checkpoint(best)
        assert before["config"]["model"] == toy_model.ToyConfig().model_dump(mode="json")
        assert before["trained_scales"] == 2
        assert racnn("evaluate", best, "--json", tmp_path / "report.json").code == 0
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["top1"].keys() == {"scale_1", "scale_2", "scale_1+2", "mean"}
        assert report["regions"]["region_1"]["tl_std"] < 1e-6
        drawn = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(drawn).save(tmp_path / "photo.png")
        assert racnn("visualize", best, tmp_path / "photo.png", "--out", tmp_path / "pictures").code == 0
        assert len(list((tmp_path / "pictures").glob("photo*"))) == 1
        assert racnn("predict", best, tmp_path / "photo.png").code == 0
        for command in (("evaluate", best), ("predict", best, tmp_path / "photo.png")):
            assert "always looks as often" in racnn(*command, "--early-exit").err
        assert "together" in racnn("inspect", best).out

    def test_it_resumes_exactly(self, toy, tmp_path, monkeypatch):
        from racnn.engine import trainer

        ends = []
        for name in ("whole", "stopped"):
            config = parse_config(toy_values(tmp_path / name), origin="test")
            if name == "stopped":
                plain, steps = trainer.train_one_epoch, []

                def interrupted(*given, plain=plain, steps=steps):
                    for step in plain(*given):
                        yield step
                        steps.append(step)
                        if len(steps) == 6:
                            raise KeyError

                with monkeypatch.context() as patch:
                    patch.setattr(trainer, "train_one_epoch", interrupted)
                    with pytest.raises(KeyError):
                        fit(config, device=CPU)
                assert load_checkpoint(tmp_path / name / "last.pt")["step"] == 6
                fit(config, device=CPU, resume=True)
            else:
                fit(config, device=CPU)
            ends.append(load_checkpoint(tmp_path / name / "last.pt"))
        assert digest(ends[0]["model"]) == digest(ends[1]["model"])
        assert ends[0]["step"] == ends[1]["step"] == 8

    def test_it_answers_in_python(self, toy, tmp_path):
        best, _ = fit(parse_config(toy_values(tmp_path / "run"), origin="test"), device=CPU)
        photo = torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8).numpy()
        answer = load(best).predict(photo)
        assert len(answer.views) == 2
        assert len(answer.boxes_xyxy) == 1
        assert answer.show().size[0] > 60
        with pytest.raises(
            ConfigError, match=r"why: only RA-CNN says it; this network is of model\.family toy"
        ):
            load(best).predict(photo, why=True)

    def test_its_mistakes_are_told_in_its_own_words(self, toy):
        values = toy_values("unused")
        values["model"]["hiden"] = 3
        values["schedule"][0] |= {"kind": "fusion"}
        with pytest.raises(ConfigError) as caught:
            parse_config(values, origin="test")
        assert "model.hiden: unknown key (did you mean 'hidden'?)" in str(caught.value)
        assert "schedule.0.kind: input should be 'together', got 'fusion'" in str(caught.value)

    def test_a_family_that_there_is_not_is_refused(self):
        with pytest.raises(ConfigError, match=r"model\.family: expected one of racnn, recurrent, got 'toy'"):
            parse_config(toy_values("unused"), origin="test")


class Heads(FittedPhase):
    """Fit the classifiers in one go on the descriptors of the frozen trunks, by ridge regression."""

    kind: Literal["heads"]
    l2: float = 1.0

    def trained(self, model):
        return [], [model.classifiers[scale - 1] for scale in self.scales]

    def fit(self, context):
        descriptors, labels = context.descriptors(self.photos, max(self.scales))
        for scale in self.scales:
            x = F.pad(descriptors[scale - 1].double(), (0, 1), value=1.0)
            y = F.one_hot(labels, context.model.num_classes).double()
            solved = torch.linalg.solve(x.T @ x + self.l2 * torch.eye(x.shape[1]).double(), x.T @ y).T
            head = context.model.classifiers[scale - 1]
            with torch.no_grad():
                head.weight.copy_(solved[:, :-1])
                head.bias.copy_(solved[:, -1])

    def score_names(self, num_scales):
        return [f"scale_{scale}" for scale in self.scales]

    def last_trained_scale(self):
        return max(self.scales)


class TestPhase:
    @pytest.fixture(autouse=True)
    def known(self, monkeypatch):
        monkeypatch.setitem(PHASES, "heads", Heads)

    def test_one_that_is_fitted_in_one_go_changes_what_it_names_alone(self, tiny, tmp_path):
        schedule = [{**CLASSIFY, "scales": [1]}, {"kind": "heads", "scales": [1]}]
        before = fit(tiny(tmp_path / "a", schedule=schedule[:1]), device=CPU)[0]
        after = fit(tiny(tmp_path / "b", schedule=schedule), device=CPU)[0]
        left, right = load_checkpoint(before)["model"], load_checkpoint(after)["model"]
        changed = {name for name in left if not torch.equal(left[name], right[name])}
        assert changed == {"classifiers.0.weight", "classifiers.0.bias"}
        steps = [load_checkpoint(tmp_path / run / "last.pt")["step"] for run in "ab"]
        assert steps[0] == steps[1]  # no gradient step

    @pytest.mark.parametrize(("l2", "kept"), [(1.0, True), (1e12, False)])
    def test_it_is_kept_only_if_better_where_that_is_asked(self, tiny, tmp_path, l2, kept):
        heads = {"kind": "heads", "scales": [1], "keep": "if_better"}
        schedule = [heads] if kept else [heads, {**heads, "l2": l2}]
        fit(tiny(tmp_path / "run", schedule=schedule), device=CPU)
        assert load_checkpoint(tmp_path / "run" / "last.pt")["progress"]["outcomes"][-1] is kept

    def test_it_may_take_gradients_and_goes_on_without_fitting_twice(self, tiny, tmp_path, monkeypatch):
        class Warm(Heads):
            """From where the head is, by a step of its own, after a phase that froze it."""

            kind: Literal["warm"]

            def fit(self, context):
                descriptors, labels = context.descriptors(self.photos, 1)
                head = context.model.classifiers[0]
                F.cross_entropy(head(descriptors[0] + torch.rand(1)), labels).backward()
                with torch.no_grad():
                    head.weight -= head.weight.grad

        monkeypatch.setitem(PHASES, "warm", Warm)
        apn = {"kind": "apn_init", "scales": [1], "epochs": 1, "lr": 0.01, "optimizer": "adamw"}
        schedule = [{**CLASSIFY, "scales": [1]}, apn, {"kind": "warm", "scales": [1]}]
        plain, ends = Trainer.predict, []
        for name in ("whole", "stopped"):
            config = tiny(tmp_path / name, schedule=schedule)
            if name == "stopped":

                def stop(self, *given, **rest):
                    if (
                        self.progress.batch == 0
                        and len(self.progress.outcomes) == 2
                        and self.progress.start is not None
                    ):
                        raise KeyError  # after the fit was saved
                    return plain(self, *given, **rest)

                with monkeypatch.context() as patch:
                    patch.setattr(Trainer, "predict", stop)
                    with pytest.raises(KeyError):
                        fit(config, device=CPU)
            fit(config, device=CPU, resume=name == "stopped")
            ends.append(digest(load_checkpoint(tmp_path / name / "last.pt")["model"]))
        assert ends[0] == ends[1]

    def test_its_keys_are_checked_like_any_others(self):
        with pytest.raises(ConfigError, match=r"schedule\.0: 'l2' belongs to heads phases"):
            parse_config(tiny_values(schedule=[{**CLASSIFY, "l2": 2.0}]), origin="test")


def test_a_backbone_is_a_function_and_a_line(monkeypatch, tiny, tmp_path):
    def speck():
        return Backbone(nn.Sequential(nn.Conv2d(3, 5, 8, stride=8), nn.ReLU()), channels=5, stride=8)

    monkeypatch.setitem(BACKBONES, "speck", speck)
    best, report = fit(tiny(tmp_path / "run", schedule=[CLASSIFY], model__backbone="speck"), device=CPU)
    assert report["top1"].keys() >= {"scale_1", "scale_2", "scale_3"}
    assert load_checkpoint(best)["model"]["classifiers.0.weight"].shape == (8, 5)


def test_a_dataset_is_a_function_and_a_line(monkeypatch, tiny, tmp_path, racnn):
    monkeypatch.setitem(DATASETS, "drawn_again", synthetic_catalog)
    config = tiny(tmp_path / "run", schedule=[{**CLASSIFY, "scales": [1]}], data__dataset="drawn_again")
    best, _ = fit(config, device=CPU)
    assert racnn("evaluate", best).code == 0


def test_a_sampler_is_a_function_and_a_line(monkeypatch, tiny, tmp_path):
    asked = []

    def middle(image, region, size, **options):
        """Cut the middle of the image, whatever is proposed."""
        asked.append(options.keys())
        half = whole(len(image)) * 0.5
        return zoom(image, half, size, **options)

    monkeypatch.setitem(SAMPLERS, "middle", middle)
    best, _ = fit(tiny(tmp_path / "run", schedule=[CLASSIFY], model__sampler="middle"), device=CPU)
    model = load(best).model
    images = torch.rand(2, 3, 48, 48)
    middle_view = middle(model.normalise(images), None, (32, 32), steepness=None)
    torch.testing.assert_close(model(images, num_scales=1).views[0], middle_view)
    assert {"antialias", "steepness", "move_samples"} in asked


def test_a_sampler_that_there_is_not_is_refused(tiny, tmp_path):
    with pytest.raises(
        ConfigError, match=r"model\.sampler: no sampler is called 'zom' \(did you mean 'zoom'\?\)"
    ):
        fit(tiny(tmp_path / "run", schedule=[CLASSIFY], model__sampler="zom"), device=CPU)
