"""A checkpoint is whole or refused, and reading one never runs anything."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from evil import Evil

from racnn.engine import checkpoint
from racnn.engine.checkpoint import digest, load_checkpoint, save_checkpoint
from racnn.errors import CheckpointError, DamagedError


def content():
    generator = torch.Generator().manual_seed(0)
    return {
        "model": {"a.weight": torch.randn(40, 30, generator=generator), "a.steps": torch.tensor(7)},
        "config": {"run": {"seed": 0}, "schedule": [{"lr": 0.1}]},
        "class_names": ["auk", "tit"],
        "progress": {"best": None, "stale": True, "rate": 1e-5, "half": torch.ones(3, dtype=torch.bfloat16)},
    }


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, content())
    return path


def test_a_checkpoint_comes_back_as_it_was(path):
    loaded = load_checkpoint(path)
    assert digest(loaded) == digest({"format": checkpoint.FORMAT, **content()})
    assert torch.equal(loaded["model"]["a.weight"], content()["model"]["a.weight"])
    assert loaded["progress"]["half"].dtype == torch.bfloat16
    assert loaded["config"] == content()["config"]


def test_plain_torch_reads_the_weights(path):
    weights = torch.load(path, weights_only=True)["model"]
    assert torch.equal(weights["a.weight"], content()["model"]["a.weight"])


def test_saving_leaves_one_file(path):
    save_checkpoint(path, content())
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("offset", [0, 1, 2400, 4799])
def test_one_flipped_bit_of_the_weights_is_detected(path, offset):
    data = bytearray(path.read_bytes())
    weights = content()["model"]["a.weight"].numpy().tobytes()
    place = data.find(weights)
    assert place > 0
    data[place + offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"last\.pt"):
        load_checkpoint(path)


def test_a_flipped_byte_anywhere_is_detected_or_harmless(path):
    data, whole = path.read_bytes(), digest(load_checkpoint(path))
    refused = 0
    for place in range(0, len(data), 53):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            assert digest(load_checkpoint(path)) == whole, place
        except CheckpointError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["model"]["a.weight"].view(-1)[5:6].add_(1e-3),
        lambda c: c["config"]["run"].update(seed=1),
        lambda c: c["class_names"].reverse(),
        lambda c: c["progress"].update(stale=1),  # of another type
        lambda c: c.update(extra=None),
    ],
    ids=["weight", "setting", "order", "type", "key"],
)
def test_content_that_does_not_fit_its_digest_is_refused(path, change):
    stored = torch.load(path, weights_only=True)
    change(stored)
    torch.save(stored, path)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_the_digest_sees_names_types_shapes_and_values():
    variants = [
        {"a": torch.zeros(4)},
        {"b": torch.zeros(4)},
        {"a": torch.zeros(2, 2)},
        {"a": torch.zeros(4, dtype=torch.int32)},
        {"a": [0.0, 0.0, 0.0, 0.0]},
        {"a": [0, 0, 0, 0]},
        {"a": "0"},
        {"a": None},
        {"a": {}},
        {"a": []},
        {},
    ]
    assert len({digest(v) for v in variants}) == len(variants)


def test_the_digest_is_of_values_not_of_how_they_are_stored():
    values = torch.arange(12.0).view(3, 4)
    assert digest(values) == digest(values.T.contiguous().T)
    assert digest([1, 2]) == digest((1, 2))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_file_cut_short_is_refused(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"last\.pt: cannot be read"):
        load_checkpoint(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pt: no such checkpoint"):
        load_checkpoint(tmp_path / "none.pt")


@pytest.mark.parametrize("junk", [b"junk", b"\x89PNG\r\n", b"PK\x03\x04" + bytes(100)])
def test_a_file_of_something_else_is_refused(tmp_path, junk):
    (tmp_path / "x.pt").write_bytes(junk)
    with pytest.raises(CheckpointError, match=r"x\.pt: cannot be read"):
        load_checkpoint(tmp_path / "x.pt")


def test_of_a_folder_the_checkpoints_inside_are_told(path):
    save_checkpoint(path, content())
    renamed = path.rename(path.parent / "best.pt")
    with pytest.raises(
        CheckpointError, match=f"{path.parent}: a folder; expected a checkpoint, such as {renamed}"
    ):
        load_checkpoint(path.parent)


@pytest.mark.parametrize("stored", [{"state_dict": {}}, [1, 2], torch.zeros(2), {"model": {}, "config": {}}])
def test_a_torch_file_that_is_no_checkpoint_is_refused(tmp_path, stored):
    torch.save(stored, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt: not a racnn checkpoint.*class_names"):
        load_checkpoint(tmp_path / "x.pt")


def test_a_newer_format_is_refused(path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 3)
    save_checkpoint(path, content())
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=rf"format 3 is newer .* up to format {checkpoint.FORMAT}$"):
        load_checkpoint(path)


@pytest.mark.parametrize("number", [0, -1, "1", None, 1.0, True])
def test_a_format_that_is_none_is_refused(path, number, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", number)
    save_checkpoint(path, content())
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format: expected a number from 1 to"):
        load_checkpoint(path)


@pytest.fixture
def three_formats(path, monkeypatch):
    """As if format 2 had renamed a key of format 1, and format 3 another one of format 2."""

    def renamed(old, new):
        return lambda content: {**{k: v for k, v in content.items() if k != old}, new: content[old]}

    monkeypatch.setattr(checkpoint, "FORMAT", 1)
    save_checkpoint(path, content())
    monkeypatch.setattr(checkpoint, "FORMAT", 3)
    steps = {1: renamed("progress", "position"), 2: renamed("position", "place")}
    monkeypatch.setattr(checkpoint, "MIGRATIONS", steps)


def test_an_older_format_is_brought_up_to_date_step_by_step(path, three_formats):
    loaded = load_checkpoint(path)
    assert loaded.keys() == {"format", "model", "config", "class_names", "place"}
    assert loaded["format"] == 3
    assert digest(loaded["place"]) == digest(content()["progress"])
    assert checkpoint.as_written(path)["format"] == 1  # the file stays as it is
    save_checkpoint(path, loaded)
    assert digest(load_checkpoint(path)) == digest(loaded)


def test_a_content_that_is_not_of_its_format_is_refused(path, three_formats):
    save_checkpoint(
        path, {key: value for key, value in content().items() if key != "progress"} | {"format": 1}
    )
    with pytest.raises(CheckpointError, match="its content is not that of checkpoint format 1"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, "compact_unnormalised"), ("compact", "compact_unnormalised"), ("paper", "paper")],
)
def test_an_apn_of_format_1_stays_what_it_was(path, before, after, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 1)
    save_checkpoint(
        path, {**content(), "config": {"model": {"apn": before} if before else {}, "schedule": []}}
    )
    monkeypatch.undo()
    assert load_checkpoint(path)["config"] == {"model": {"apn": after}, "schedule": []}


def test_there_is_a_way_from_every_format_to_this_one():
    assert checkpoint.MIGRATIONS.keys() == set(range(1, checkpoint.FORMAT))


def test_beside_a_damaged_checkpoint_the_whole_ones_are_named(path):
    save_checkpoint(path.with_name("best.pt"), content())
    path.with_name("previous.pt").write_bytes(b"junk")
    path.with_name("mine.pt").write_bytes(b"junk")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(
        DamagedError, match=rf"last\.pt: cannot be read.*; whole in the same folder: {path.parent}/best\.pt$"
    ):
        load_checkpoint(path)
    path.with_name("best.pt").unlink()
    with pytest.raises(DamagedError, match=r"another kind of file$"):
        load_checkpoint(path)


def test_what_a_checkpoint_cannot_hold_is_not_saved(path):
    before = path.read_bytes()
    for odd in (Path("x"), {1, 2}, 2**70, torch.zeros(2).to_sparse()):
        with pytest.raises(AssertionError):
            save_checkpoint(path, {**content(), "odd": odd})
    assert path.read_bytes() == before


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("save", [torch.save, lambda evil, path: path.write_bytes(pickle.dumps(evil))])
def test_a_file_with_code_in_it_is_refused_and_not_executed(tmp_path, save):
    victim = tmp_path / "executed"
    pickle.loads(pickle.dumps(Evil(victim)))
    assert victim.exists()  # it does what it should in careless hands
    victim.unlink()
    save({**content(), "format": 1, "digest": "", "evil": Evil(victim)}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"evil\.pt: cannot be read") as caught:
        load_checkpoint(tmp_path / "evil.pt")
    assert "weights_only" not in str(caught.value)  # torch's advice to trust the file
    assert not victim.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("floats", [10, 10**6])
def test_a_full_device_is_told_as_what_it_is(path, monkeypatch, floats):
    def write(path, write, **_):
        with Path("/dev/full").open("wb", buffering=0) as file:
            write(file)

    monkeypatch.setattr(checkpoint, "write_atomically", write)
    with pytest.raises(OSError, match="No space left on device"):
        save_checkpoint(path, {**content(), "more": torch.zeros(floats)})


@pytest.mark.parametrize("moment", ["save", "fsync", "replace"])
def test_a_crash_while_saving_leaves_the_old_checkpoint(path, monkeypatch, moment):
    def half(stored, file):
        file.write(b"half of it")
        raise OSError("disk full")

    def crash(*_):
        raise OSError("disk full")

    before = path.read_bytes()
    if moment == "save":
        monkeypatch.setattr(torch, "save", half)
    else:
        monkeypatch.setattr(os, moment, crash)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, {**content(), "class_names": ["other"]})
    monkeypatch.undo()
    assert path.read_bytes() == before
    save_checkpoint(path, {**content(), "class_names": ["other"]})  # and the next one goes through
    assert load_checkpoint(path)["class_names"] == ["other"]
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]


def test_saving_does_not_change_what_was_given(tmp_path):
    given = content()
    save_checkpoint(tmp_path / "a.pt", given)
    assert given.keys() == content().keys()
