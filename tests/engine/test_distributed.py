"""Several processes train as one would: the same batches and losses, one network, and they stop and start together."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import yaml

from racnn.compat import import_torchvision
from racnn.engine.checkpoint import digest, load_checkpoint
from racnn.engine.distributed import ALONE, ProcessGroup, agree, own_device
from racnn.engine.loop import Step, _joined_step
from racnn.errors import ConfigError

import_torchvision()
pytest.importorskip("timm")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# a small network without batch norm, whose statistics would be those of a process's share
VALUES = {
    "run": {"precision": "fp32", "num_preview": 0, "log_every": 1, "save_every": 3},
    "data": {
        "dataset": "synthetic",
        "source_size": 72,
        "batch_size": 6,
        "eval_batch_size": 5,
        "num_workers": 0,
        "synthetic": {"num_train": 32, "num_test": 16},
        "val_fraction": 0.25,
    },
    "model": {"backbone": "timm/test_efficientnet_gn", "view_sizes": [64, 64, 64]},
    "schedule": [
        {"kind": "classification", "scales": [1], "epochs": 1, "lr": 0.001},
        {"kind": "apn_init", "scales": [1], "epochs": 1, "lr": 0.001, "keep": "best", "response": "ddt"},
        {"kind": "classification", "scales": [2], "init_from": 1, "epochs": 1, "lr": 0.001},
        {"kind": "apn_init", "scales": [2], "epochs": 1, "lr": 0.001, "response": "cam"},
        {"kind": "classification", "epochs": 1, "lr": 0.001, "keep": "if_better"},
        {"kind": "ranking", "epochs": 1, "lr": 0.001, "keep": "if_better", "margin": 1.0},
        {"kind": "fusion", "epochs": 1, "lr": 0.001},
    ],
}


def command(config, out, *options, processes=1, restarts=0):
    train = ["racnn", "train", "--config", str(config), "--out", str(out), "--device", "cpu", *options]
    if processes == 1:
        return [sys.executable, "-m", *train]
    torchrun = ["torch.distributed.run", "--nproc-per-node", str(processes), "--max-restarts", str(restarts)]
    endpoint = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    return [sys.executable, "-m", *torchrun, *endpoint, "-m", *train]


def run(*args, environment=(), **options):
    return subprocess.run(
        command(*args, **options),
        env={**ENVIRONMENT, **dict(environment)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(yaml.safe_dump(VALUES))
    return path


@pytest.fixture(scope="module")
def together(config, tmp_path_factory):
    """Two processes that train to the end."""
    folder = tmp_path_factory.mktemp("together") / "run"
    done = run(config, folder, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    done = run(config, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def rows(folder, kind):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def weights(folder):
    return digest(load_checkpoint(folder / "last.pt")["model"])


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(alone, together):
    """Each sees half of every batch; a last batch of two photos gives each one, and so on."""
    left, right = rows(alone, "train"), rows(together[0], "train")
    assert [(r["step"], r["phase"]) for r in left] == [(r["step"], r["phase"]) for r in right]
    assert len(left) > 20
    for one, two in zip(left[:20], right[:20], strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - {"kind", "phase"}:
            exact = 1e-3 if name == "grad_norm" else 1e-5
            assert two[name] == pytest.approx(one[name], rel=exact), (one["step"], name)


@pytest.mark.slow
def test_two_processes_measure_every_photo_once(alone, together):
    for one, two in zip(rows(alone, "val"), rows(together[0], "val"), strict=True):
        for name in one.keys() - {"kind", "phase"}:
            assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4), (one["step"], name)


@pytest.mark.slow
def test_only_the_first_process_speaks(together):
    lines = together[1].stdout.splitlines()
    assert sum("photos:" in line for line in lines) == 1
    assert sum("07-fusion: kept" in line for line in lines) == 1


@pytest.mark.slow
def test_processes_stop_together_at_a_signal_and_go_on_to_the_same_end(config, together, tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command(config, folder, "--set", "run.save_every=0", processes=2),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: len(rows(folder, "train")) >= 5 if (folder / "metrics.jsonl").exists() else False)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    stored = load_checkpoint(folder / "last.pt")
    assert f"stopped by signal 15 after step {stored['step']}" in said
    assert stored["step"] < load_checkpoint(together[0] / "last.pt")["step"]
    done = run(config, folder, "--resume", processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert weights(folder) == weights(together[0])


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_is_started_again_and_ends_with_the_same_weights(
    config, together, tmp_path, victim
):
    """The victim kills itself, as a machine that goes down would, once, in the middle of the third phase."""
    folder = tmp_path / "run"
    done = run(config, folder, processes=2, restarts=1, environment=killing(victim, tmp_path))
    assert (tmp_path / "killed").exists()
    assert done.returncode == 0, done.stderr[-3000:]
    assert weights(folder) == weights(together[0])


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_machine_whose_process_is_killed_starts_again_with_the_others(config, together, tmp_path, victim):
    """Two machines, each with a torchrun and a process: only the one of the victim counts the restart."""
    folder = tmp_path / "run"
    environment = {**ENVIRONMENT, **killing(victim, tmp_path)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    train = ["racnn", "train", "--config", str(config), "--out", str(folder), "--device", "cpu"]
    torchrun = ["torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "1"]
    endpoint = ["--rdzv-backend", "c10d", "--rdzv-id", "two", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    machine = [sys.executable, "-m", *torchrun, *endpoint, "-m", *train]
    with subprocess.Popen(machine, env=environment, stderr=subprocess.PIPE, text=True) as other:
        try:
            done = subprocess.run(machine, env=environment, capture_output=True, text=True, timeout=300)
            stderr = other.communicate(timeout=120)[1]
        finally:
            other.kill()
    assert (tmp_path / "killed").exists()
    assert done.returncode == 0, done.stderr[-3000:]
    assert other.returncode == 0, stderr[-3000:]
    assert weights(folder) == weights(together[0])


def killing(victim, folder):
    """The environment of processes of which one kills itself, once, at step 11 of those it sees."""
    (folder / "sitecustomize.py").write_text(KILLER)
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    return {"RACNN_TEST_KILL": f"{victim}:11:{folder / 'killed'}", "PYTHONPATH": os.pathsep.join(paths)}


KILLER = """
import os, sys
if "RACNN_TEST_KILL" in os.environ and "RANK" in os.environ:
    rank, step, mark = os.environ["RACNN_TEST_KILL"].split(":", 2)
    if os.environ["RANK"] == rank and not os.path.exists(mark):
        from racnn.engine import trainer
        plain = trainer.train_one_epoch
        count = [0]
        def counted(*args):
            for taken in plain(*args):
                yield taken  # and come back when the step is dealt with
                count[0] += 1
                if count[0] == int(step):
                    open(mark, "w").close()
                    os.kill(os.getpid(), 9)
        trainer.train_one_epoch = counted
"""


@pytest.mark.slow
def test_a_mistake_is_told_once_and_ends_all_processes(config, tmp_path):
    begun = time.monotonic()
    done = run(
        config, tmp_path / "run", "--set", "data.classes=77", "--set", "data.dataset=cub200", processes=2
    )
    assert done.returncode != 0
    assert time.monotonic() - begun < 60
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
        "error: data.root: not set; expected a folder with images.txt and images/"
    ]
    run_there = tmp_path / "there"
    run_there.mkdir()
    (run_there / "last.pt").write_bytes(b"")
    done = run(config, run_there, processes=2)
    assert done.returncode != 0
    assert done.stderr.count("already holds a run") == 1


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


FAILING = """
import os
if os.environ.get("RANK") == "1":
    import racnn.data.build as build
    def fail(*_, **__): raise OSError("no such disk")
    build.DATASETS["synthetic"] = fail
"""


@pytest.mark.slow
def test_an_earlier_run_stays_where_any_process_fails_at_the_start(config, together, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(together[0], folder)
    (tmp_path / "sitecustomize.py").write_text(FAILING)
    before = weights(folder)
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = run(config, folder, "--overwrite", processes=2, environment={"PYTHONPATH": paths})
    assert done.returncode != 0
    assert "no such disk" in done.stderr
    assert weights(folder) == before


def test_processes_agree_on_a_name_whatever_an_earlier_start_left_behind():
    store = torch.distributed.HashStore()
    names = []
    for _ in range(3):  # a start, and two after it that find its words in the store
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda rank: agree(store, rank, 4), [3, 1, 0, 2]))
        assert len(set(found)) == 1
        names.append(found[0])
    assert len(set(names)) == 3


def one_of_three(rank, port, folder, pieces):
    """Take six steps as one of three processes, joined anew for every piece of them."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=3
    )
    torch.manual_seed(0)
    model = Step(torch.nn.Sequential(*[torch.nn.Linear(600, 600) for _ in range(3)]), None, None)
    model.forward = lambda x: model.model(x).square().mean()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    photos = torch.randn(6, 3, 4, 600, generator=torch.Generator().manual_seed(1))
    for steps in photos.chunk(pieces):
        joined = _joined_step(model, torch.device("cpu"), ProcessGroup(rank, 3))
        for step in steps:
            optimizer.zero_grad()
            joined(step[rank]).backward()
            optimizer.step()
    if rank == 0:
        (folder / f"{pieces}.txt").write_text(digest(model.state_dict()))
    torch.distributed.barrier()
    os._exit(0)


@pytest.mark.slow
def test_three_processes_that_go_on_add_up_in_the_order_of_those_that_did_not_stop(tmp_path):
    """Sums of three depend on their order; the gradients of this network take several of DDP's buckets."""
    for pieces in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torch.multiprocessing.spawn(one_of_three, (port, tmp_path, pieces), nprocs=3)
    assert (tmp_path / "1.txt").read_text() == (tmp_path / "2.txt").read_text()


def test_a_single_process_needs_no_group():
    assert ALONE.is_main_process
    assert ALONE.gather([1, 2]) == [1, 2]
    assert ALONE.from_main_process(lambda: 3) == 3
    assert torch.equal(ALONE.total(torch.ones(2)), torch.ones(2))


def test_under_torchrun_a_single_gpu_cannot_be_named(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ConfigError, match=r"--device cuda:1"):
        own_device(torch.device("cuda", 1))
    with pytest.raises(ConfigError, match="has no GPU"):
        own_device(torch.device("cuda"))
    assert own_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.skipif(
    sys.platform != "linux", reason="the test asks glibc for a call at the end of the process"
)
@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["train", "--config", "none.yaml"], 2)])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_library_that_aborts_at_the_end_fails_none_of_several_processes(arguments, code, processes):
    """DistributedDataParallel leaves threads behind with which C++'s destructors abort, when all has been done."""
    program = (
        "import atexit, ctypes, sys\n"
        "atexit.register(print, 'told at the end')\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.__cxa_atexit(ctypes.cast(libc.abort, ctypes.c_void_p), None, None)\n"
        f"sys.argv[1:] = {arguments}\n"
        "from racnn.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**ENVIRONMENT, "WORLD_SIZE": str(processes)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == (code if processes > 1 else -signal.SIGABRT)
    assert done.stdout.endswith("told at the end\n")
    assert ("none.yaml" in done.stderr) == (code == 2)
