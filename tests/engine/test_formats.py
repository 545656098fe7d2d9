"""What any version wrote, this one reads, evaluates and goes on from."""

import json
import lzma
import runpy
from pathlib import Path

import pytest
import torch

from racnn.engine.checkpoint import FORMAT, load_checkpoint, open_checkpoint
from racnn.engine.evaluator import evaluate_trained
from racnn.engine.predictor import load
from racnn.engine.trainer import fit

FIXTURES = Path(__file__).parents[1] / "fixtures"
PACKED = sorted(FIXTURES.glob("format_*.xz"))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fixtures")
    for path in PACKED:
        (folder / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
    return folder


def test_every_format_has_its_fixtures():
    expected = {f"format_{n}.{kind}.xz" for n in range(1, FORMAT + 1) for kind in ("pt", "safetensors")}
    assert {path.name for path in PACKED} == expected
    assert all(path.stat().st_size < 200_000 for path in FIXTURES.iterdir())


@pytest.mark.parametrize("name", [path.stem for path in PACKED])
def test_a_fixture_says_what_it_said(name, unpacked):
    """The numbers are of the version that wrote it, see tests/fixtures/make.py."""
    said = json.loads((FIXTURES / f"{Path(name).stem}.json").read_text())
    found = runpy.run_path(str(FIXTURES / "make.py"))["answers"](unpacked / name)
    assert found.keys() == said.keys()
    for answer, logits in said.items():
        torch.testing.assert_close(torch.tensor(found[answer]), torch.tensor(logits), atol=2e-4, rtol=0)
    assert load_checkpoint(unpacked / name)["format"] == FORMAT


@pytest.mark.parametrize("name", [path.stem for path in PACKED])
def test_a_fixture_is_evaluated(name, unpacked):
    report = evaluate_trained(load(unpacked / name), split="test")
    assert report["num_images"] == 16
    assert set(report["top1"]) == {"scale_1", "scale_2", "scale_1+2", "mean", "fused"}


@pytest.mark.parametrize("name", [path.stem for path in PACKED if ".pt" in path.name])
def test_a_fixture_is_gone_on_from(name, unpacked, tmp_path):
    stored = open_checkpoint(unpacked / name)
    config = stored.config.model_copy(
        update={"run": stored.config.run.model_copy(update={"out": str(tmp_path)})}
    )
    (tmp_path / "last.pt").write_bytes((unpacked / name).read_bytes())
    fit(config, device=torch.device("cpu"), resume=True)
    end = open_checkpoint(tmp_path / "last.pt").content
    assert end.step == 10
    assert len(end.progress.outcomes) == 3
    changed = {key for key, value in end.model.items() if not torch.equal(value, stored.content.model[key])}
    assert changed <= {"fusion.weight", "fusion.bias"}
