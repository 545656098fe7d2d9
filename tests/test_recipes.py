"""`racnn train PHOTOS`: the data sets as people have them, recipes, options, other networks, and what is mistyped."""

import json
import shutil

import layouts
import pytest
import torch
from PIL import Image

from racnn.engine.checkpoint import load_checkpoint
from racnn.errors import ConfigError
from racnn.models.backbone import build_backbone
from racnn.recipes import DATASETS, photo_settings, recipe_config

SMALL = ["--backbone", "tiny", "--set", "model.weights=null", "--set", "model.view_sizes=[32, 32, 32]"]
SMALL += ["--set", "data.source_size=48", "--set", "data.num_workers=0", "--set", "run.num_preview=0"]
LAYOUTS = {"cub": layouts.write_cub, "dogs": layouts.write_dogs, "cars": layouts.write_cars_together}


@pytest.fixture
def folder(tmp_path):
    return layouts.write_class_folders(tmp_path / "birds")


@pytest.mark.parametrize("kind", DATASETS)
def test_the_data_sets_in_their_official_layouts(kind, racnn, tmp_path):
    root = tmp_path / "photos"
    LAYOUTS[kind](root)
    out = tmp_path / "run"
    result = racnn("train", f"{kind}:{root}", "--out", out, *SMALL)
    assert result.code == 0, result.err
    assert "one look at the whole photo answers" in result.out
    assert "--early-exit" in result.out
    assert f"next: racnn evaluate {out / 'best.pt'}" in result.out
    assert load_checkpoint(out / "best.pt")["dataset"] == DATASETS[kind]
    drawn = json.loads((out / "pictures" / "regions.json").read_text())
    assert drawn
    assert all((out / "pictures" / row["picture"]).is_file() for row in drawn)
    assert racnn("evaluate", out / "best.pt").code == 0
    photo = next(path for path in sorted(root.rglob("*")) if path.suffix in (".png", ".jpg"))
    assert racnn("predict", out / "best.pt", photo).code == 0
    assert racnn("visualize", out / "best.pt", photo, "--out", tmp_path / "seen").code == 0


def test_full_from_a_folder_to_pictures(folder, racnn, tmp_path):
    out = tmp_path / "run"
    steps = ["--set", "model.frozen_stages=0", "--epochs", 1]
    result = racnn("train", folder, "--recipe", "full", "--out", out, *SMALL, *steps)
    assert result.code == 0, result.err
    assert "02-cross_fit: " in result.out
    assert "one look at the whole photo answers" in result.out
    assert racnn("evaluate", out / "best.pt", "--split", "val", "--early-exit").code == 0
    photo = folder / "wren" / "0.png"
    assert racnn("visualize", out / "best.pt", photo, "--out", tmp_path / "seen").code == 0


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "backbone"), [("cub", "vgg16"), ("dogs", "vgg19"), ("cars", "vgg16")])
def test_paper_to_its_end(kind, backbone, racnn, tmp_path):
    """The paper's schedule, networks and APNs, random weights, small views."""
    root, out = tmp_path / "photos", tmp_path / "run"
    LAYOUTS[kind](root)
    words = [
        "train",
        f"{kind}:{root}",
        "--recipe",
        "paper",
        "--backbone",
        backbone,
        "--out",
        out,
        "--epochs",
        1,
    ]
    words += ["--set", "model.weights=null", "--set", "model.view_sizes=[32, 32, 32]", "--batch-size", 4]
    words += ["--set", "data.source_size=48", "--set", "data.num_workers=0", "--set", "run.num_preview=0"]
    for key in ("0", "1", "2.alternate.1", "3"):
        words += ["--set", f"schedule.{key}.epochs=1"]
    words += ["--set", "schedule.2.rounds=1"]
    result = racnn(*words)
    assert result.code == 0, result.err
    content = load_checkpoint(out / "last.pt")
    assert content["trained_scales"] == 3
    assert content["fusion_trained"]
    kinds = [phase["kind"] for phase in content["config"]["schedule"][2]["alternate"]]
    assert kinds == ["classification", "ranking"]
    assert len(content["progress"]["outcomes"]) == 2 + 2 + 1
    for command in (("evaluate", out / "best.pt"), ("inspect", out / "best.pt")):
        assert racnn(*command).code == 0


def test_a_folder_and_a_list(folder, racnn, tmp_path):
    result = racnn("train", folder, "--out", tmp_path / "run", *SMALL)
    assert result.code == 0, result.err
    layouts.write_manifest(tmp_path / "list.csv", layouts.manifest_rows(tmp_path))
    result = racnn("train", tmp_path / "list.csv", "--out", tmp_path / "listed", *SMALL)
    assert result.code == 0, result.err
    result = racnn("train", folder, "--out", tmp_path / "run", *SMALL)
    assert result.code == 2
    assert "--overwrite" in result.err


def test_a_damaged_photo_stops_a_run_that_can_go_on(folder, racnn, tmp_path):
    photo = folder / "wren" / "1.png"
    whole = photo.read_bytes()
    photo.write_bytes(whole[:-40])
    words = ["train", folder, "--out", tmp_path / "run", *SMALL]
    refused = racnn(*words)
    assert refused.code == 2
    assert "1.png" in refused.err
    assert "--set data.on_error=skip" in refused.err
    assert "start anew with --overwrite" in refused.err
    skip = ["--set", "data.on_error=skip", "--set", "data.most_skipped=0.5"]
    assert racnn(*words, *skip).code == 2
    result = racnn(*words, *skip, "--overwrite")
    assert result.code == 0, result.err
    assert "photos are few" in result.out


def test_photos_in_no_folder(racnn, tmp_path):
    layouts.write_photo(tmp_path / "photos" / "a.png", seed=0)
    refused = racnn("train", tmp_path / "photos", *SMALL)
    assert refused.code == 2
    assert "one folder of photos for each class, found 1 photos in no folder" in refused.err


def save_random(name, path):
    torch.manual_seed(0)
    torch.save(build_backbone(name).features.state_dict(), path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm/vit_tiny_patch16_224", "torchvision/mobilenet_v3_small"])
def test_other_networks_with_weights_from_a_file(name, folder, racnn, tmp_path):
    """A transformer at views that it was not made for, and a network of torchvision by name."""
    save_random(name, tmp_path / "weights.pth")
    out = tmp_path / "run"
    words = ["train", folder, "--out", out, "--backbone", name, "--weights", tmp_path / "weights.pth"]
    words += ["--set", "data.source_size=96", "--set", "data.num_workers=0", "--batch-size", 8]
    words += ["--set", "model.view_sizes=[96, 96, 96]"]
    result = racnn(*words)
    assert result.code == 0, result.err
    again = racnn("train", "--config", out / "config.yaml", "--out", out, "--resume")
    assert "nothing is left to train" in again.out
    assert load_checkpoint(out / "best.pt")["config"]["data"]["eval_batch_size"] == 8
    for command in (("evaluate", out / "best.pt"), ("predict", out / "best.pt", folder)):
        assert racnn(*command).code == 0
    assert (
        racnn("visualize", out / "best.pt", folder / "wren" / "0.png", "--out", tmp_path / "seen").code == 0
    )


class TestOptions:
    def test_quick_is_the_default_and_full_and_paper_train_what_they_say(self, folder):
        quick = recipe_config(str(folder), "quick", [])
        assert [phase.kind for phase in quick.phases()] == ["looks"]
        assert quick.model.backbone == "timm/tf_efficientnet_lite0"
        full = recipe_config(str(folder), "full", [], epochs=3, lr=0.25, batch_size=7)
        looks, taught = full.phases()
        assert (looks.kind, taught.kind) == ("looks", "cross_fit")
        assert (taught.epochs, taught.lr, taught.keep) == (3, 0.25, "if_better")
        assert full.data.batch_size == 7
        paper = recipe_config(str(folder), "paper", [], epochs=3)
        assert {phase.epochs for phase in paper.phases() if phase.kind == "classification"} == {3}
        assert all(phase.epochs != 3 for phase in paper.phases() if phase.kind == "apn_init")
        assert (paper.model.backbone, paper.model.apn, paper.model.zoom_from) == ("vgg19", "paper", "parent")

    @pytest.mark.parametrize(
        ("backbone", "side"),
        [("vgg16", 320), ("timm/vit_small_patch14_dinov2", 322), ("torchvision/maxvit_t", 224)],
    )
    def test_views_suit_the_network(self, backbone, side, folder):
        for recipe in ("quick", "full"):
            found = recipe_config(str(folder), recipe, [], backbone=backbone)
            assert found.model.view_sizes == (side,) * 3
        assert found.model.frozen_stages == (4 if backbone == "vgg16" else 0)

    def test_what_is_set_comes_last(self, folder):
        found = recipe_config(str(folder), "quick", ["model.view_sizes=[96, 96]"], backbone="vgg11")
        assert found.model.view_sizes == (96, 96)

    @pytest.mark.parametrize(("option", "value"), [("epochs", 3), ("lr", 0.1)])
    def test_an_option_that_would_do_nothing_is_refused(self, option, value, folder):
        with pytest.raises(ConfigError, match=f"--{option}: the quick recipe takes no steps"):
            recipe_config(str(folder), "quick", [], **{option: value})

    def test_all_classes_count_the_same_already(self, folder):
        with pytest.raises(ConfigError, match=r"data\.balance: belongs to phases that take steps"):
            recipe_config(str(folder), "quick", ["data.balance=weights"])

    def test_a_recipe_that_there_is_not(self, folder):
        with pytest.raises(ConfigError, match="did you mean 'quick'"):
            recipe_config(str(folder), "quik", [])

    @pytest.mark.parametrize("photos", ["missing", "cub200:somewhere", "C:photos"])
    def test_photos_that_there_are_not(self, photos):
        with pytest.raises(ConfigError, match=f"PHOTOS: {photos}: no such file or folder; .*cub:ROOT"):
            photo_settings(photos)

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--config", "quick"], "exclude each other"),
            (["--lr", "0"], "takes no steps"),
            (["--set", "data.batch_size=3"], "data.eval_batch_size"),
            (["--set", "data.augment.flip=false"], "data.augment: belongs to phases that take steps"),
            (["--recipe", "fast"], "--recipe: expected quick, full, paper"),
            (["--backbone", "resnet"], "no backbone is called"),
        ],
    )
    def test_mistakes_end_with_one_message(self, words, said, folder, racnn):
        result = racnn("train", folder, *words)
        assert result.code == 2
        assert said in result.err
        assert "Traceback" not in result.err

    def test_nothing_to_train_on(self, racnn):
        result = racnn("train")
        assert result.code == 2
        assert "expected PHOTOS" in result.err

    def test_options_of_photos_do_nothing_beside_a_configuration(self, racnn):
        result = racnn("train", "--config", "demo", "--batch-size", 3)
        assert result.code == 2
        assert "--batch-size: belongs to PHOTOS" in result.err

    def test_a_packaged_configuration_by_name_from_anywhere(self, racnn, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert "backbone: tiny" in racnn("config", "demo").out
        assert "backbone: tiny" in racnn("config", "demo.yaml").out
        result = racnn("config", "dmo")
        assert result.code == 2
        assert "did you mean 'demo'" in result.err


def test_the_weights_of_a_package_are_those_that_imagenet_names(monkeypatch, tmp_path):
    """A package under names of its own, in the order of the layers, with the classifier after them."""
    from racnn.models import weights

    name = "tf_efficientnet_lite0"
    torch.manual_seed(0)
    own = build_backbone(f"timm/{name}").features.network.state_dict()
    counted = [value for key, value in own.items()]
    foreign = {f"_layer{i:03d}.{key.rpartition('.')[2]}": v for i, (key, v) in enumerate(own.items())}
    foreign |= {"_fc.weight": torch.rand(1000, 1280), "_fc.bias": torch.rand(1000)}
    package = tmp_path / "some_package"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    torch.save(foreign, package / "models" / "weights.pth")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(weights.PACKAGES, name, "some_package")
    torch.manual_seed(1)
    backbone = build_backbone(f"timm/{name}", weights="imagenet")
    assert not backbone.note, "it is what was asked for"
    assert (
        "matched by order"
        in build_backbone(f"timm/{name}", weights=str(package / "models" / "weights.pth")).note
    )
    loaded = backbone.features.network.state_dict()
    assert all(torch.equal(value, mine) for value, mine in zip(loaded.values(), counted, strict=True))
    # one tensor of another shape, or one name that ends otherwise, and nothing is guessed
    key = "_layer000.weight"
    for wrong in ({**foreign, key: foreign[key].flatten(1)}, _renamed(foreign, key, "_layer000.bias")):
        torch.save(wrong, package / "models" / "weights.pth")
        with pytest.raises(Exception, match="does not fit the backbone"):
            build_backbone(f"timm/{name}", weights="imagenet")
    shutil.rmtree(package / "models")


def _renamed(state, old, new):
    return {new if key == old else key: value for key, value in state.items()}


def test_the_picture_of_a_validation_photo_shows_all_looks(folder, racnn, tmp_path):
    assert racnn("train", folder, "--out", tmp_path / "run", *SMALL).code == 0
    pictures = sorted((tmp_path / "run" / "pictures").glob("*.png"))
    assert pictures
    with Image.open(pictures[0]) as picture:
        assert picture.width > 300
