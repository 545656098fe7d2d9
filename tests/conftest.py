"""What tests share: one thread, a tiny configuration, and one trained run that many of them read."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded; processes that tests start inherit it

import pytest
import torch

from racnn import cli
from racnn.config import Config, parse_config

torch.set_num_threads(1)

# 64 drawings, 56 of them for training, in batches of 16: 4 steps an epoch, 36 in all
TINY_SCHEDULE = [
    {"kind": "classification", "scales": [1], "epochs": 2, "lr": 0.02, "keep": "best"},
    {"kind": "apn_init", "scales": [1], "epochs": 1, "optimizer": "adamw", "lr": 0.001, "response": "ddt"},
    {"kind": "classification", "scales": [2], "init_from": 1, "epochs": 1, "lr": 0.01},
    {"kind": "apn_init", "scales": [2], "epochs": 1, "optimizer": "adamw", "lr": 0.001, "response": "cam"},
    {"kind": "classification", "scales": [3], "epochs": 1, "lr": 0.01, "init_from": 2, "clip_grad": 1.0},
    {
        "alternate": [
            {"kind": "ranking", "epochs": 1, "optimizer": "adamw", "lr": 0.0001, "keep": "if_better"},
            {"kind": "classification", "epochs": 1, "lr": 0.01, "keep": "if_better"},
        ]
    },
    {"kind": "fusion", "epochs": 1, "lr": 0.01, "keep": "if_better"},
]
SHORT_SCHEDULE = [{"kind": "classification", "scales": [1], "epochs": 1, "lr": 0.01}]


def tiny_values(out: Path | str = "unused", *, schedule: Any = None, **changes: Any) -> dict[str, Any]:
    """Return the plain values of a configuration that trains in seconds; changes are ``data__seed=3``."""
    values: dict[str, Any] = {
        "run": {"out": str(out), "precision": "fp32", "log_every": 1, "num_preview": 2},
        "data": {
            "dataset": "synthetic",
            "source_size": 48,
            "batch_size": 16,
            "num_workers": 0,
            "synthetic": {"num_train": 64, "num_test": 16},
        },
        "model": {"backbone": "tiny", "view_sizes": [32, 32, 32]},
        "schedule": TINY_SCHEDULE if schedule is None else schedule,
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = values
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return values


@dataclass
class FinishedRun:
    """A run that went through its whole schedule without a stop.

    Attributes:
        folder: Of the run.
        config: Of the run.
        digests: Of the network's state after each optimizer step.
    """

    folder: Path
    config: Config
    digests: dict[int, str] = field(default_factory=dict)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Config]:
    """Return a factory of tiny configurations: ``tiny(out, schedule=[...], data__num_workers=1)``."""
    return lambda *args, **changes: parse_config(tiny_values(*args, **changes), origin="tiny")


@pytest.fixture(scope="session")
def tiny_file() -> Callable[..., Path]:
    """Return a writer of tiny YAML files: ``tiny_file(path, out=folder)``."""
    import yaml

    def write(path: Path, **changes: Any) -> Path:
        path.write_text("# tiny\n" + yaml.safe_dump(tiny_values(**changes)), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def short(tiny: Callable[..., Config]) -> Callable[..., Config]:
    """Return a factory of the shortest runs there are: one phase of one scale, one step."""

    def make(out: Path, **changes: Any) -> Config:
        smallest = {"schedule": SHORT_SCHEDULE, "data__synthetic__num_train": 16, "run__num_preview": 0}
        return tiny(out, **smallest | changes)

    return make


@pytest.fixture(scope="session")
def finished(tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Train through the whole tiny schedule once; tests read it and leave it as it is."""
    from racnn.engine import trainer
    from racnn.engine.checkpoint import digest

    folder = tmp_path_factory.mktemp("finished") / "run"
    run = FinishedRun(folder, tiny(folder))
    plain = trainer.train_one_epoch

    def traced(model: Any, *rest: Any) -> Any:
        for step in plain(model, *rest):
            run.digests[len(run.digests) + 1] = digest(model.state_dict())
            yield step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train_one_epoch", traced)
        trainer.fit(run.config, device=torch.device("cpu"))
    return run


@pytest.fixture
def browser() -> Iterator[Any]:
    """Open Chromium without a window."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("needs chromium, such as Debian's package")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def racnn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Call the command line in this process: ``racnn("train", "--config", path)``; the device is the CPU."""

    def call(*given: Any) -> SimpleNamespace:
        words = [str(word) for word in given]
        if (
            words[0] in ("train", "evaluate", "visualize", "predict", "demo", "advise", "compare", "report")
            and "--device" not in words
        ):
            words += ["--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["racnn", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=caught.value.code or 0, out=out, err=err)

    return call


def sure_of(classes: torch.Tensor, num: int, value: float = 30.0) -> torch.Tensor:
    """Return logits [N, num] that are sure of the classes given, [N]."""
    return torch.nn.functional.one_hot(classes, num).float() * value
