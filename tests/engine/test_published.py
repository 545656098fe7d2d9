"""An exported file is the network, with all that is needed to use it, whole or refused."""

import json

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from racnn.config import dump_config, parse_config
from racnn.engine.checkpoint import FORMAT, digest, load_checkpoint, write_published
from racnn.engine.evaluator import evaluate_trained
from racnn.engine.predictor import export_trained, load
from racnn.errors import CheckpointError, DamagedError


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "deep" / "birds.safetensors"
    export_trained(finished.folder / "best.pt", path)
    return path


@pytest.fixture
def small(tmp_path):
    """An exported file of a few hundred bytes."""
    content = {
        "format": FORMAT,
        "model": {"b": torch.arange(6.0), "a": torch.tensor(3)},
        "config": {"x": [1, None, 0.1]},
    }
    write_published(tmp_path / "a.safetensors", {**content, "class_names": ["auk", "\ud800"]})
    return tmp_path / "a.safetensors"


def test_plain_safetensors_reads_weights_names_and_configuration(exported, finished):
    stored = load_checkpoint(finished.folder / "best.pt")
    weights = safetensors.torch.load_file(exported)
    assert weights.keys() == stored["model"].keys()
    assert all(torch.equal(weights[name], value) for name, value in stored["model"].items())
    with safe_open(exported, framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["racnn.format"]) == FORMAT
    assert json.loads(metadata["racnn.class_names"]) == stored["class_names"]
    config = parse_config(json.loads(metadata["racnn.config"]), origin="metadata", stored=True)
    assert dump_config(config) == stored["config"]


def test_an_exported_network_is_the_one_it_was_exported_from(exported, finished):
    left, right = load(exported), load(finished.folder / "best.pt")
    assert digest(left.model.state_dict()) == digest(right.model.state_dict())
    for name in ("config", "class_names", "train_names", "val_names", "scales", "fused"):
        assert getattr(left, name) == getattr(right, name)
    assert evaluate_trained(left, split="test") == evaluate_trained(right, split="test")


def test_of_a_run_that_goes_on_only_the_network_is_exported(finished, tmp_path):
    export_trained(finished.folder / "last.pt", tmp_path / "last.safetensors")
    content = load_checkpoint(tmp_path / "last.safetensors")
    assert not {"progress", "optimizer"} & content.keys()
    assert load(tmp_path / "last.safetensors").scales == 3


def test_an_exported_file_can_be_exported_again(exported, tmp_path):
    export_trained(exported, tmp_path / "again.safetensors")
    assert digest(load_checkpoint(tmp_path / "again.safetensors")) == digest(load_checkpoint(exported))


def test_any_flipped_byte_is_detected(small):
    data = small.read_bytes()
    load_checkpoint(small)
    start = 8 + int.from_bytes(data[:8], "little")
    for place in range(len(data)):
        if place < start and data[place : place + 1] == b" ":
            continue  # the padding of the header
        small.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(DamagedError, match=r"a\.safetensors"):
            load_checkpoint(small)


def test_a_flipped_byte_of_the_weights_is_detected(exported, tmp_path):
    data = bytearray(exported.read_bytes())
    data[len(data) // 2] ^= 16
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(DamagedError, match="does not match its digest"):
        load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"racnn.format": "1"}])
def test_weights_of_another_program_are_refused(metadata, tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(3)}, tmp_path / "x.safetensors", metadata)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: not a racnn checkpoint"):
        load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("value", ["", "{", "[" * 100_000, "1e", "\x00"])
def test_metadata_that_are_no_json_are_refused(value, small, tmp_path):
    with safe_open(small, framework="pt") as file:
        metadata = file.metadata()
    weights = safetensors.torch.load_file(small)
    safetensors.torch.save_file(weights, tmp_path / "x.safetensors", metadata | {"racnn.config": value})
    with pytest.raises(DamagedError, match=r"x\.safetensors: cannot be read"):
        load_checkpoint(tmp_path / "x.safetensors")
