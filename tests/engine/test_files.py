"""A file is replaced as a whole, at whatever moment the process dies."""

import os
import random
import signal
import sys
import time
from functools import partial

import pytest
import torch

from racnn.engine import checkpoint as files
from racnn.engine.checkpoint import (
    load_checkpoint,
    save_checkpoint,
    sweep,
    temporary_of,
    write_atomically,
    write_text,
)
from racnn.engine.run_dir import RUN_FILES


def content(step):
    return {
        "model": {"a.weight": torch.full((50, 40), step)},
        "config": {},
        "class_names": ["a", "b"],
        "step": step,
    }


def step_of(path):
    """Return the step of a checkpoint, having checked that it is whole."""
    stored = load_checkpoint(path)
    assert torch.equal(stored["model"]["a.weight"], content(stored["step"])["model"]["a.weight"])
    return stored["step"]


def save(folder, step):
    save_checkpoint(folder / "last.pt", content(step), previous=folder / "previous.pt")


def die_in_line(number):
    """End the process, as kill -9 does, before the given line of racnn/engine/files.py that is run."""
    lines = iter(range(1, number))

    def trace(frame, event, _):
        if frame.f_code.co_filename != files.__file__:
            return None
        if event == "line" and next(lines, None) is None:
            os._exit(9)
        return trace

    sys.settrace(trace)


def save_and_die(folder, number):
    die_in_line(number)
    save(folder, 3)


def in_a_fork(action):
    """Run an action in a copy of this process and return its exit code."""
    if (child := os.fork()) == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
def test_a_process_that_dies_in_any_line_leaves_a_whole_last_checkpoint(tmp_path):
    codes = []
    while 0 not in codes:
        for name in tmp_path.iterdir():
            name.unlink()
        save(tmp_path, 1)
        save(tmp_path, 2)

        codes.append(in_a_fork(partial(save_and_die, tmp_path, len(codes) + 1)))
        left = {name: step_of(tmp_path / name) for name in ("last.pt", "previous.pt")}
        assert (left["last.pt"], left["previous.pt"]) in ((2, 1), (2, 2), (3, 2)), codes
        save(tmp_path, 4)  # and the next one goes through, whatever was left
        assert step_of(tmp_path / "last.pt") == 4
        assert step_of(tmp_path / "previous.pt") == left["last.pt"]
        sweep(tmp_path / name for name in RUN_FILES)
        assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "previous.pt"}
    assert set(codes) == {0, 9}
    assert len(codes) > 15


def test_kill_9_at_any_moment_leaves_a_whole_last_checkpoint(tmp_path):
    rng, seen = random.Random(0), []
    save(tmp_path, 0)
    for _ in range(8):
        if (child := os.fork()) == 0:
            for step in range(seen[-1] + 1 if seen else 1, 100_000):
                save(tmp_path, step)
            os._exit(0)
        time.sleep(rng.uniform(0.02, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        seen.append(step_of(tmp_path / "last.pt"))
        if (tmp_path / "previous.pt").exists():
            assert step_of(tmp_path / "previous.pt") in (seen[-1] - 1, seen[-1])
    assert seen == sorted(seen)
    assert seen[-1] > 8


def test_the_file_before_is_kept_and_the_one_before_that_is_not(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert (step_of(tmp_path / "last.pt"), step_of(tmp_path / "previous.pt")) == (3, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "previous.pt"}


def test_two_names_of_one_file_are_no_obstacle(tmp_path):
    """A crash right before the last rename leaves them: to rename one to the other does nothing."""
    save(tmp_path, 1)
    os.link(tmp_path / "last.pt", tmp_path / "previous.pt")
    save(tmp_path, 2)
    assert (step_of(tmp_path / "last.pt"), step_of(tmp_path / "previous.pt")) == (2, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "previous.pt"}


def test_a_file_system_without_links_gets_a_copy(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    for step in (1, 2):
        save(tmp_path, step)
    assert (step_of(tmp_path / "last.pt"), step_of(tmp_path / "previous.pt")) == (2, 1)


def test_an_error_while_writing_leaves_no_half_file(tmp_path):
    write_text(tmp_path / "a.txt", "whole")

    def half(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "a.txt", half)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_sweeping_deletes_half_files_alone(tmp_path):
    for name in ("last.pt", "mine.tmp", ".notes.tmp"):
        (tmp_path / name).write_text("x")
    temporary_of(tmp_path / "last.pt").write_text("x")
    sweep(tmp_path / name for name in RUN_FILES)
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "mine.tmp", ".notes.tmp"}
