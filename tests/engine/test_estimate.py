"""How long a training takes, told before its first step, and `--time`."""

import itertools
import os

import layouts
import pytest
import torch
import yaml
from conftest import TINY_SCHEDULE

from racnn.durations import format_duration, parse_duration
from racnn.engine import estimate as module
from racnn.engine.estimate import PhaseTime, estimate, format_estimate, settings_in_time
from racnn.errors import ConfigError

CPU = torch.device("cpu")
SMALL = ["--backbone", "tiny", "--set", "model.weights=null", "--set", "data.source_size=48"]
SMALL += ["--set", "data.num_workers=0", "--set", "run.num_preview=0"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("1.5H", 5400), ("2h0m5s", 7205)]
)
def test_lengths_of_time(text, seconds):
    assert parse_duration(text, flag="--time") == seconds


@pytest.mark.parametrize("text", ["", "30", "soon", "m30", "0m", "-3m", "5 minutes"])
def test_what_is_no_length_of_time(text):
    with pytest.raises(ConfigError, match="--time: expected a length of time such as 90s, 30m or 1h30m"):
        parse_duration(text, flag="--time")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.4, "3 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (7200, "2.0 h"), (5e5, "5.8 days")],
)
def test_lengths_of_time_in_words(seconds, text):
    assert format_duration(seconds) == text


class TestEstimate:
    def test_every_phase_is_counted_for_all_photos(self, tiny, monkeypatch):
        """A clock that goes on by a second at each look makes every measurement a second for the four photos."""
        monkeypatch.setattr(module.time, "perf_counter", itertools.count().__next__)
        found = {each.key: each for each in estimate(tiny(), device=CPU)}
        # 56 photos for training, 8 for validation; a quarter of a second a photo for decoding, and for everything else
        epoch = 56 * 0.5 + 8 * 0.5
        assert list(found) == [
            *(f"schedule.{i}" for i in range(5)),
            "schedule.5.alternate.0",
            "schedule.5.alternate.1",
            "schedule.6",
        ]
        assert {each.epoch for each in found.values()} == {epoch}
        assert found["schedule.0"].seconds() == 2 * epoch
        assert found["schedule.0"].seconds(5) == 5 * epoch
        # what photos have in common, and boxes of both splits
        assert found["schedule.1"].reading == (56 + 56 + 8) * 0.5
        assert found["schedule.2"].reading == 56 * 0.5  # where scale 1 looks
        assert found["schedule.0"].reading == 0

    def test_looks_are_read_and_nothing_takes_steps(self, tiny, monkeypatch):
        monkeypatch.setattr(module.time, "perf_counter", itertools.count().__next__)
        config = tiny(
            schedule=[{"kind": "looks"}],
            model__apn="response",
            model__weights=None,
            model__shared_backbone=True,
        )
        (found,) = estimate(config, device=CPU)
        assert (found.epochs, found.epoch) == (0, 0)
        assert found.seconds() == pytest.approx(
            56 * 4 * (0.25 / 3 + 0.25) + 8 * 0.5
        )  # four views, each read anew

    def test_views_are_read_once_and_steps_open_no_photo(self, tiny, monkeypatch):
        monkeypatch.setattr(module.time, "perf_counter", itertools.count().__next__)
        phase = {"kind": "cross_fit", "epochs": 3, "lr": 0.1}
        (found,) = estimate(tiny(schedule=[phase]), device=CPU)
        assert found.reading == 3 * 56 * 0.5 + 3 * 56 * 0.5  # where they look, and the views
        assert found.epoch == 56 * 0.25 + 3 * 56 * 0.25 + 8 * 0.5

    def test_looks_that_were_read_are_not_read_again(self, tiny, monkeypatch):
        monkeypatch.setattr(module.time, "perf_counter", itertools.count().__next__)
        phases = [{"kind": "looks"}, {"kind": "cross_fit", "epochs": 1, "lr": 0.1}]
        changes = {"model__apn": "response", "model__weights": None, "model__shared_backbone": True}
        _looks, found = estimate(tiny(schedule=phases, **changes), device=CPU)
        common = 56 * 0.5  # of the photos' sample, all 56 here
        assert found.reading == common + 3 * 56 * 0.5

    def test_rounds_of_an_alternation(self, tiny):
        schedule = [*TINY_SCHEDULE[:5], {**TINY_SCHEDULE[5], "rounds": 3}]
        found = estimate(tiny(schedule=schedule), device=CPU)
        assert [each.rounds for each in found] == [1] * 5 + [3, 3]
        text = format_estimate(found)
        assert "1 epoch, 3 times" in text
        assert len(text.splitlines()) == 8


def test_a_deterministic_run_is_measured_as_it_will_be(tiny, monkeypatch):
    """What cuBLAS reads when a GPU is first used is there by then."""
    seen = []
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(
        module._Meter, "phases", lambda self: seen.append(torch.are_deterministic_algorithms_enabled())
    )
    estimate(tiny(run__deterministic=True), device=CPU)
    assert seen == [True]
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


class TestInTime:
    def found(self, *phases):
        return [PhaseTime(f"schedule.{i}", f"{i}", *rest) for i, rest in enumerate(phases)]

    def test_epochs_become_fewer_by_one_factor(self, tiny, monkeypatch):
        phases = self.found((1, 30, 10.0, 10.0), (2, 4, 0.0, 10.0), (1, 1, 0.0, 10.0), (1, 0, 50.0, 0.0))
        monkeypatch.setattr(module, "estimate", lambda config, device: phases)
        assert settings_in_time(tiny(), "451s", device=CPU, suit=int) == []
        chosen = settings_in_time(tiny(), "251s", device=CPU, suit=int)
        assert chosen == ["schedule.0.epochs=14", "schedule.1.epochs=1", "schedule.2.epochs=1"]
        epochs = [14, 1, 1, 0]
        assert sum(phase.seconds(n) for phase, n in zip(phases, epochs, strict=True)) <= 251.0
        with pytest.raises(
            ConfigError,
            match=r"--time: 99s is too short: .* with one epoch a phase",
        ):
            settings_in_time(tiny(), "99s", device=CPU, suit=int)

    def test_views_become_smaller_where_nothing_takes_steps(self, tiny, monkeypatch):
        monkeypatch.setattr(
            module,
            "estimate",
            lambda config, device: self.found((1, 0, float(config.model.view_sizes[0] ** 2), 0.0)),
        )
        config = tiny()  # three views of 32 px: 1024 seconds
        assert settings_in_time(config, "1025s", device=CPU, suit=int) == []
        assert settings_in_time(config, "700s", device=CPU, suit=int) == ["model.view_sizes=[26, 26, 26]"]
        assert settings_in_time(config, "300s", device=CPU, suit=int) == ["model.view_sizes=[16, 16, 16]"]
        # a backbone that takes few sizes may suit nothing between, and never gets larger views
        assert settings_in_time(config, "300s", device=CPU, suit=lambda side: 64 if side > 20 else 16) == [
            "model.view_sizes=[16, 16, 16]"
        ]
        with pytest.raises(ConfigError, match=r"--time: 100s is too short: .* with views of 16 px"):
            settings_in_time(config, "100s", device=CPU, suit=int)


@pytest.fixture
def folder(tmp_path):
    return layouts.write_class_folders(tmp_path / "birds")


class TestCommand:
    def test_a_run_in_time_goes_on_as_it_began(self, folder, racnn, tmp_path, monkeypatch):
        out = tmp_path / "run"
        words = ["train", folder, "--out", out, *SMALL, "--set", "model.view_sizes=[32, 32, 32]"]
        monkeypatch.setattr(module, "SMALLER_VIEWS", (1.0, 0.5))
        real = module.estimate

        def slow(config, device):
            return [PhaseTime("schedule.0", "looks", 1, 0, 100.0 * config.model.view_sizes[0], 0.0)]

        monkeypatch.setattr(module, "estimate", slow)
        result = racnn(*words, "--time", "30m")
        assert result.code == 0, result.err
        assert "--time 30m: model.view_sizes=[16, 16, 16]" in result.out
        assert yaml.safe_load((out / "config.yaml").read_text())["model"]["view_sizes"] == [16, 16, 16]
        monkeypatch.setattr(module, "estimate", real)  # by which everything would fit
        again = racnn(*words, "--time", "30m", "--resume")
        assert again.code == 0, again.err
        assert "nothing is left to train" in again.out
        assert "--time: the run goes on with the epochs and views that it began with" in again.out
        twice = racnn(*words, "--time", "30m")
        assert twice.code == 2
        assert "--overwrite" in twice.err
        assert "--time" not in twice.out, "it measured for nothing"

    def test_what_fits_stays_as_it_is(self, folder, racnn, tmp_path):
        words = ["train", folder, "--out", tmp_path / "run", *SMALL, "--set", "model.view_sizes=[32, 32, 32]"]
        result = racnn(*words, "--time", "2h")
        assert result.code == 0, result.err
        assert "--time 2h: the recipe as it is fits" in result.out

    def test_full_says_beforehand_how_long_it_takes(self, folder, racnn, tmp_path):
        words = ["train", folder, "--recipe", "full", "--out", tmp_path / "run", *SMALL]
        result = racnn(
            *words,
            "--set",
            "model.view_sizes=[32]",
            "--set",
            "model.frozen_stages=0",
            "--epochs",
            1,
            "--batch-size",
            4,
        )
        assert result.code == 0, result.err
        assert "what will be done, about" in result.out
        assert result.out.index("what will be done") < result.out.index("epoch 1")

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--time", "soon"], "--time: expected a length of time"),
            (["--time", "5m", "--epochs", "3"], "--time and --epochs exclude each other"),
            (["--time", "0.001s", "--recipe", "paper"], "--time: 0.001s is too short"),
        ],
    )
    def test_mistakes(self, words, said, folder, racnn, tmp_path):
        views = ["--set", "model.view_sizes=[32, 32, 32]"]
        result = racnn("train", folder, "--out", tmp_path / "run", *SMALL, *views, *words)
        assert result.code == 2
        assert said in result.err

    def test_it_belongs_to_photos(self, racnn):
        result = racnn("train", "--config", "demo", "--time", "5m")
        assert result.code == 2
        assert "--time: belongs to PHOTOS" in result.err
