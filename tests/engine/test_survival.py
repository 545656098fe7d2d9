"""A run ends with the weights it would have had, wherever it was stopped, killed and taken up again."""

import multiprocessing
import os
import random
import socket
import threading

import pytest
import torch
from pieces import train_in_pieces
from tqdm import tqdm

from racnn.engine.checkpoint import digest, load_checkpoint
from racnn.engine.trainer import fit

CPU = torch.device("cpu")
# phases last 4 steps, so that stops after every third fall on each place of a phase
SCHEDULE = [
    {"kind": "classification", "scales": [1], "epochs": 1, "lr": 0.02},
    {"kind": "apn_init", "scales": [1], "epochs": 2, "optimizer": "adamw", "lr": 0.001, "keep": "best"},
    {"kind": "classification", "scales": [2], "init_from": 1, "epochs": 1, "lr": 0.01},
    {"alternate": [
        {"kind": "ranking", "epochs": 1, "optimizer": "adamw", "lr": 0.0001, "keep": "if_better"},
        {"kind": "classification", "epochs": 1, "lr": 0.01, "keep": "if_better"},
    ], "rounds": 2},
    {"kind": "ranking", "epochs": 1, "gradient": "smoothed", "lr": 0.0001},
    {"kind": "localise", "epochs": 1, "lr": 0.0001},
    {"kind": "fusion", "epochs": 2, "lr": 0.01, "keep": "if_better"},
]  # fmt: skip
STOPPED_KINDS = {"classification", "apn_init", "ranking", "localise", "fusion"}


def config_of(tiny, folder, workers=0, **changes):
    settings = {"data__num_workers": workers, "run__num_preview": 0, "model__view_sizes": [32, 32]}
    return tiny(folder, schedule=SCHEDULE, **settings | changes)


def final(folder):
    return digest(load_checkpoint(folder / "last.pt")["model"])


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    fit(config_of(tiny, folder), device=CPU)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_stopped_after_every_third_step_it_ends_the_same(tiny, whole, tmp_path, workers):
    phases = []
    train_in_pieces(config_of(tiny, tmp_path / "run", workers), phases)
    assert set(phases) == STOPPED_KINDS
    assert len(phases) >= 8
    assert final(tmp_path / "run") == final(whole)


def one_of_two(rank, port, folder, workers, pieces, make):
    """Be one of two processes that train, in pieces or at once; rank 1 alone is told to stop."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    phases = []
    config = make(folder, workers)
    if pieces:
        train_in_pieces(config, phases, told=rank == 1)
        assert set(phases) == (STOPPED_KINDS if rank == 1 else set())
    else:
        fit(config, device=CPU)


def two_processes(make, folder, workers, *, pieces):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    both = [
        context.Process(target=one_of_two, args=(rank, port, folder, workers, pieces, make))
        for rank in (0, 1)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(timeout=240)
    assert [process.exitcode for process in both] == [0, 0]


@pytest.fixture(scope="module")
def whole_of_two(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole_of_two") / "run"
    two_processes(lambda path, workers: config_of(tiny, path, workers), folder, 0, pieces=False)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_stopped_after_every_third_step_end_the_same(tiny, whole_of_two, tmp_path, workers):
    make = lambda path, workers: config_of(tiny, path, workers)  # noqa: E731
    two_processes(make, tmp_path / "run", workers, pieces=True)
    assert final(tmp_path / "run") == final(whole_of_two)


def killed_and_started_again(config, folder, kills, seed):
    """Train in child processes that are killed at random moments; the last one may end. Return how many were killed."""
    draw = random.Random(seed)
    context = multiprocessing.get_context("fork")
    killed = 0
    while True:
        begun = (folder / "last.pt").exists()
        child = context.Process(target=quiet_fit, args=(config, begun))
        child.start()
        if killed == kills:
            child.join(timeout=240)
            assert child.exitcode == 0
            return killed
        child.join(timeout=draw.uniform(0.05, 1.0))
        if child.is_alive():
            child.kill()
            child.join()
            killed += 1
        else:
            assert child.exitcode == 0, "it ended before it was killed often enough"
            return killed
        if (folder / "last.pt").exists():
            load_checkpoint(folder / "last.pt")


def quiet_fit(config, resume):
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own one is shared with forked processes: one killed would keep it
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    fit(config, device=CPU, resume=resume, overwrite=not resume)


@pytest.mark.parametrize(
    ("kills", "epochs"), [(4, 1), pytest.param(30, 12, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_killed_at_random_moments_it_ends_the_same(tiny, tmp_path, kills, epochs):
    """A save every other step, so that many kills fall into one."""
    schedule = [{**phase, "epochs": epochs} for phase in SCHEDULE if "kind" in phase]
    configs = [
        config_of(tiny, tmp_path / name, run__save_every=2).model_copy(
            update={"schedule": tiny(tmp_path / name, schedule=schedule, model__view_sizes=[32, 32]).schedule}
        )
        for name in ("whole", "killed")
    ]
    fit(configs[0], device=CPU)
    killed = killed_and_started_again(configs[1], tmp_path / "killed", kills, seed=kills)
    assert killed >= min(kills, 25)
    assert final(tmp_path / "killed") == final(tmp_path / "whole")
