"""tools/benchmark.py measures what it says: ratios from turns, a table, and the same as JSON."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from racnn.config import DataConfig
from racnn.errors import DataError

TOOL = Path(__file__).parents[2] / "tools" / "benchmark.py"


@pytest.fixture(scope="module")
def tool():
    return SimpleNamespace(**runpy.run_path(str(TOOL)))


@pytest.fixture
def clock(tool, monkeypatch):
    """A clock that only advances when told to."""
    now = [0.0]
    monkeypatch.setattr(tool.compare.__globals__["time"], "perf_counter", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_a_ratio_is_how_many_times_as_fast_as_the_baseline(tool, clock):
    ours = {"half": (lambda: clock(2.0), 2.5), "quarter": (lambda: clock(1.0), 2.5)}
    half, quarter = tool.compare(ours, ("slow", lambda: clock(4.0)), 5)
    assert (half.ratio, half.low, half.high, half.ok) == (2.0, 2.0, 2.0, False)
    assert (quarter.ratio, quarter.baseline, quarter.ok) == (4.0, "slow", True)


def test_all_take_turns_and_the_middle_of_the_rounds_counts(tool, clock):
    calls = []
    lengths = iter([1.0, 1.0, 1.0, 2.0, 50.0, 1.0])  # the warm-up, five rounds

    def ours():
        calls.append("ours")
        clock(next(lengths))

    (figure,) = tool.compare({"ours": (ours, 1.0)}, ("base", lambda: (calls.append("base"), clock(2.0))), 5)
    assert calls == ["base", "ours"] * 6
    assert figure.ratio == 2.0


def test_a_folder_without_photos_is_refused(tool, tmp_path):
    with pytest.raises(DataError, match="no photos in this folder"):
        tool.data(photos=8, root=tmp_path, rounds=3, json_file=None)


def test_the_figures_are_printed_and_written(tool, tmp_path, capsys):
    tool.data(photos=8, root=None, rounds=3, json_file=tmp_path / "deep" / "data.json")
    figures = json.loads((tmp_path / "deep" / "data.json").read_text())
    assert [figure["name"] for figure in figures] == ["data, from files", "data, from the cache"]
    assert all(
        figure["ratio"] > 0 and figure["ok"] == (figure["ratio"] >= figure["target"]) for figure in figures
    )
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 4
    torch.set_num_threads(1)  # which the tool has set anyway


def test_the_photos_that_are_made_have_the_size_of_cub_s(tool, tmp_path):
    from PIL import Image

    paths = tool.write_photos(tmp_path / "photos", 2)
    assert [Image.open(path).size for path in paths] == [(500, 375)] * 2
    assert 15e3 < paths[0].stat().st_size < 150e3
    read = tool.sample_reader(paths, DataConfig(num_workers=0, cache=tmp_path / "cache"), cached=True)
    read()
    assert (tmp_path / "cache").is_dir()
