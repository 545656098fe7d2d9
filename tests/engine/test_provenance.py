"""A run tells what is needed to repeat it."""

import hashlib
import json
import os
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import racnn
from racnn.data import build_data
from racnn.engine.checkpoint import load_checkpoint
from racnn.engine.run_dir import commit_of, fingerprint, provenance, with_start
from racnn.engine.trainer import fit

CPU = torch.device("cpu")


def test_a_run_leaves_what_is_needed_to_repeat_it(finished):
    (start,) = json.loads((finished.folder / "run.json").read_text())["starts"]
    for name in ("last.pt", "previous.pt", "best.pt"):
        assert load_checkpoint(finished.folder / name)["provenance"] == [start]
    assert start["versions"]["racnn"] == racnn.__version__
    assert start["versions"]["torch"] == torch.__version__
    assert {"python", "torchvision", "albumentations", "timm", "pillow"} <= start["versions"].keys()
    assert (start["processes"], start["launch"], start["weights"]) == (1, None, None)
    assert start["folder"] == os.getcwd()
    assert start["seeds"] == {"run": 0, "split": 0}
    assert start["device"].startswith("cpu: ")
    assert start["command"] == shlex.join(sys.argv)
    assert start["step"] == 0
    assert {split: entry["num"] for split, entry in start["photos"].items()} == {
        "train": 56,
        "val": 8,
        "test": 16,
    }


def test_a_run_taken_up_otherwise_tells_both_starts(short, tmp_path, monkeypatch):
    fit(short(tmp_path), device=CPU)
    before = load_checkpoint(tmp_path / "last.pt")["provenance"]
    fit(short(tmp_path), device=CPU, resume=True)  # all is the same
    assert json.loads((tmp_path / "run.json").read_text())["starts"] == before
    monkeypatch.setattr("sys.argv", ["racnn", "train", "--out", "my runs"])
    fit(short(tmp_path), device=CPU, resume=True)
    first, second = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert [first] == before
    assert (second["step"], second["command"]) == (1, "racnn train --out 'my runs'")


def test_the_file_of_the_first_weights_is_told_by_its_content(short, tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file({"x": torch.zeros(1)}, file)
    config = short(tmp_path / "run", model__weights=str(file))
    start = provenance(config, build_data(config.data, seed=0), CPU, step=0)
    assert start["weights"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_starts_that_differ_in_their_step_alone_are_one():
    assert with_start([], {"step": 0, "command": "a"}) == [{"step": 0, "command": "a"}]
    one = [{"step": 0, "command": "a"}]
    assert with_start(one, {"step": 5, "command": "a"}) == one
    assert with_start(one, {"step": 5, "command": "b"}) == [*one, {"step": 5, "command": "b"}]


def records(*pairs):
    rows = [SimpleNamespace(name=name, label=label) for name, label in pairs]
    return SimpleNamespace(class_names=["auk", "tit"], splits={"train": SimpleNamespace(records=rows)})


def test_the_fingerprint_is_of_names_and_classes_and_not_of_their_order():
    plain = fingerprint(records(("a.png", 0), ("b.png", 1)))
    assert fingerprint(records(("b.png", 1), ("a.png", 0))) == plain
    others = [
        records(("a.png", 1), ("b.png", 1)),
        records(("a.png", 0)),
        records(("c.png", 0), ("b.png", 1)),
        records(("\udcff.png", 0), ("b.png", 1)),  # a name that is no text
    ]
    found = {fingerprint(other)["train"]["sha256"] for other in others}
    assert len(found | {plain["train"]["sha256"]}) == 5


def test_the_fingerprint_of_the_drawn_birds_is_known(tiny):
    """From ``printf 'drawn/0000000\\tRuby-eyed Reedling\\n...' | sha256sum`` over the sorted lines of the 16 test birds."""
    data = build_data(tiny().data, seed=0)
    lines = [f"drawn/{10**6 + i:07d}\t{data.class_names[i % 8]}\n" for i in range(16)]
    assert fingerprint(data)["test"]["sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.fixture
def checkout(tmp_path):
    def git(*words):
        identity = ("-c", "user.name=x", "-c", "user.email=x@example.com")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    git("init")
    (tmp_path / "a.py").write_text("1")
    git("add", "a.py")
    git("commit", "-m", "one")
    commit_of.cache_clear()
    yield tmp_path
    commit_of.cache_clear()


def test_the_commit_of_a_checkout_and_whether_it_was_changed(checkout):
    clean = commit_of(checkout)
    assert len(clean["sha"]) == 40
    assert clean["changed"] is False
    (checkout / "new.txt").write_text("not the program's")
    commit_of.cache_clear()
    assert commit_of(checkout) == clean
    (checkout / "a.py").write_text("2")
    commit_of.cache_clear()
    assert commit_of(checkout) == {**clean, "changed": True}


def test_without_a_checkout_or_git_there_is_no_commit(checkout, tmp_path_factory, monkeypatch):
    assert commit_of(tmp_path_factory.mktemp("installed")) is None
    monkeypatch.setenv("PATH", "")
    assert commit_of(checkout) is None
