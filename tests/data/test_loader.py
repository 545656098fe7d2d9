"""A sample depends on (seed, epoch, position) alone, whoever loads it and whenever."""

import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from layouts import manifest_rows, write_cars_apart, write_cub, write_dogs, write_manifest, write_photo

from racnn.data import DATASETS, build_data, eval_loader, train_loader
from racnn.data.image_io import read_reduced
from racnn.errors import ConfigError, DataError
from racnn.sections import DataConfig

COUNTS = {"auk": 9, "tit": 6, "wren": 5}


def write_folder(root):
    for split in ("train", "test"):
        for name, count in COUNTS.items():
            for i in range(count):
                write_photo(root / split / name / f"{i}.png", size=(20 + 3 * i, 50 - 2 * i), seed=i)


WRITERS = {
    "cub200": write_cub,
    "dogs": write_dogs,
    "cars": write_cars_apart,
    "folder": write_folder,
    "manifest": lambda root: write_manifest(root / "list.csv", manifest_rows(root)),
    "synthetic": lambda root: None,
}


KINDS = [name for name in DATASETS if name != "digits"]  # which are MNIST's own, see test_digits.py


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """One small data set of each kind."""
    made = {}
    for name in KINDS:
        root = tmp_path_factory.mktemp(name)
        WRITERS[name](root)
        made[name] = DataConfig(
            dataset=name,
            root=root / "list.csv" if name == "manifest" else root,
            source_size=32,
            batch_size=4,
            eval_batch_size=5,
            num_workers=0,
            synthetic={"num_train": 24, "num_test": 8},
        )
    return made


@pytest.fixture
def config(configs):
    return configs["folder"]


def same(first, second):
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(torch.equal(a[k].nan_to_num(-9), b[k].nan_to_num(-9)) for k in a)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("name", KINDS)
def test_samples_keep_the_contract(configs, name):
    config = configs[name]
    data = build_data(config, seed=0)
    assert data.dataset == name
    assert set(data.splits) == {"train", "val", "test"}
    for split, dataset in data.splits.items():
        sample = dataset[0, 1]
        assert (sample["image"].dtype, sample["image"].shape) == (torch.uint8, (3, 32, 32))
        assert sample["image"].is_contiguous()
        assert (sample["label"].dtype, sample["label"].shape) == (torch.int64, ())
        assert 0 <= sample["label"] < len(data.class_names)
        assert (sample["index"].dtype, sample["index"].item()) == (torch.int64, 1)
        assert (sample["box"].dtype, sample["box"].shape) == (torch.float32, (4,))
        known = dataset.catalog.annotate(dataset.records[1])[0] is not None
        assert known or name in ("dogs", "folder", "manifest"), split
        assert sample["box"].isnan().any() != known
        assert (sample["parts"].dtype, sample["parts"].shape) == (torch.float32, (len(data.part_names), 3))
    assert all(position < len(data.part_names) for position in data.focus_parts)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")
@pytest.mark.parametrize("name", KINDS)
def test_pixels_do_not_depend_on_the_number_of_workers(configs, name):
    data = build_data(configs[name], seed=5)
    alone = list(train_loader(data, configs[name], seed=5, epoch=2))
    for num_workers in (1, 3):
        config = configs[name].model_copy(update={"num_workers": num_workers})
        assert same(list(train_loader(data, config, seed=5, epoch=2)), alone)


@pytest.mark.parametrize("name", KINDS)
def test_dataset_can_be_pickled_for_spawned_workers(configs, name):
    dataset = build_data(configs[name], seed=0).splits["train"]
    assert same([dataset[1, 2]], [pickle.loads(pickle.dumps(dataset))[1, 2]])


def test_every_photo_comes_once_and_epochs_and_seeds_differ(config):
    data = build_data(config, seed=0)
    size = len(data.splits["train"])
    orders, images = [], []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        loaded = list(train_loader(data, config, seed=seed, epoch=epoch))
        assert [len(b["label"]) for b in loaded[:-1]] == [4] * (len(loaded) - 1)
        orders.append(torch.cat([b["index"] for b in loaded]).tolist())
        images.append({int(i): x for b in loaded for i, x in zip(b["index"], b["image"], strict=True)})
    assert all(sorted(order) == list(range(size)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert sum(torch.equal(images[0][i], images[1][i]) for i in range(size)) == 0
    assert all(
        torch.equal(images[0][i], images[2][i]) for i in range(size)
    )  # the data set's own seed is the same
    other = build_data(config, seed=1).splits["train"]
    assert not torch.equal(other[0, 0]["image"], images[0][0])


def test_start_batch_goes_on_where_the_epoch_was_left(config, monkeypatch):
    data = build_data(config, seed=0)
    whole = list(train_loader(data, config, seed=0, epoch=3))
    dataset, loaded = data.splits["train"], []
    for start in range(len(whole) + 1):
        rest = train_loader(data, config, seed=0, epoch=3, start_batch=start)
        assert len(rest) == len(whole) - start
        assert same(list(rest), whole[start:])
    monkeypatch.setattr(
        "racnn.data.dataset.read_reduced",
        lambda path, shape: loaded.append(path) or read_reduced(path, shape),
    )
    list(train_loader(data, config, seed=0, epoch=3, start_batch=2))
    assert len(loaded) == len(dataset) - 2 * config.batch_size


def test_loading_leaves_the_global_generators_alone(config):
    data = build_data(config, seed=0)
    torch.manual_seed(0)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    list(train_loader(data, config, seed=0, epoch=0))
    list(eval_loader(data.splits["val"], config.model_copy(update={"num_workers": 1})))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


def test_evaluation_is_in_order_and_without_random_changes(config):
    data = build_data(config, seed=0)
    for split in ("train", "test"):
        loaded = list(eval_loader(data.splits[split], config))
        index = torch.cat([b["index"] for b in loaded])
        assert index.tolist() == list(range(len(data.splits[split])))
        assert same(loaded, list(eval_loader(build_data(config, seed=9).splits[split], config)))
        assert len(loaded[0]["label"]) == 5
    plain = data.splits["train"].without_augmentation()
    assert torch.equal(plain[0, 0]["image"], plain[1, 0]["image"])


def test_validation_is_stratified_and_independent_of_the_run(config):
    data = build_data(config, seed=0)
    assert data.val_names == [r.name for r in data.splits["val"].records]
    assert Counter(r.label for r in data.splits["val"].records) == {0: 1, 1: 1, 2: 1}
    names = [{r.name for r in split.records} for split in data.splits.values()]
    assert sum(len(n) for n in names) == len(set.union(*names)) == 2 * sum(COUNTS.values())
    assert build_data(config, seed=9).val_names == data.val_names
    others = [build_data(config.model_copy(update={"split_seed": s}), seed=0).val_names for s in range(1, 5)]
    assert any(other != data.val_names for other in others)


def test_held_out_photos_are_a_share_of_every_class_of_the_training_photos(config):
    whole = build_data(config, seed=0)
    some = build_data(config.model_copy(update={"held_out_fraction": 0.3}), seed=0)
    names = {split: {r.name for r in dataset.records} for split, dataset in some.splits.items()}
    assert not names["train"] & names["held_out"]
    assert names["train"] | names["held_out"] == {r.name for r in whole.splits["train"].records}
    assert set(some.training_names()) == set(whole.training_names())
    assert some.val_names == whole.val_names
    labels = {split: {r.label for r in some.splits[split].records} for split in ("train", "held_out")}
    assert labels["train"] == labels["held_out"] == set(range(len(some.class_names)))
    loaded = train_loader(some, config, seed=0, epoch=0, photos="held_out")
    assert sum(len(batch["label"]) for batch in loaded) == len(names["held_out"])


def test_balanced_sampling_draws_every_class_alike(tmp_path):
    for name, count in {"common": 60, "rare": 6}.items():
        for i in range(count):
            write_photo(tmp_path / "train" / name / f"{i}.png", seed=i)
        write_photo(tmp_path / "test" / name / "0.png", seed=0)
    config = DataConfig(
        dataset="folder", root=tmp_path, source_size=16, num_workers=0, batch_size=8, balance="sampling"
    )
    data = build_data(config, seed=0)
    assert data.class_counts() == [54, 5]

    def drawn(epoch):
        batches = train_loader(data, config, seed=0, epoch=epoch).batch_sampler
        return [key[1] for batch in batches for key in batch]

    records = data.splits["train"].records
    labels = [records[index].label for epoch in range(20) for index in drawn(epoch)]
    assert len(labels) == 20 * 59
    assert 0.45 < sum(labels) / len(labels) < 0.55
    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    rest = train_loader(data, config, seed=0, epoch=3, start_batch=2).batch_sampler
    assert [key[1] for batch in rest for key in batch] == drawn(3)[16:]
    rare = [
        (batch["index"][i].item(), batch["image"][i])
        for batch in train_loader(data, config, seed=0, epoch=3)
        for i in range(len(batch["label"]))
        if batch["label"][i] == 1
    ]
    first = [image for index, image in rare if index == rare[0][0]]
    assert len(first) > 2
    assert not any(torch.equal(first[0], other) for other in first[1:])  # drawn again, changed anew


def test_validation_is_rebuilt_from_names(config):
    names = ["train/wren/2.png", "train/auk/3.png"]
    data = build_data(config, seed=0, val_names=names)
    assert data.val_names == sorted(names)
    assert len(data.splits["train"]) == sum(COUNTS.values()) - 2
    again = build_data(config.model_copy(update={"split_seed": 7}), seed=0, val_names=data.val_names)
    assert again.val_names == data.val_names
    with pytest.raises(
        DataError, match=r"1 of the 3 validation photos.*'train/auk/99\.png'.*expected the data"
    ):
        build_data(config, seed=0, val_names=[*names, "train/auk/99.png"])


def test_validation_folder_is_used_as_it_is(tmp_path):
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            write_photo(tmp_path / split / name / "0.png", seed=0)
    data = build_data(DataConfig(dataset="folder", root=tmp_path), seed=0)
    assert data.val_names == ["val/a/0.png", "val/b/0.png"]
    again = build_data(DataConfig(dataset="folder", root=tmp_path), seed=0, val_names=data.val_names)
    assert again.val_names == data.val_names


def test_unknown_dataset_and_unusable_splits_are_named(config, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.dataset.*'cub20'.*did you mean 'cub200'"):
        build_data(config.model_copy(update={"dataset": "cub20"}), seed=0)
    with pytest.raises(DataError, match="at least two classes"):
        build_data(config.model_copy(update={"classes": "2"}), seed=0)
    for name in ("a", "b"):
        write_photo(tmp_path / "train" / name / "0.png", seed=0)
        write_photo(tmp_path / "test" / name / "0.png", seed=0)
    with pytest.raises(DataError, match="no validation photos"):
        build_data(config.model_copy(update={"root": tmp_path}), seed=0)
    with pytest.raises(DataError, match="class 'a' has no training photos"):
        build_data(config.model_copy(update={"root": tmp_path}), seed=0, val_names=["train/a/0.png"])


@pytest.mark.parametrize("again", ["./photos/0.png", "photos//0.png", "other/../photos/0.png"])
def test_a_photo_under_two_names_is_refused(again, tmp_path):
    rows = manifest_rows(tmp_path)
    rows[-1]["path"] = again
    write_manifest(tmp_path / "list.csv", rows)
    (tmp_path / "other").mkdir()
    config = DataConfig(dataset="manifest", root=tmp_path / "list.csv", source_size=16)
    with pytest.raises(DataError, match=r"1 photos are listed more than once, for example .*photos/0\.png"):
        build_data(config, seed=0)


def test_noise_belongs_to_the_photo_and_the_epoch_alone():
    config = DataConfig(
        dataset="synthetic", source_size=32, num_workers=0, synthetic={"num_train": 32, "num_test": 8}
    )
    data = build_data(config, seed=0)

    def noise(epoch, batch_size, start=0):
        smaller = config.model_copy(update={"batch_size": batch_size})
        loader = train_loader(data, smaller, seed=0, epoch=epoch, start_batch=start, num_noise=6)
        return {int(i): row for b in loader for i, row in zip(b["index"], b["noise"], strict=True)}

    first, other = noise(0, 8), noise(1, 8)
    for again in (noise(0, 5), noise(0, 8, start=2)):
        assert all(torch.equal(row, first[i]) for i, row in again.items())
    every = torch.stack([*first.values(), *other.values()])
    assert len(every.unique()) == every.numel()
    assert "noise" not in next(iter(train_loader(data, config, seed=0, epoch=0)))
    assert every.min() >= 0
    assert every.max() < 1
    assert abs(every.mean() - 0.5) < 0.08


def test_a_program_that_reads_photos_keeps_its_own_processes(tmp_path):
    """Only workers that ignore the signal to end are killed when the program ends."""
    code = (
        "import multiprocessing, pathlib, time\n"
        "import racnn.data\n"
        "def work():\n"
        "    time.sleep(0.5)\n"
        f"    pathlib.Path({str(tmp_path / 'done')!r}).touch()\n"
        "multiprocessing.get_context('fork').Process(target=work).start()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert (tmp_path / "done").exists()
