"""A study trains what is new, shares what is the same, and tells what came out."""

import shutil
import statistics
from pathlib import Path

import pytest
import torch
import yaml

import study as tool
import views
from racnn.config import load_config
from racnn.engine import trainer
from racnn.engine.checkpoint import digest, load_checkpoint
from racnn.engine.evaluator import evaluate_trained
from racnn.engine.predictor import load
from racnn.errors import ConfigError, DataError

STUDIES = sorted((Path(__file__).parents[2] / "tools" / "studies").glob("*.yaml"))
ONE_SCALE = [{"kind": "classification", "scales": [1], "epochs": 1, "lr": 0.01}]
TWO_STAGES = [
    {"kind": "classification", "scales": [1], "epochs": 1, "lr": 0.01},
    {"kind": "apn_init", "scales": [1], "epochs": 1, "optimizer": "adamw", "lr": 0.001},
]


@pytest.fixture
def study(tiny_file, tmp_path):
    """Return a caller of the tool on a study of three short variants, two of which begin alike."""
    small = {"data__synthetic__num_train": 16, "run__num_preview": 0}
    tiny_file(tmp_path / "two.yaml", schedule=TWO_STAGES, **small)
    tiny_file(tmp_path / "one.yaml", schedule=ONE_SCALE, model__view_sizes=[32], **small)
    plan = {
        "config": "two.yaml",
        "set": ["data.batch_size=8"],
        "seeds": [0],
        "variants": {
            "component": {},
            "peak": {"set": ["schedule.1.target=peak"]},
            "baseline": {"config": "one.yaml"},
        },
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")

    def call(**options):
        given = {
            "settings": None,
            "only": None,
            "seed": None,
            "split": "val",
            "stages": None,
            "device": "cpu",
        } | options
        tool.main(tmp_path / "study.yaml", tmp_path / "out", **given)
        return tool.read_rows(tmp_path / "out" / "rows.csv")

    def change(name, variant):
        path = tmp_path / "study.yaml"
        plan = yaml.safe_load(path.read_text())
        plan["variants"][name] = variant
        path.write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")

    call.change = change
    call.stages = tmp_path / "out" / "stages"
    call.table = tmp_path / "out" / "table.md"
    return call


@pytest.mark.slow
def test_stages_end_with_the_weights_of_one_run(finished, tmp_path):
    folder, _ = tool.run_stages(finished.config, tmp_path, torch.device("cpu"))
    for name in ("last.pt", "best.pt"):
        staged, whole = (load_checkpoint(place / name) for place in (folder, finished.folder))
        assert digest(staged["model"]) == digest(whole["model"]), name
    assert (folder / "metrics.jsonl").read_text().splitlines()[-1].startswith('{"')
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == len(
        (finished.folder / "metrics.jsonl").read_text().splitlines()
    )


def test_variants_that_begin_alike_share_their_stages(study):
    rows = study()
    assert [row["variant"] for row in rows] == ["component", "peak", "baseline"]
    assert len({row["config"] for row in rows}) == 3
    numbers = sorted(folder.name[:2] for folder in study.stages.iterdir())
    assert numbers == [
        "01",
        "01",
        "02",
        "02",
    ]  # the shared one, the baseline's, and one each for the two targets


def test_how_regions_are_cut_does_not_part_the_stages_of_the_first_look(tiny):
    first_look = [
        {"kind": kind, "scales": [1], "epochs": 1, "lr": 0.01} for kind in ("classification", "apn_init")
    ]
    schedule = [*first_look, {"kind": "classification", "scales": [2], "epochs": 1, "lr": 0.01}]
    changes = [
        {},
        {"model__bounds": [[0.1, 0.9], [0.2, 0.8]]},
        {"model__zoom_from": "parent"},
        {"model__mask": False},
    ]
    keys = [[tool.key_of(s) for s in tool.stages_of(tiny("a", schedule=schedule, **c))] for c in changes]
    first, second, third = zip(*keys, strict=True)
    assert len(set(first)) == 1
    assert second[1] not in {second[0], *second[2:]}  # an APN learns within its bounds
    assert len(set(second)) == 2
    assert len(set(third)) == len(changes)
    other, *_ = tool.stages_of(tiny("a", schedule=schedule, model__antialias=False))  # of the first view too
    assert tool.key_of(other) not in first


def test_a_last_stage_that_does_harm_is_measured_as_it_is(tiny, tmp_path):
    harmful = {
        "kind": "ranking",
        "scales": [1],
        "epochs": 1,
        "lr": 0.3,
        "gradient": "energy",
        "optimizer": "adamw",
    }
    second = {**ONE_SCALE[0], "scales": [2]}
    config = tiny("unused", schedule=[*TWO_STAGES, second, harmful], data__synthetic__num_train=32)
    folder, _ = tool.run_stages(config, tmp_path, torch.device("cpu"))
    (before,) = tmp_path.glob("03-*")
    shutil.copyfile(
        before / "last.pt", folder / "best.pt"
    )  # as the trainer leaves it where nothing was better
    sides = [
        evaluate_trained(load(place / "last.pt"), split="val")["regions"]["region_1"]["tl_mean"]
        for place in (before, folder)
    ]
    assert sides[0] != sides[1]
    assert tool.measure(folder, "val", None, torch.device("cpu"))["region_1_tl_mean"] == sides[1]


def test_the_mistake_of_a_first_stage_is_told(tiny, tmp_path):
    with pytest.raises(DataError, match=r"data\.root"):
        tool.run_stages(tiny("unused", data__dataset="folder"), tmp_path, torch.device("cpu"))


def test_nothing_is_trained_twice(study, monkeypatch):
    before = study()

    def refuse(*_args, **_options):
        raise AssertionError("trained again")

    monkeypatch.setattr(trainer, "fit", refuse)
    assert study() == before
    test_rows = study(only=["peak"], split="test")
    assert [(row["variant"], row["split"]) for row in test_rows[-2:]] == [
        ("baseline", "val"),
        ("peak", "test"),
    ]


def test_a_stage_that_was_stopped_is_resumed(study, monkeypatch):
    plain, calls = trainer.fit, []

    def stopped_once(config, **options):
        calls.append(options["resume"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(config, **options)

    monkeypatch.setattr(trainer, "fit", stopped_once)
    with pytest.raises(KeyboardInterrupt):
        study(only=["peak"])
    (row,) = study(only=["peak"])
    assert calls == [False, True, True]  # the first stage is not repeated, the second goes on from its end
    assert row["variant"] == "peak"


def test_the_table_gives_the_mean_and_spread_over_seeds(study):
    rows = study(only=["baseline"], seed=[0, 1, 2])
    values = [100 * float(row["top1_scale_1"]) for row in rows]
    head, _, line = study.table.read_text().splitlines()
    cells = dict(zip(head.split(" | "), line.split(" | "), strict=True))
    assert cells["seeds"] == "3"
    assert cells["scale 1"] == f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
    assert "scale 2" not in cells


def test_where_the_photos_and_weights_lie_does_not_change_the_hash(tiny):
    config = tiny("a", model__weights="x/vgg.pth", data__root="here")
    moved = tiny("b", model__weights="y/vgg.pth", data__root="there")
    assert tool.key_of(config) == tool.key_of(moved)
    assert tool.key_of(config) != tool.key_of(tiny("a", model__weights="x/vgg.pth", run__seed=1))
    keys = {tool.key_of(tiny("a", data__dataset="folder", data__root=root)) for root in ("here", "there")}
    assert len(keys) == 2  # a folder is known by its place


def test_a_variant_may_end_after_some_entries_of_its_schedule(study):
    study.change("one look", {"stages": 1})
    (row,) = study(only=["one look"])
    assert "top1_scale_1" in row
    assert [folder.name[:2] for folder in study.stages.iterdir()] == ["01"]
    study.change("one look", {"stages": 3})
    with pytest.raises(ConfigError, match=r"one look: stages: 3, but the schedule of .* has 2"):
        study()


def test_a_stage_trained_under_other_defaults_is_not_used(study):
    study(only=["baseline"])
    (folder,) = study.stages.iterdir()
    values = yaml.safe_load((folder / "config.yaml").read_text())
    del values["model"]["steepness"]  # a key that was not there yet: the default is meant
    (folder / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    study(only=["baseline"])
    values["model"]["steepness"] = 7.0  # the default of then
    (folder / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(ConfigError, match="a default of model was another one"):
        study(only=["baseline"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"variants": {"a": {"stages": 0}}}, "variants.a: stages: expected a whole number from 1"),
        ({"sets": []}, "unknown key 'sets'.*'set'"),
        ({"variants": {"a": {"config": "two.yaml", "seed": 1}}}, "variants.a: unknown key 'seed'"),
        ({"variants": {"a": {"set": "x=1"}}}, "variants.a: set: expected a list of key=value"),
        ({"variants": {"a": "x=1"}}, "variants.a: expected 'set', 'config' and 'stages'"),
        ({"seeds": ["a"]}, "seeds: expected a list of whole numbers"),
        ({"seeds": 3}, "seeds: expected a list of whole numbers"),
        ({"seeds": [True]}, "seeds: expected a list of whole numbers"),
        ({"config": None}, "config: expected the path"),
        ({"variants": {"a": {"config": 5}}}, "variants.a: config: expected the path"),
        ({"variants": {}}, "expected 'variants', at least one"),
        ({"set": ["run.seed=7"]}, "run.seed=7: a study gives each run its seed"),
    ],
)
def test_a_wrong_study_is_refused(changes, said, tmp_path):
    plan = {"config": "two.yaml", "variants": {"a": {}}} | changes
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        tool.read_study(tmp_path / "study.yaml")


@pytest.mark.parametrize(
    ("options", "said"),
    [({"only": ["peek"]}, r"--only peek: .*'peak'"), ({"settings": ["data.batch_sise=3"]}, "batch_sise")],
)
def test_wrong_options_are_told_before_anything_is_trained(options, said, study):
    with pytest.raises(ConfigError, match=said):
        study(**options)
    assert not study.stages.exists()


def test_variants_that_train_the_same_network_are_refused(study):
    study.change("moved", {"set": ["data.root=elsewhere"]})
    with pytest.raises(ConfigError, match="'component' and 'moved' train the same network"):
        study()


def test_rows_of_a_variant_that_has_changed_do_not_count(study):
    study(only=["baseline"], seed=[0, 1])
    study.change("baseline", {"config": "one.yaml", "set": ["schedule.0.lr=0.02"]})
    rows = study(only=["baseline"], seed=[0])
    assert [row["seed"] for row in rows] == ["0"]


def test_time_before_a_stop_counts(tiny, tmp_path, monkeypatch):
    config = tiny(tmp_path / "unused", schedule=ONE_SCALE)
    clock, calls = iter((0.0, 100.0, 200.0, 207.0)), []

    def stopped_once(stage, **_options):
        calls.append(stage)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "fit", stopped_once)
    monkeypatch.setattr(tool.time, "monotonic", lambda: next(clock))
    with pytest.raises(KeyboardInterrupt):
        tool.run_stages(config, tmp_path, torch.device("cpu"))
    assert tool.run_stages(config, tmp_path, torch.device("cpu"))[1] == 107.0


def test_held_out_photos_can_be_studied(tiny, tmp_path):
    ranking = {"kind": "ranking", "scales": [1], "epochs": 1, "lr": 0.001, "photos": "held_out"}
    schedule = [*TWO_STAGES, {**ONE_SCALE[0], "scales": [2]}, ranking]
    config = tiny(tmp_path / "unused", schedule=schedule, data__held_out_fraction=0.3, run__num_preview=0)
    folder, _ = tool.run_stages(config, tmp_path, torch.device("cpu"))
    assert folder.name.startswith("04-")
    assert "ranking" in (folder / "metrics.jsonl").read_text()


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_the_studies_that_come_with_it_can_be_read(path):
    content = yaml.safe_load(path.read_text())
    if "rows" in content:
        assert views.read_study(path)
    elif "variants" not in content:
        load_config(path)  # what a study varies
    else:
        study = tool.read_study(path)
        configs = {name: study.resolve(name, seed, []) for name in study.variants for seed in study.seeds}
        assert len({tool.key_of(config) for config in configs.values()}) == len(study.variants)
