"""tools/benchmark.py measures what it says: ratios from turns, a table, and the same as JSON."""

import json
import operator
import os
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import benchmark
from bench import answer, breakdown, data, figures, infer, memory, step, zoom
from bench.device import matrix_product_rate, operations, shares_of_the_peak
from racnn.errors import DataError
from racnn.sections import DataConfig

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that only advances when told to."""
    now = [0.0]
    monkeypatch.setattr(figures.time, "perf_counter", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


@pytest.fixture
def run(tmp_path):
    """Return a caller of a command that gives its figures by name, what it is and of what."""

    def call(*words):
        file = tmp_path / "deep" / "figures.json"
        result = CliRunner().invoke(benchmark.app, [*words, "--json", str(file)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        rows = json.loads(file.read_text())
        assert len([line for line in result.stdout.splitlines() if line.startswith("|")]) == 2 + len(rows)
        return {(row["name"], row["measure"], row["baseline"]): row for row in rows}

    return call


class TestFigures:
    def test_a_ratio_is_how_many_times_as_fast_as_the_baseline(self, clock):
        times = figures.take_turns({"slow": lambda: clock(4.0), "half": lambda: clock(2.0)}, 5)
        figure = figures.times_as_fast("half", "slow", times, 2.5)
        assert (figure.ratio, figure.low, figure.high, figure.ok) == (2.0, 2.0, 2.0, False)
        assert (figure.name, figure.baseline, figure.wanted) == ("half", "slow", "at least")

    def test_a_share_is_of_the_time_of_the_whole(self, clock):
        times = figures.take_turns({"whole": lambda: clock(4.0), "part": lambda: clock(1.0)}, 3)
        figure = figures.share_of_time("part", "whole", times, 0.3)
        assert (figure.ratio, figure.wanted, figure.ok) == (0.25, "at most", True)

    @pytest.mark.parametrize(
        ("wanted", "target", "ok"),
        [
            ("at least", 1.9, True),
            ("at least", 2.0, True),
            ("at least", 2.1, False),
            ("at most", 1.9, False),
            ("at most", 2.0, True),
            ("at most", 2.1, True),
            ("at most", None, None),
        ],
    )
    def test_a_target_is_met_on_the_side_that_is_wanted(self, wanted, target, ok):
        assert figures.summary("a", "is", "b", [1.0, 2.0, 3.0], wanted, target).ok is ok

    def test_all_take_turns_and_the_middle_of_the_rounds_counts(self, clock):
        calls = []
        lengths = iter([1.0, 1.0, 1.0, 1.0, 2.0, 50.0, 1.0])  # two warm-ups, five rounds

        def ours():
            calls.append("ours")
            clock(next(lengths))

        def base():
            calls.append("base")
            clock(2.0)

        times = figures.take_turns({"base": base, "ours": ours}, 5)
        assert calls == ["base", "ours"] * 7
        assert figures.times_as_fast("ours", "base", times).ratio == 2.0

    def test_a_short_call_is_repeated_until_its_time_can_be_told(self, clock):
        calls = []
        times = figures.take_turns({"short": lambda: calls.append(clock(0.03))}, 3)
        assert len(calls) == 2 + 3 * 7  # 0.21 s a round
        assert times == {"short": pytest.approx([0.03] * 3)}

    def test_a_time_begins_and_ends_when_the_device_has_done_its_work(self, clock):
        queued = [7.0]  # from before

        def wait():
            clock(sum(queued))
            queued.clear()

        assert figures.seconds(lambda: queued.append(3.0), wait) == 3.0

    def test_the_table_names_the_side_of_the_target(self, capsys, tmp_path):
        some = [
            figures.summary("a", "times as fast as", "b", [3.0], "at least", 2.0),
            figures.summary("c", "share of the time of", "d", [0.6], "at most", 0.5),
            figures.summary("e", "share of the time of", "f", [0.6], "at most"),
        ]
        figures.show(some, tmp_path / "figures.json")
        rows = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines()]
        assert [row[-3:-1] for row in rows[2:]] == [["at least 2", "yes"], ["at most 0.5", "NO"], ["", ""]]
        written = json.loads((tmp_path / "figures.json").read_text())
        assert [row["ok"] for row in written] == [True, False, None]
        assert [row["target"] for row in written] == [2.0, 0.5, None]
        assert [row["wanted"] for row in written] == ["at least", "at most", "at most"]


class TestWork:
    def test_the_operations_of_a_product_are_counted_there_and_back(self):
        left, right = torch.ones(3, 4, requires_grad=True), torch.ones(4, 5, requires_grad=True)
        assert operations(lambda: (left @ right).sum().backward()) == 3 * 2 * 3 * 4 * 5

    def test_the_rate_of_a_product_is_its_operations_over_its_seconds(self, monkeypatch):
        monkeypatch.setattr("bench.device.seconds", lambda call, wait: call() is None or wait() or 0.5)
        assert matrix_product_rate(CPU, side=10, rounds=3) == 2 * 10**3 / 0.5

    def test_shares_of_the_peak_are_of_a_matrix_product_and_left_out_on_a_cpu(self, monkeypatch):
        work = {"product": lambda: torch.ones(10, 10) @ torch.ones(10, 10)}  # 2000 operations
        assert shares_of_the_peak(work, {"product": [1.0]}, CPU) == []
        monkeypatch.setattr("bench.device.matrix_product_rate", lambda *_, **__: 8000.0)
        (figure,) = shares_of_the_peak(work, {"product": [0.5]}, torch.device("cuda"), side=64)
        assert (figure.name, figure.ratio, figure.target) == ("product", 0.5, None)

    def test_a_fresh_process_is_another_one(self):
        assert memory.in_fresh_process(os.getpid) != os.getpid()

    def test_the_peak_is_what_a_call_took_and_gave_back(self):
        size = 300 * 10**6
        take = partial(operator.mul, b"x", size)
        assert memory.in_fresh_process(partial(memory.peak_added, take, CPU)) == pytest.approx(size, rel=0.1)


class TestData:
    def test_a_folder_without_photos_is_refused(self, tmp_path):
        with pytest.raises(DataError, match="no photos in this folder"):
            data.measure(photos=8, root=tmp_path, rounds=3)

    def test_the_figures_are_printed_and_written(self, run):
        found = run("data", "--photos", "8", "--rounds", "3")
        assert [name for name, _, _ in found] == ["data, from files", "data, from the cache"]
        assert all(
            row["ratio"] > 0 and row["ok"] == (row["ratio"] >= row["target"]) for row in found.values()
        )
        torch.set_num_threads(1)  # which the tool has set anyway

    def test_the_photos_that_are_made_have_the_size_of_cub_s(self, tmp_path):
        from PIL import Image

        paths = data.write_photos(tmp_path / "photos", 2)
        assert [Image.open(path).size for path in paths] == [(500, 375)] * 2
        assert 15e3 < paths[0].stat().st_size < 150e3
        read = data.sample_reader(paths, DataConfig(num_workers=0, cache=tmp_path / "cache"), cached=True)
        read()
        assert (tmp_path / "cache").is_dir()


class TestZoom:
    def test_the_figures_are_those_of_both_loops(self, run):
        found = run("zoom", "--side", "32", "--batch", "2", "--rounds", "3", "--device", "cpu")
        assert [(of_what, row["target"]) for (_, _, of_what), row in found.items()] == [
            (f"{zoom.PUBLISHED}, {zoom.TO_REGIONS}", 15.0),
            (f"{zoom.PUBLISHED}, {zoom.TO_IMAGES}", None),
            (f"{zoom.SLICED}, {zoom.TO_IMAGES}", 1.0),
        ]
        assert all(row["ratio"] > 0 for row in found.values())


class TestInfer:
    def test_both_ways_give_the_same_answers(self):
        config = infer.default_config("tiny", 32)
        images = infer.photos(3, 32, CPU)["image"]
        ours, plain = infer.ours(config, CPU).eval(), infer.plain(config, CPU).eval()
        ours.compute_dtype = None
        alone = torch.cat([plain(image[None]).fused for image in images])
        torch.testing.assert_close(ours(images).fused, alone, rtol=1e-3, atol=1e-4)

    def test_the_figures_are_written(self, run):
        found = run("infer", "--backbone", "tiny", "--side", "32", "--device", "cpu", "--rounds", "3")
        sure = "tiny, early exit, all sure at the first look"
        names = ["tiny, photos/s", sure, f"{sure}: multiplications", "tiny, early exit, none sure"]
        assert [name for name, _, _ in found] == names
        first, promised = (row["ratio"] for (name, _, _), row in found.items() if sure in name)
        assert 0 < promised < 1
        assert first < 1


class TestStep:
    @pytest.fixture
    def made(self, monkeypatch):
        """Every network that is built, in order."""
        models = []

        def noted(make):
            return lambda *args: models.append(make(*args)) or models[-1]

        for name in ("ours", "plain"):
            monkeypatch.setattr(step, name, noted(getattr(step, name)))
        return models

    def test_the_engine_s_step_moves_what_its_phase_names_and_the_plain_one_has_every_gradient(self, made):
        config = step.default_config("tiny", 32)
        batch = step.photos(2, 32, CPU)
        for kind, named in (("classification", {"backbones", "classifiers"}), ("ranking", {"apns"})):
            phase = step.phase_of(config, kind)
            for make in (step.engine_step, step.plain_step):
                make(config, phase, batch, CPU)()
                without = {n.split(".")[0] for n, p in made[-1].named_parameters() if p.grad is None}
                got = {n.split(".")[0] for n, p in made[-1].named_parameters() if p.grad is not None}
                assert got.isdisjoint(without)
                assert got == (named if make is step.engine_step else {"backbones", "classifiers", "apns"})

    def test_both_ranking_losses_are_the_same_number(self):
        config = step.default_config("tiny", 32)
        batch, phase = step.photos(4, 32, CPU), step.phase_of(config, "ranking")
        model = step.plain(config, CPU)
        expected = phase.losses(model, batch)["loss"]
        torch.testing.assert_close(step.plain_ranking(model, batch, phase), expected)

    def test_the_phases_are_those_of_the_default_recipe_for_all_scales(self):
        config = step.default_config("tiny", 32)
        assert step.phase_of(config, "classification").scales == (1, 2, 3)
        ranking = step.phase_of(config, "ranking", gradient="exact")
        assert ranking.scales == (1, 2)
        assert ranking.optimizer == "adamw"
        assert (config.model.view_sizes, config.data.source_size) == ((32, 16, 16), 32)

    def test_only_what_is_no_convolution_or_linear_layer_counts_as_outside(self):
        weight = torch.ones(256, 256, requires_grad=True)

        def linear():
            torch.nn.functional.linear(torch.ones(512, 256), weight).backward(torch.ones(512, 256))

        assert breakdown.shares(linear, CPU)[breakdown.LAYERS] > 0.5
        assert breakdown.shares(lambda: torch.ones(10**6).exp(), CPU)[breakdown.REST] == 1.0

    def test_what_a_convolution_calls_counts_with_it(self):
        def call():
            with torch.profiler.record_function("convolution of a kind"):
                torch.ones(10**6).exp()

        assert breakdown.shares(call, CPU)[breakdown.LAYERS] > 0.9

    @pytest.mark.slow
    def test_the_figures_are_written(self, run, monkeypatch):
        monkeypatch.setattr(step, "in_fresh_process", lambda call: call())
        found = run("step", "--backbone", "tiny", "--side", "32", "--device", "cpu")
        speeds = [name for name, measure, _ in found if measure == "times as fast as"]
        assert speeds == [
            "tiny, classification",
            "tiny, classification, model.frozen_stages=2",
            "tiny, ranking, exact",
        ]
        assert [
            (what, row["target"]) for (_, what, _), row in found.items() if row["wanted"] == "at most"
        ] == [
            ("share of the time of", 0.5),
            ("share of the time of", None),
            ("share of the time of", 0.2),
            ("share of the memory of", 0.6),
        ]


class TestPhases:
    @pytest.mark.slow
    def test_every_phase_of_the_recipe_is_measured_and_its_shares_are_all_of_it(self, run):
        found = run("phases", "--backbone", "tiny", "--side", "32", "--device", "cpu")
        names = [
            "classification_1",
            "apn_init_1",
            "classification_2",
            "apn_init_2",
            "classification_3",
            "ranking_1_2",
            "classification_1_2_3",
            "fusion",
        ]
        assert [name for name, _, _ in found if ":" not in name] == names
        assert {baseline for name, _, baseline in found if ":" not in name} == {"classification_1_2_3"}
        for name in names:
            own = {key[0]: row["ratio"] for key, row in found.items() if key[2] == name and ":" in key[0]}
            assert len(own) == len(breakdown.GROUPS) + 1
            assert sum(own.values()) == pytest.approx(1.0)
            assert own[f"{name}: {breakdown.LAYERS}"] > 0


class TestAnswer:
    """tools/bench/answer.py: every way answers the same, and each has its two ratios."""

    def test_ways_take_turns_on_the_same_photos(self, finished, tmp_path, monkeypatch):
        photos = []
        for i in range(4):
            photos.append(tmp_path / f"{i}.png")
            Image.fromarray(np.full((40 + i, 30, 3), 50 * i, np.uint8)).save(photos[-1])
        monkeypatch.setattr(torch, "compile", lambda network, **_: network)  # minutes, and no part of this
        ways = answer.ways_of(finished.folder / "best.pt", [], None)
        assert next(iter(ways)) == answer.BASE
        pixels = [np.asarray(Image.open(path)) for path in photos]
        found = {name: way(pixels[0]).fused for name, way in ways.items()}
        for each in found.values():
            torch.testing.assert_close(each.float(), found[answer.BASE], atol=0.5, rtol=0.5)
        figures = answer.measure(finished.folder / "best.pt", [], None, photos, num=3)
        assert [figure.name.rpartition(", ")[2] for figure in figures] == ["median", "95th percentile"] * 2
        assert all(figure.ratio > 0 for figure in figures)

    def test_turns(self):
        seen = []
        ways = {"a": lambda photo: seen.append(("a", photo)), "b": lambda photo: seen.append(("b", photo))}
        times = answer.take_turns(ways, [1, 2, 3, 4])
        assert seen[6:] == [("a", 1), ("b", 1), ("a", 2), ("b", 2), ("a", 3), ("b", 3), ("a", 4), ("b", 4)]
        assert {len(each) for each in times.values()} == {4}
