"""A checkpoint whose digest is right and whose content is not is refused by the part and the reason."""

import copy

import pytest
import torch

from racnn.engine.checkpoint import (
    check_content,
    check_resumable,
    load_checkpoint,
    open_checkpoint,
    save_checkpoint,
)
from racnn.engine.predictor import load
from racnn.engine.trainer import fit
from racnn.errors import CheckpointError, UserError


@pytest.fixture(scope="module")
def content(finished):
    return load_checkpoint(finished.folder / "last.pt")


@pytest.fixture(scope="module")
def unfinished(short, tmp_path_factory):
    """The content of a run's last.pt in the middle of a phase that keeps the best epoch, by AdamW."""
    from racnn.engine import trainer

    kept, plain = [], trainer.save_checkpoint
    phase = {"kind": "classification", "epochs": 2, "lr": 0.01, "optimizer": "adamw", "keep": "best"}
    config = short(tmp_path_factory.mktemp("unfinished"), schedule=[phase])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            trainer, "save_checkpoint", lambda p, c, **r: (kept.append(copy.deepcopy(c)), plain(p, c, **r))
        )
        fit(config, device=torch.device("cpu"))
    return {"format": 1, **next(c for c in kept if c.get("optimizer") and c["progress"]["epoch"] == 1)}


def refusal(content, change, folder, check=open_checkpoint):
    values = copy.deepcopy(content)
    change(values)
    save_checkpoint(folder / "x.pt", values)
    with pytest.raises(UserError) as caught:
        check(folder / "x.pt")
    message = str(caught.value)
    assert message.startswith(f"{folder / 'x.pt'}: ")
    return message.removeprefix(f"{folder / 'x.pt'}: ")


def test_what_a_run_wrote_is_right(content, finished, tmp_path):
    for name in ("last.pt", "previous.pt", "best.pt"):
        stored = open_checkpoint(finished.folder / name)
        assert stored.config == finished.config
        assert {p.device.type for p in stored.network.parameters()} == {"meta"}


def cut(key, count):
    def change(content):
        content["model"][key] = content["model"][key][:count]

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["class_names"].pop(), "network of 3 scales and 7 classes"),
        (lambda c: c["class_names"].append("wren"), "network of 3 scales and 9 classes"),
        (
            cut("classifiers.1.weight", 5),
            "classifiers.1.weight is float32 [5, 96] instead of float32 [8, 96]",
        ),
        (
            lambda c: (
                c["config"].update(
                    model={**c["config"]["model"], "view_sizes": [32, 32], "bounds": []},
                    schedule=[{"kind": "classification", "epochs": 1, "lr": 0.1}],
                )
                or c.update(trained_scales=2)
            ),
            "network of 2 scales and 8 classes",
        ),
        (lambda c: c.update(trained_scales=4), "trained_scales: 4, but config.model.view_sizes has 3 scales"),
        (lambda c: c["model"].pop("fusion.bias"), "fusion.bias is missing"),
        (lambda c: c["model"].update(x=torch.zeros(2)), "x belongs to no part of it"),
        (cut("fusion.bias", 3), r"fusion.bias is float32 [3] instead of float32 [8]"),
        (
            lambda c: c["model"]["fusion.bias"].fill_(float("nan")),
            "fusion.bias has values that are not finite",
        ),
        (lambda c: c["config"]["model"].update(backbone="tinny"), "did you mean 'tiny'?"),
        (lambda c: c["config"]["model"].update(apn="paper"), "apns.0.hidden"),
        (lambda c: c["config"]["run"].update(sead=3), "run.sead: unknown key (did you mean 'seed'?)"),
        (lambda c: c.update(class_names="auk"), "class_names: input should be a valid list"),
        (lambda c: c.update(val_names=[1]), "val_names.0: input should be a valid string"),
        (lambda c: c.pop("train_names"), "train_names: field required"),
        (lambda c: c.update(step=-1), "step: input should be greater than or equal to 0"),
        (lambda c: c.update(fusion_trained=1), "fusion_trained: input should be a valid boolean"),
        (
            lambda c: c["progress"].update(epoch=-3),
            "progress.epoch: input should be greater than or equal to 0",
        ),
        (lambda c: c["config"].update(x=torch.zeros(1)), "config: holds a tensor"),
        (lambda c: c.update(val_report={"top1": 3}), "val_report.top1: input should be a valid dictionary"),
        (lambda c: c.update(provenance=[{3: 4}]), "provenance.0.3: input should be a valid string"),
        (lambda c: c.update(provenance=[{"x": {3: 4}}]), "provenance: has the key 3, expected text"),
        (
            lambda c: c["model"].update({"fusion.bias": torch.zeros(8).to(torch.float8_e5m2)}),
            "fusion.bias is float8_e5m2 [8] instead of float32 [8]",
        ),
        (
            cut("classifiers.0.weight", 0),
            "classifiers.0.weight is float32 [0, 96] instead of float32 [8, 96]",
        ),
    ],
)
def test_a_part_that_is_wrong_is_named(change, said, content, tmp_path):
    assert said in refusal(content, change, tmp_path)
    assert said in refusal(content, change, tmp_path, check=load)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(progress=None), "does not say where its run stood"),
        (
            lambda c: c["progress"].update(epoch=9),
            "progress.epoch is 9, but phase 01-classification_1_2_3 has 2 epochs",
        ),
        (lambda c: c["progress"].update(best_weights=None), "progress.best_weights is missing"),
        (
            lambda c: c["progress"]["best_weights"].update(x=torch.zeros(1)),
            "progress.best_weights.x fits no part of the network",
        ),
        (
            lambda c: c["progress"].update(best={"scale_2": 0.1}),
            "is judged by ['scale_1', 'scale_2', 'scale_3']",
        ),
        (
            lambda c: c["progress"].update(trained_scales=7),
            "progress.trained_scales is 7, but trained_scales is 3",
        ),
        (lambda c: c["optimizer"]["param_groups"].pop(), "optimizer.param_groups are not those of the phase"),
        (lambda c: c["optimizer"].update(state=3), "optimizer is not what an optimizer keeps"),
        (
            lambda c: c["optimizer"]["state"].update({0: {"momentum_buffer": torch.zeros(3)}}),
            "optimizer.state.0 is of no parameter of the phase",
        ),
        (
            lambda c: c["optimizer"]["state"][1].update(exp_avg=torch.zeros(2)),
            "optimizer.state.1.exp_avg does not fit",
        ),
        (
            lambda c: c["optimizer"]["state"][1].update(step=torch.tensor(1.0).to(torch.float8_e5m2)),
            "optimizer.state.1.step does not fit",
        ),
        (
            lambda c: c["optimizer"]["state"][1].update(exp_avg=None),
            "optimizer.state.1.exp_avg does not fit",
        ),
        (
            lambda c: c["optimizer"]["state"][2]["exp_avg_sq"].sub_(9),
            "optimizer.state.2.exp_avg_sq does not fit",
        ),
    ],
)
def test_a_place_that_cannot_be_gone_on_from_is_told(change, said, unfinished, tmp_path):
    assert check_resumable(check_content(unfinished, tmp_path)).epoch == 1
    assert said in refusal(
        unfinished, change, tmp_path, check=lambda path: check_resumable(open_checkpoint(path))
    )


def test_a_best_checkpoint_is_nothing_to_go_on_from(finished):
    with pytest.raises(CheckpointError, match=r"best\.pt: does not say where its run stood"):
        check_resumable(open_checkpoint(finished.folder / "best.pt"))
