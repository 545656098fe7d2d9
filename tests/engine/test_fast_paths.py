"""What makes training fast or small leaves its results as they are."""

import json

import pytest
import torch

from racnn.compat import import_torchvision
from racnn.config import parse_config
from racnn.engine.trainer import fit

import_torchvision()
pytest.importorskip("timm")
# no batch norm, whose statistics would be those of a micro-batch
VALUES = {
    "run": {"precision": "fp32", "num_preview": 0, "log_every": 1, "channels_last": False},
    "data": {
        "dataset": "synthetic",
        "source_size": 72,
        "batch_size": 6,
        "num_workers": 0,
        "synthetic": {"num_train": 32, "num_test": 16},
        "val_fraction": 0.25,
    },
    "model": {"backbone": "timm/test_efficientnet_gn", "view_sizes": [64, 48, 48]},
    "schedule": [
        {"kind": "classification", "epochs": 2, "lr": 0.001},
        {"kind": "apn_init", "scales": [1], "epochs": 1, "lr": 0.001},
        {"kind": "ranking", "epochs": 1, "lr": 0.001, "margin": 1.0},
        {"kind": "ranking", "epochs": 1, "lr": 0.001, "margin": 1.0, "gradient": "smoothed"},
        {"kind": "fusion", "epochs": 1, "lr": 0.001},
    ],
}
FAST = {
    "channels last": {"channels_last": True},
    "activations computed again": {"activation_checkpointing": True},
    "micro-batches": {"micro_batch": 2},
    "all of them": {"channels_last": True, "activation_checkpointing": True, "micro_batch": 2},
}


def losses(folder, **changes):
    """Return (phase, loss, norm of the gradient) of every step."""
    values = {**VALUES, "run": {**VALUES["run"], "out": str(folder), **changes}}
    fit(parse_config(values, origin="the test"), device=torch.device("cpu"))
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(row["phase"], row["loss"], row["grad_norm"]) for row in rows if row["kind"] == "train"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return losses(tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST)
def test_a_fast_path_has_the_losses_of_the_plain_one(plain, name, tmp_path):
    fast = losses(tmp_path / "run", **FAST[name])
    assert len(plain) > 20
    assert [phase for phase, *_ in fast] == [phase for phase, *_ in plain]
    for (_, one, one_norm), (phase, other, other_norm) in zip(plain, fast, strict=True):
        assert other == pytest.approx(one, rel=1e-5), phase
        assert other_norm == pytest.approx(one_norm, rel=1e-3), phase
