"""A line for every kind of input that went wrong in a tool like this one: what must come of it.

Of every command it is also checked that it ends in no traceback and that each file that was there before is there still,
byte for byte. What is asked for beyond exit code and words stands in the tests at the end.
"""

import contextlib
import io
import json
import os
import struct
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import tiny_values
from PIL import Image, TiffImagePlugin
from safetensors.torch import save_file

from racnn import cli
from racnn.engine.run_dir import RUN_FILES
from racnn.models import build_backbone

NOISE = np.random.default_rng(0)
Y, X = np.mgrid[0:20, 0:28]
ROWS = []


def row(kind, name, *, code=0, says=(), silent=()):
    """Register a line of the table: a function that makes an input and returns the words of the command line."""

    def register(build):
        ROWS.append(SimpleNamespace(kind=kind, name=name, build=build, code=code, says=says, silent=silent))
        return build

    return register


def run(*words):
    """Run the command line in this process; return the exit code and all it printed."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    argv = ["racnn", *map(str, words)]
    if words[0] in ("train", "evaluate", "visualize", "predict", "demo"):
        argv += ["--device", "cpu"]
    code = 0
    with (
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", argv)
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
    return SimpleNamespace(code=code, said=stream.buffer.getvalue().decode(errors="surrogateescape"))


def pixels(red, seed=None):
    """Return a photo with little noise, no two the same, all but red or green."""
    noise = np.random.default_rng(seed) if seed is not None else NOISE
    base = np.array([200, 40, 40] if red else [40, 160, 40])
    return np.clip(base + noise.integers(-30, 31, (20, 28, 3)), 0, 255).astype(np.uint8)


def save(path, photo=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(True) if photo is None else photo).save(path, **options)
    return path


def birds(root, classes=("red", "green"), number=6, suffix="png"):
    for name in classes:
        for i in range(number):
            save(root / name / f"{i}.{suffix}", pixels(name.startswith("r")))
    return root


def listed(root, text, name="list.csv", number=3):
    """Write a list and the photos r0, r1, ... and g0, g1, ... that it may name."""
    for i in range(number):
        save(root / f"r{i}.png", pixels(True))
        save(root / f"g{i}.png", pixels(False))
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root / name


def config_of(place, root, *, backbone="tiny", sizes=(16, 16), **changes):
    """Write a configuration that trains for an epoch on a folder or list."""
    schedule = [{"kind": "classification", "epochs": 1, "lr": 0.01}]
    dataset = "folder" if root.is_dir() else "manifest"
    values = tiny_values(
        place / "run", schedule=schedule, data__dataset=dataset, data__root=str(root), **changes
    )
    values["model"] = {"backbone": backbone, "view_sizes": list(sizes), **values["model"]} | {
        "backbone": backbone,
        "view_sizes": list(sizes),
    }
    values["data"] |= {"source_size": 24, "batch_size": changes.get("data__batch_size", 8)}
    values["run"]["num_preview"] = 0
    (place / "c.yaml").write_text(yaml.safe_dump(values))
    return place / "c.yaml"


def train(place, root, *words, **changes):
    return ("train", "--config", config_of(place, root, **changes), *words)


def verify(root, *words):
    dataset = () if root.is_dir() else ("--dataset", "manifest")
    return ("data", "verify", "--root", root, "--workers", 0, *dataset, *words)


def info(root, *words):
    dataset = () if root.is_dir() else ("--dataset", "manifest")
    return ("data", "info", "--root", root, *dataset, *words)


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """A network that was trained on red and green photos; ``photos`` are what it was trained and tested on."""
    place = tmp_path_factory.mktemp("net")
    photos = birds(place / "photos", number=10)
    result = run(*train(place, photos))
    assert result.code == 0, result.said
    return SimpleNamespace(
        best=place / "run" / "best.pt", run=place / "run", photos=photos, config=place / "c.yaml"
    )


# --- data loss --------------------------------------------------------------------------------------------------------

LOSS = "what the program did not write is replaced"


@row(
    LOSS,
    "pictures go where the photos lie",
    code=2,
    says=["photos/a.png", "nothing says that racnn wrote it"],
)
def _(place, net):
    save(place / "photos" / "a.png")
    return "visualize", net.best, place / "photos", "--out", place / "photos"


@row(LOSS, "a photo beside another of its name", code=2, says=["p.png"])
def _(place, net):
    save(place / "p.png")
    return "visualize", net.best, save(place / "p.jpg"), "--out", place


@row(LOSS, "a foreign regions.json", code=2, says=["regions.json"])
def _(place, net):
    (place / "out").mkdir()
    (place / "out" / "regions.json").write_text("[]")
    return "visualize", net.best, save(place / "p.jpg"), "--out", place / "out"


@row(LOSS, "a link in the place of a picture", code=2, says=["p.png is a link"])
def _(place, net):
    (place / "out").mkdir()
    (place / "out" / "p.png").symlink_to(save(place / "precious.png"))
    return "visualize", net.best, save(place / "p.jpg"), "--out", place / "out"


@row(LOSS, "a link that leads nowhere", code=2, says=["regions.json is a link"])
def _(place, net):
    (place / "out").mkdir()
    (place / "out" / "regions.json").symlink_to(place / "nowhere")
    return "visualize", net.best, save(place / "p.jpg"), "--out", place / "out"


@row(LOSS, "the folder of pictures is a link to the photos", code=2, says=["a.png"])
def _(place, net):
    save(place / "photos" / "a.png")
    (place / "out").symlink_to(place / "photos")
    return "visualize", net.best, place / "photos", "--out", place / "out"


@row(LOSS, "a folder in the place of a picture", code=2, says=["p.png is a folder"])
def _(place, net):
    (place / "out" / "p.png").mkdir(parents=True)
    return "visualize", net.best, save(place / "p.jpg"), "--out", place / "out"


@row(LOSS, "a picture that was drawn, and changed since", code=2, says=["p.png was changed since"])
def _(place, net):
    command = ("visualize", net.best, save(place / "p.jpg"), "--out", place / "out")
    assert run(*command).code == 0
    (place / "out" / "p.png").write_bytes(b"my notes")
    return command


@row(LOSS, "a report over notes", code=2, says=["notes.json"])
def _(place, net):
    (place / "notes.json").write_text("{}")
    return "evaluate", net.best, "--json", place / "notes.json"


@row(LOSS, "a report through a link", code=2, says=["report.json is a link"])
def _(place, net):
    (place / "notes.json").write_text("{}")
    (place / "report.json").symlink_to(place / "notes.json")
    return "evaluate", net.best, "--json", place / "report.json"


@row(LOSS, "a report over the network", code=2, says=["best.pt"])
def _(place, net):
    return "evaluate", net.best, "--json", net.best


@row(LOSS, "a list of damaged photos over a list by hand", code=2, says=["mine.txt"])
def _(place, net):
    (place / "mine.txt").write_text("red/1.png\n")
    return verify(net.photos, "--write-list", place / "mine.txt")


@row(LOSS, "an export over another program's file", code=2, says=["nothing says that racnn wrote it"])
def _(place, net):
    save_file({"a": torch.zeros(1)}, place / "other.safetensors")
    return "export-weights", net.best, "--out", place / "other.safetensors", "--overwrite"


@row(LOSS, "a run over another program's run", code=2, says=["best.pt", "none that this program wrote"])
def _(place, net):
    (place / "run").mkdir()
    (place / "run" / "best.pt").write_bytes(b"of another program")
    return train(place, net.photos, "--overwrite")


@row(LOSS, "a run over the configuration that it is given", code=2, says=["config.yaml"])
def _(place, net):
    (place / "mine").mkdir()
    config = config_of(place, net.photos).rename(place / "mine" / "config.yaml")
    return "train", "--config", config, "--out", place / "mine", "--overwrite"


@row(LOSS, "a run over a configuration with comments", code=2, says=["config.yaml", "changed by hand"])
def _(place, net):
    assert run(*train(place, net.photos)).code == 0
    with (place / "run" / "config.yaml").open("a") as file:
        file.write("# why the rate is so low\n")
    return train(place, net.photos, "--overwrite")


@row(LOSS, "a cache in the place of a file", code=2, says=["data.cache", "is a file"])
def _(place, net):
    (place / "cache").write_text("mine")
    return train(place, net.photos, "--set", f"data.cache={place / 'cache'}")


@row(LOSS, "a run among the classes", code=2, says=["run.out", "whose folders are classes"])
def _(place, net):
    return train(place, birds(place / "photos"), "--out", place / "photos" / "run")


@row(LOSS, "through a link in the place of the record", code=2, says=[".racnn-written"])
def _(place, net):
    (place / "precious.txt").write_text("mine")
    (place / "out").mkdir()
    (place / "out" / ".racnn-written").symlink_to(place / "precious.txt")
    return "evaluate", net.best, "--json", place / "out" / "report.json"


@row(LOSS, "the record itself", code=2, says=[".racnn-written", "record"])
def _(place, net):
    assert run("evaluate", net.best, "--json", place / "report.json").code == 0
    return "evaluate", net.best, "--json", place / ".racnn-written"


@row(LOSS, "notes beside the curves of a run that is replaced", says=["next: racnn evaluate"])
def _(place, net):
    assert run(*train(place, net.photos)).code == 0
    (place / "run" / "tensorboard" / "notes.md").write_text("mine")
    return train(place, net.photos, "--overwrite")


@row(LOSS, "a report where early exit writes", code=2, says=["--early-exit writes"])
def _(place, net):
    return "evaluate", net.best, "--early-exit", "--json", net.best.with_suffix(".early_exit.json")


@row(LOSS, "a record that a crash has torn does no harm", says=["12 photos"])
def _(place, net):
    (birds(place / "p") / "red" / ".racnn-written").write_text(
        '{"name": "a.png", "sha256": "0"}\n{"name": "b.p'
    )
    return info(place / "p")


# --- names that are no UTF-8 ------------------------------------------------------------------------------------------

BYTES = "names that are no UTF-8"


def latin(place, content=None):
    """Write photos, one of them under a name in Latin-1; ``content``: of this one instead."""
    birds(place / "photos")
    photo = save(place / "photos" / "red" / "x.png").rename(
        place / "photos" / "red" / os.fsdecode(b"caf\xe9.png")
    )
    if content is not None:
        photo.write_bytes(content)
    return place / "photos"


@row(BYTES, "are read", says=["13 photos read, 0 damaged"])
def _(place, net):
    return verify(latin(place))


@row(
    BYTES,
    "are printed and listed as they are",
    code=1,
    says=[os.fsdecode(b"red/caf\xe9.png: cannot"), "1 damaged"],
)
def _(place, net):
    return verify(latin(place, b"no photo"), "--write-list", place / "list.txt")


@row(BYTES, "are left out by that list", says=["photos: 8 train, 2 val, 2 test"])
def _(place, net):
    root = latin(place, b"no photo")
    assert run(*verify(root, "--write-list", place / "list.txt")).code == 1
    return train(place, root, "--set", f"data.exclude={place / 'list.txt'}")


@row(BYTES, "are answered", says=[os.fsdecode(b"caf\xe9.png")])
def _(place, net):
    return "predict", net.best, latin(place), "--workers", 0, "--csv"


@row(BYTES, "are drawn", says=["13 pictures"])
def _(place, net):
    return "visualize", net.best, latin(place), "--out", place / "out"


@row(BYTES, "stand in a list", says=["6 photos read, 0 damaged"])
def _(place, net):
    path = listed(place, b"path,label\nr0.png,r\nr1.png,r\ncaf\xe9.png,r\ng0.png,g\ng1.png,g\ng2.png,g\n")
    (place / "r2.png").rename(place / os.fsdecode(b"caf\xe9.png"))
    return verify(path)


@row(BYTES, "of the run's own folder are refused", code=2, says=["run.out", "UTF-8"])
def _(place, net):
    return train(place, net.photos, "--out", place / os.fsdecode(b"caf\xe9"))


# --- a last batch of one photo ----------------------------------------------------------------------------------------

LAST = "a last batch of one photo"
CELL = {"backbone": "timm/test_resnet", "sizes": (32,)}  # a view that ends in one cell


def seventeen(place):
    birds(place / "p" / "train", ("red", "green"), 8)
    save(place / "p" / "train" / "red" / "last.png")
    birds(place / "p" / "val", number=1)
    birds(place / "p" / "test", number=1)
    return place / "p"


@row(LAST, "joins the batch before it", says=["17 photos leave a single one over at 8 a batch"])
def _(place, net):
    return train(place, seventeen(place), **CELL)


@row(LAST, "of the parts of a batch", silent=["single one over"])
def _(place, net):
    return train(place, seventeen(place), "--set", "run.micro_batch=8", data__batch_size=17, **CELL)


@row(LAST, "of parts of two", silent=["single one over"])
def _(place, net):
    return train(place, seventeen(place), "--set", "run.micro_batch=2", data__batch_size=17, **CELL)


@row(LAST, "where every batch is one photo", code=2, says=["batch norm", "data.batch_size"])
def _(place, net):
    return train(place, seventeen(place), data__batch_size=1, **CELL)


# --- number formats ---------------------------------------------------------------------------------------------------

NUMBERS = "numbers whose range is not known"
GREY = (X * 8 + Y).astype(np.float32)  # 0 to 235


def tiff(path, photo, tags=()):
    """Write a TIFF whose tags say what Pillow would not."""
    ifd = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in dict(tags).items():
        ifd[tag] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).save(path, tiffinfo=ifd)
    return path


def png16(path, photo):
    """Write a PNG of 16 bits a channel."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, channels = photo.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in photo)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def ppm(path, photo):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"P6\n28 20\n65535\n" + photo.astype(">u2").tobytes())
    return path


COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1)
UNKNOWN = {
    "12 bits in 16, as a PPM": (lambda p: ppm(p / "a.ppm", COLOUR * 16), "mode RGB"),
    "floats from 0 to 1": (lambda p: tiff(p / "a.tif", GREY / 255), "mode F"),
    "floats from 0 to 255": (lambda p: tiff(p / "a.tif", GREY), "mode F"),
    "whole numbers of 32 bits": (lambda p: tiff(p / "a.tif", GREY.astype(np.int32)), "mode I"),
    "12 bits in 16": (lambda p: png16(p / "a.png", GREY[..., None] * 16), "mode I;16"),
    "10 bits in 16": (lambda p: png16(p / "a.png", GREY[..., None] * 4), "mode I;16"),
    "12 bits in 16, in colour": (lambda p: png16(p / "a.png", COLOUR * 16), "mode RGB"),
    "12 bits in 16, as a TIFF": (lambda p: tiff(p / "a.tif", (GREY * 16).astype(np.uint16)), "mode I;16"),
    "signed bytes": (lambda p: tiff(p / "a.tif", GREY.astype(np.uint8), {339: 2}), "mode L"),
}
for name, (build, said) in UNKNOWN.items():
    row(NUMBERS, f"{name} are refused", code=2, says=[said, "range is not known"])(
        lambda place, net, build=build: ("predict", net.best, build(place), "--workers", 0)
    )
    row(NUMBERS, f"{name} are told of by verify", code=1, says=[said, "13 photos read, 1 damaged"])(
        lambda place, net, build=build: (build(birds(place / "p") / "red"), verify(place / "p"))[1]
    )


# --- harmless tags ----------------------------------------------------------------------------------------------------

TAGS = "tags that do no harm"


def with_resolution(path, kind, value, turned=6):
    """Write a JPEG whose EXIF block holds an orientation and a resolution of a wrong type."""
    body = b"II*\0\x08\0\0\0" + struct.pack("<H", 2)
    body += struct.pack("<HHIHH", 274, 3, 1, turned, 0) + struct.pack("<HHI", 282, kind, 1) + value
    return save(path, exif=b"Exif\0\0" + body + b"\0\0\0\0")


for name, kind, value in (
    ("text", 2, b"72\0\0"),
    ("a signed number", 9, struct.pack("<i", -72)),
    ("a byte", 1, b"H\0\0\0"),
):
    row(TAGS, f"a resolution that is {name}", says=["%  2 looks"])(
        lambda place, net, kind=kind, value=value: (
            "predict", net.best, with_resolution(place / "a.jpg", kind, value), "--workers", 0
        )
    )  # fmt: skip
row(TAGS, "an EXIF block of junk", says=["2 looks"])(
    lambda place, net: ("predict", net.best, save(place / "a.jpg", exif=b"Exif\0\0junk!"), "--workers", 0)
)


# --- split folders ----------------------------------------------------------------------------------------------------

SPLITS = "folders of splits"


def splits(place, **numbers):
    for name, number in numbers.items():
        birds(place / "p" / name, number=number)
    return place / "p"


for name in ("testing", "Test", "test_set", "TestData", "test2017", "tests"):
    row(SPLITS, f"{name} beside train", says=["(8 train, 4 test)"])(
        lambda place, net, name=name: info(splits(place, train=4, **{name: 2}))
    )
for name in ("evaluation", "holdout", "test2", "eval", "unlabeled"):
    row(SPLITS, f"{name} beside train", code=2, says=[name, "beside"])(
        lambda place, net, name=name: info(splits(place, train=4, **{name: 2}))
    )
row(SPLITS, "training_set and test_set", says=["(8 train, 4 test)", "2 classes"])(
    lambda place, net: info(splits(place, training_set=4, test_set=2))
)
row(SPLITS, "training, validation and testing", says=["(8 train, 2 val, 4 test)"])(
    lambda place, net: info(splits(place, training=4, validation=1, testing=2))
)
row(SPLITS, "Train and train", code=2, says=["Train", "one folder of training photos"])(
    lambda place, net: info(splits(place, train=4, Train=2))
)
row(SPLITS, "test and testing", code=2, says=["testing", "one folder of test photos"])(
    lambda place, net: info(splits(place, train=4, test=1, testing=2))
)


@row(SPLITS, "of photos without classes", code=2, says=["looks like a split"])
def _(place, net):
    return info(birds(place / "p", ("train_images", "test_images")))


row(SPLITS, "are not the classes whose names have such a word", says=["12 photos", "2 classes"])(
    lambda place, net: info(birds(place / "p", ("crash test dummy/a", "train station/b")))
)


@row(SPLITS, "inside the classes", code=2, says=["holds splits"])
def _(place, net):
    for name in ("red", "green"):
        birds(place / "p" / name, ("train", "test"))
    return info(place / "p")


# --- links and copies -------------------------------------------------------------------------------------------------

COPIES = "links and copies"


@row(COPIES, "a link to its own folder", says=["12 photos", "1 links to folders that are read anyway"])
def _(place, net):
    (birds(place / "p") / "red" / "current").symlink_to(".")
    return info(place / "p")


@row(COPIES, "a link to the folder above", says=["12 photos"])
def _(place, net):
    (birds(place / "p") / "red" / "all").symlink_to("..")
    return info(place / "p")


@row(COPIES, "a link to another class inside a class", says=["12 photos", "1 links"])
def _(place, net):
    (birds(place / "p") / "red" / "more").symlink_to("../green")
    return info(place / "p")


@row(COPIES, "a link to a folder inside one that is linked too", says=["12 photos"])
def _(place, net):
    birds(place / "p")
    birds(place / "x", ("sub",), 2)
    (place / "p" / "red" / "0").symlink_to(place / "x" / "sub")
    (place / "p" / "red" / "1").symlink_to(place / "x")
    for path in (place / "p" / "red").glob("[0-1].png"):
        path.unlink()
    return info(place / "p")


@row(COPIES, "a class that is a link to another", says=["12 photos", "2 classes"])
def _(place, net):
    (birds(place / "p") / "crimson").symlink_to("red")
    return info(place / "p")


@row(COPIES, "a class that lies elsewhere", says=["12 photos", "2 classes"])
def _(place, net):
    birds(place / "p").joinpath("red").rename(place / "elsewhere")
    (place / "p" / "red").symlink_to(place / "elsewhere")
    return info(place / "p")


def copied(place, source, target, link=False):
    root = splits(place, train=4, test=2)
    (root / target).unlink(missing_ok=True)
    (root / target).symlink_to(root / source) if link else (root / target).write_bytes(
        (root / source).read_bytes()
    )
    return root


LEAK = ["1 test photo is also among the training photos", "train/red/1.png", "test/red/9.png"]
TWICE = ["1 photo stands in more than one class", "train/red/1.png", "train/green/9.png"]
for link in (False, True):
    what = "linked" if link else "copied"
    row(COPIES, f"a training photo {what} into test", code=1, says=LEAK)(
        lambda place, net, link=link: verify(copied(place, "train/red/1.png", "test/red/9.png", link))
    )
    row(COPIES, f"a photo {what} into two classes", code=1, says=TWICE)(
        lambda place, net, link=link: verify(copied(place, "train/red/1.png", "train/green/9.png", link))
    )
row(COPIES, "are told of before training", says=["warning", *LEAK, "01-classification"])(
    lambda place, net: train(place, copied(place, "train/red/1.png", "test/red/9.png"))
)
row(COPIES, "in two classes are told of before training", says=["warning", *TWICE, "01-classification"])(
    lambda place, net: train(place, copied(place, "train/red/1.png", "train/green/9.png"))
)


@row(COPIES, "in a list", code=1, says=["1 test photo is also among the training photos"])
def _(place, net):
    path = listed(place, "path,label,split\nr0.png,r,train\nr1.png,r,test\ng0.png,g,train\ng1.png,g,test\n")
    (place / "r1.png").write_bytes((place / "r0.png").read_bytes())
    return verify(path)


# --- what is no class, no photo ---------------------------------------------------------------------------------------

OTHERS = "what is no class and no photo"
for name in (
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "lost+found",
    ".thumbs",
    "__MACOSX",
    "System Volume Information",
):
    row(OTHERS, f"{name} beside and inside the classes", says=["12 photos", "2 classes"])(
        lambda place, net, name=name: (
            birds(place / "p"), birds(place / "p", (name,)), birds(place / "p" / "red", (name,)), info(place / "p")
        )[-1]
    )  # fmt: skip
for suffix, options in {
    ".jfif": "JPEG",
    ".jpe": "JPEG",
    ".gif": "GIF",
    ".avif": "AVIF",
    ".jp2": "JPEG2000",
    "": "PNG",
}.items():
    row(OTHERS, f"a photo that ends in '{suffix}'", says=["13 photos"], silent=["passed over"])(
        lambda place, net, suffix=suffix, options=options: (
            birds(place / "p"), save(place / "p" / "red" / f"photo{suffix}", format=options), info(place / "p")
        )[-1]
    )  # fmt: skip


@row(
    OTHERS,
    "is told of",
    says=["12 photos", "6 files passed over", "1 .heic (needs pillow-heif)", "2 .txt", "1 .nef (camera raw"],
)
def _(place, net):
    red = birds(place / "p") / "red"
    for name in ("a.txt", "b.txt", "c.nef", "d.jpg.part"):
        (red / name).write_bytes(b"text")
    (red / "e.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    save(place / "p" / "beside.jpg")
    (red / "._0.png").write_bytes(b"of a Macintosh")
    return info(place / "p")


@row(OTHERS, "a HEIF photo that is asked for", code=2, says=["a.heic", "needs pillow-heif"])
def _(place, net):
    (place / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0" + b"\0" * 100)
    return "predict", net.best, place / "a.heic", "--workers", 0


@row(OTHERS, "a pipe called like a photo", says=["12 photos", "1 no regular file"])
def _(place, net):
    os.mkfifo(birds(place / "p") / "red" / "pipe.jpg")
    return info(place / "p")


@row(OTHERS, "pictures of an earlier call", says=["12 pictures", "13 files passed over: 13 written by racnn"])
def _(place, net):
    assert run("visualize", net.best, birds(place / "p"), "--out", place / "p" / "seen").code == 0
    return "visualize", net.best, place / "p", "--out", place / "other"


# --- order of names ---------------------------------------------------------------------------------------------------

ORDER = "classes in natural order"
NUMBERED = tuple(str(number) for number in range(1, 13))
row(ORDER, "of folders", says=["--classes 1-3  1: 1, 2: 2, 3: 3", "3 classes"])(
    lambda place, net: info(birds(place / "p", NUMBERED, 3), "--classes", "1-3")
)
row(ORDER, "of words with numbers", says=["1: bird2, 2: bird10"])(
    lambda place, net: info(birds(place / "p", ("bird10", "bird2"), 3), "--classes", "1-2")
)


@row(ORDER, "of a list", says=["1: 2, 2: 10"])
def _(place, net):
    path = listed(place, "path,label\n" + "".join(f"r{i}.png,10\ng{i}.png,2\n" for i in range(3)))
    return info(path, "--classes", "1-2")


row(ORDER, "no classes at all", code=2, says=["data.classes"])(
    lambda place, net: info(net.photos, "--classes", "")
)


# --- values on the command line ---------------------------------------------------------------------------------------

VALUES = "values on the command line"
SETTINGS = {
    "data.root=a/photos #2": "root: 'a/photos #2'",
    "data.root=2024": "root: '2024'",
    "data.root=yes": "root: 'yes'",
    "data.root=~/birds": "root: ~/birds",
    "data.root=[1]": "root: '[1]'",
    "data.classes=010": "classes: '010'",
    "data.classes=1-3": "classes: 1-3",
    "data.cache=null": "cache: null",
    "run.out=a: b": "out: 'a: b'",
    "schedule.0.keep=best": "keep: best",
    "data.batch_size=4": "batch_size: 4",
    "model.bounds=[[0.2,0.9]]": "- 0.2",
}
for setting, said in SETTINGS.items():
    row(VALUES, setting, says=[said])(
        lambda place, net, setting=setting: ("config", config_of(place, net.photos), "--set", setting)
    )
for text in (
    "data.batch_size=on",
    "schedule.0.lr=true",
    "run.seed=yes",
    "schedule.0.lr=1:30.5",
    "data.batch_size=1_0_",
):
    row(VALUES, f"no number: {text}", code=2, says=[text.partition("=")[0]])(
        lambda place, net, text=text: ("config", config_of(place, net.photos), "--set", text)
    )
row(VALUES, "the home folder", silent=["out: ~"])(
    lambda place, net: ("config", config_of(place, net.photos), "--set", "run.out=~/runs/x")
)


@row(VALUES, "a path that is empty in a file", code=2, says=["data.root: expected a value, or null"])
def _(place, net):
    (place / "c.yaml").write_text("data:\n  root: ''\n")
    return "config", place / "c.yaml"


row(VALUES, "a path that is empty", code=2, says=["--set data.root=", "expected a value"])(
    lambda place, net: ("config", config_of(place, net.photos), "--set", "data.root=")
)


@row(VALUES, "a number of a file that YAML takes for octal", says=["classes: '010'"])
def _(place, net):
    (place / "c.yaml").write_text("data:\n  classes: 010\n")
    return "config", place / "c.yaml"


# --- lists ------------------------------------------------------------------------------------------------------------

LISTS = "lists"
BOX = "path,label,x0,y0,x1,y1\nr0.png,r,{box}\nr1.png,r,1,1,9,9\ng0.png,g,1,1,9,9\ng1.png,g,1,1,9,9\n"
for name, box, code, said in (
    ("of fractions", "0.1,0.2,0.6,0.7", 2, "less than a pixel"),
    ("of fractions of the whole photo", "0,0,1,0.9", 2, "less than a pixel"),
    ("beside its photo", "500,500,900,900", 2, "outside the upright photo, 28x20"),
    ("that leaves its photo", "10,2,35,9", 2, "outside the upright photo"),
    ("that fits", "0,0,28,20", 0, "4 photos read"),
):
    row(LISTS, f"a box {name}", code=code, says=[said] + (["list.csv, line 2"] if code else []))(
        lambda place, net, box=box: verify(listed(place, BOX.format(box=box)))
    )


def labels(place, *names, suffix="csv"):
    """Write a list with so many labels, three photos each."""
    rows = [(f"{'rg'[i % 2]}{i // 2}.png", names[i % len(names)]) for i in range(3 * len(names))]
    if suffix == "csv":
        text = "path,label\n" + "".join(f'{path},"{name}"\n' for path, name in rows)
    else:
        text = "".join(json.dumps({"path": p, "label": n}, ensure_ascii=False) + "\n" for p, n in rows)
    return listed(place, text, f"list.{suffix}", number=6)


for name, text, said in (
    ("a column twice", "path,label,label\nr0.png,r,g\n", "line 1: 'label' stands twice"),
    ("a box of thousandths of a pixel", BOX.format(box="0,0,1,1"), "no larger than one"),
    ("a box of words", BOX.format(box="a,b,c,d"), "expected four numbers"),
    ("a box with an underscore", BOX.format(box="1_0,2,3,4"), "expected four numbers"),
):
    row(LISTS, name, code=2, says=[said])(lambda place, net, text=text: info(listed(place, text)))
for name, line, said in (
    ("a key twice", '{"path": "r0.png", "label": "r", "label": "g"}', "'label' stands twice"),
    ("a box that is a text", '{"path": "r0.png", "label": "r", "box": "1298"}', "expected four numbers"),
    (
        "a number without end",
        '{"path": "r0.png", "label": "r", "box": [0, 0, 9, 1' + "0" * 400 + "]}",
        "expected four numbers",
    ),
    ("brackets without end", "[" * 100_000, "not valid JSON"),
):
    row(LISTS, f"a JSON line with {name}", code=2, says=["list.jsonl, line 1", said])(
        lambda place, net, line=line: info(listed(place, line + "\n", "list.jsonl"))
    )
row(LISTS, "a label of very many digits", says=["2 classes"])(
    lambda place, net: info(
        listed(place, "path,label\n" + "".join(f"r{i}.png,{'9' * 5000}\ng{i}.png,7\n" for i in range(3)))
    )
)
ALIKE = ["class names that look alike"]
row(LISTS, "a line separator inside a JSON line", says=["2 classes", "6 photos"])(
    lambda place, net: info(labels(place, "red\u2028x", "green", suffix="jsonl"))
)
row(LISTS, "an invisible character behind a label", says=["2 classes"], silent=ALIKE)(
    lambda place, net: info(labels(place, "red", "green", "red\u200b", "green\ufeff"))
)
row(LISTS, "an accent stored in two ways", says=["2 classes"], silent=ALIKE)(
    lambda place, net: info(labels(place, "pic\u00e9", "green", "pice\u0301"))
)
row(LISTS, "a label of two lines", says=["2 classes", "red second (3 photos)"])(
    lambda place, net: info(labels(place, "red\nsecond", "green", "green"))
)
row(LISTS, "labels that differ in case", says=["4 classes", *ALIKE, "'Red', 'red'"])(
    lambda place, net: info(labels(place, "red", "green", "Red", "Green"))
)
row(LISTS, "an invisible character inside a label", says=["3 classes", *ALIKE, "r\\u200bed"])(
    lambda place, net: info(labels(place, "red", "r\u200bed", "green"))
)
row(LISTS, "a letter of another script", says=["3 classes", *ALIKE, "\\u0430uk"])(
    lambda place, net: info(labels(place, "auk", "\u0430uk", "green"))
)
row(LISTS, "words joined in two ways", says=["3 classes", *ALIKE])(
    lambda place, net: info(labels(place, "blue jay", "blue_jay", "green"))
)
row(LISTS, "alike labels are told of before training", says=["warning: class names that look alike"])(
    lambda place, net: train(place, labels(place, "red", "green", "Red"))
)
row(LISTS, "folders that look alike", says=["3 classes", *ALIKE])(
    lambda place, net: info(birds(place / "p", ("red", "Red", "green"), 3))
)
row(LISTS, "folders of one name", code=2, says=["two class folders are both 'red'"])(
    lambda place, net: info(birds(place / "p", ("red", "red\u200b", "green"), 3))
)
row(LISTS, "a file in UTF-16", code=2, says=["expected UTF-8, not UTF-16"])(
    lambda place, net: info(listed(place, "path,label\nr0.png,r\n".encode("utf-16")))
)
row(LISTS, "a mark of the byte order", says=["6 photos"])(
    lambda place, net: info(listed(place, "\ufeff" + "".join(f'{{"path": "{c}{i}.png", "label": "{c}"}}\n' for c in "rg" for i in range(3)), "list.jsonl"))
)  # fmt: skip

GROUPS = "groups"
row(
    GROUPS,
    "in two splits",
    code=2,
    says=["list.csv, line 3", "group 'nest 1' is test here and train in line 2"],
)(
    lambda place, net: info(
        listed(
            place,
            "path,label,split,group\nr0.png,r,train,nest 1\nr1.png,r,test,nest 1\ng0.png,g,train,\ng1.png,g,test,\n",
        )
    )
)


# --- photos exchanged -------------------------------------------------------------------------------------------------

EXCHANGED = "photos exchanged under their names"


def begun(place):
    root = birds(place / "p", number=8)
    assert run(*train(place, root)).code == 0
    return root


@row(EXCHANGED, "are refused by --resume", code=2, says=["--resume: 2 photos hold something else"])
def _(place, net):
    root = begun(place)
    stored = torch.load(place / "run" / "last.pt")
    for name in (stored["train_names"][0], stored["val_names"][0]):
        save(root / name)
    return train(place, root, "--resume")


@row(
    EXCHANGED,
    "by moving, with their sizes and times",
    code=2,
    says=["--resume: 2 photos hold something else"],
)
def _(place, net):
    root = birds(place / "p", number=8, suffix="bmp")  # all of one size
    for path in root.rglob("*.bmp"):
        os.utime(path, (0, 0))
    assert run(*train(place, root)).code == 0
    first, second = torch.load(place / "run" / "last.pt")["train_names"][:2]
    (root / first).rename(place / "away")
    (root / second).rename(root / first)
    (place / "away").rename(root / second)
    return train(place, root, "--resume")


@row(EXCHANGED, "a copied data set is the same", says=["the run is finished"])
def _(place, net):
    root = begun(place)
    for path in sorted(root.rglob("*.png")):
        target = place / "copy" / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return train(place, root, "--resume", "--set", f"data.root={place / 'copy'}")


# --- weights ----------------------------------------------------------------------------------------------------------

WEIGHTS = "weights"


def started(place, net, content, name="w.pth"):
    save_ = save_file if name.endswith(".safetensors") else torch.save
    save_(content, place / name)
    return train(place, net.photos, "--set", f"model.weights={place / name}")


def trunk(before="", **changes):
    state = {
        f"{before}features.{k}": v.clone() for k, v in build_backbone("tiny").features.state_dict().items()
    }
    return state | {f"{before}{key}": value for key, value in changes.items()}


row(WEIGHTS, "a whole module", code=2, says=["torch.save(model)", "state_dict"])(
    lambda place, net: started(place, net, torch.nn.Linear(2, 2))
)
row(WEIGHTS, "of DataParallel")(lambda place, net: started(place, net, trunk("module.")))
row(WEIGHTS, "of torch.compile")(lambda place, net: started(place, net, trunk("_orig_mod.")))
row(WEIGHTS, "of both")(lambda place, net: started(place, net, {"model": trunk("module._orig_mod.")}))
row(WEIGHTS, "inside a larger network")(
    lambda place, net: started(place, net, {"state_dict": trunk("model.") | {"head.weight": torch.zeros(3)}})
)
row(WEIGHTS, "of two networks", code=2, says=["2 such networks", "student.", "teacher."])(
    lambda place, net: started(place, net, trunk("teacher.") | trunk("student."))
)
row(WEIGHTS, "that are not numbers", code=2, says=["NaN or infinite", "0.weight"])(
    lambda place, net: started(
        place, net, trunk(**{"features.0.weight": torch.full((16, 3, 3, 3), float("nan"))})
    )
)
row(WEIGHTS, "under numbers", code=2, says=["expected a dictionary of tensors by name"])(
    lambda place, net: started(place, net, trunk() | {5: torch.zeros(1)})
)
row(WEIGHTS, "that are true or false", code=2, says=["other kinds of numbers", "0.weight bool"])(
    lambda place, net: started(place, net, {key: value > 0 for key, value in trunk().items()})
)
row(WEIGHTS, "of a sparse layout", code=2, says=["other kinds of numbers", "sparse"])(
    lambda place, net: started(place, net, {key: value.to_sparse() for key, value in trunk().items()})
)
row(WEIGHTS, "under another suffix")(
    lambda place, net: (
        save_file(trunk(), place / "w.bin"), train(place, net.photos, "--set", f"model.weights={place / 'w.bin'}")
    )[1]
)  # fmt: skip


@row(WEIGHTS, "a pointer of Git LFS", code=2, says=["Git LFS pointer"])
def _(place, net):
    (place / "w.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    return train(place, net.photos, "--set", f"model.weights={place / 'w.pth'}")


@row(WEIGHTS, "a whole module as a checkpoint", code=2, says=["torch.save(model)"])
def _(place, net):
    torch.save(torch.nn.Linear(2, 2), place / "m.pt")
    return "inspect", place / "m.pt"


# --- new photos to measure on -----------------------------------------------------------------------------------------

NEW = "new photos to measure on"
row(NEW, "class folders", says=["6 photos, 2 classes", "0 of the 6 photos"])(
    lambda place, net: ("evaluate", net.best, "--data", birds(place / "new", number=3))
)
row(NEW, "of fewer classes", says=["3 photos, 2 classes"])(
    lambda place, net: ("evaluate", net.best, "--data", birds(place / "new", ("green",), 3))
)
row(NEW, "of unknown classes", code=2, says=["'blue' is new"])(
    lambda place, net: ("evaluate", net.best, "--data", birds(place / "new", ("green", "blue"), 3))
)
row(NEW, "in splits", says=["folder, all: 12 photos"])(
    lambda place, net: ("evaluate", net.best, "--data", splits(place, train=4, test=2))
)
row(NEW, "one of the splits", says=["folder, test: 4 photos"])(
    lambda place, net: ("evaluate", net.best, "--data", splits(place, train=4, test=2), "--split", "test")
)
row(NEW, "a split that they do not bring", code=2, says=["--split val", "only test, all"])(
    lambda place, net: ("evaluate", net.best, "--data", birds(place / "new", number=3), "--split", "val")
)
row(NEW, "test photos alone", says=["folder, all: 4 photos"])(
    lambda place, net: ("evaluate", net.best, "--data", splits(place, test=2))
)


@row(NEW, "a class without photos", says=["folder, all: 6 photos"])
def _(place, net):
    (birds(place / "new", ("green",), 6) / "red").mkdir()
    return "evaluate", net.best, "--data", place / "new"


@row(NEW, "a photo in two classes", says=["warning: 1 photo stands in more than one class"])
def _(place, net):
    new = birds(place / "new", number=3)
    (new / "red" / "0.png").write_bytes((new / "green" / "0.png").read_bytes())
    return "evaluate", net.best, "--data", new


@row(NEW, "the run's own, one of which is gone", code=2, says=["1 of the 2 validation photos", "not in this"])
def _(place, net):
    lost = torch.load(net.best)["val_names"][0]
    for path in sorted(net.photos.rglob("*.png")):
        target = place / "moved" / path.relative_to(net.photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        if str(path.relative_to(net.photos)) != lost:
            target.write_bytes(path.read_bytes())
    return "evaluate", net.best, "--data", place / "moved", "--split", "test"


row(NEW, "a list", says=["manifest, all: 4 photos"])(
    lambda place, net: (
        "evaluate", net.best, "--data", listed(place, "path,label\nr0.png,red\nr1.png,Red\ng0.png,green\ng1.png,green\n")
    )
)  # fmt: skip
row(NEW, "of no known kind", code=2, says=["no such folder or list"])(
    lambda place, net: ("evaluate", net.best, "--data", place / "nowhere")
)
row(NEW, "for early exit", code=2, says=["--early-exit", "validation photos"])(
    lambda place, net: ("evaluate", net.best, "--data", birds(place / "new"), "--early-exit")
)
row(NEW, "all of the run's own", says=["folder, all: 20 photos", "14 of the 20 photos", "too good"])(
    lambda place, net: ("evaluate", net.best, "--split", "all")
)


@row(
    NEW,
    "that were trained on, under other names",
    says=["of the 20 photos are photos that the network was trained on", "14 of"],
)
def _(place, net):
    for path in sorted(net.photos.rglob("*.png")):
        target = place / "new" / path.parent.name / f"other {path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return "evaluate", net.best, "--data", place / "new"


# --- runs that are refused --------------------------------------------------------------------------------------------


@row("a run that is refused", "for its data leaves nothing behind", code=2, says=["expected photos"])
def _(place, net):
    (birds(place / "p") / "empty").mkdir()
    (place / "p" / "empty" / "a.txt").write_text("no photo")
    command = train(place, place / "p", "--out", place / "deep" / "er" / "run")
    assert run(*command).code == 2
    assert not (place / "deep").exists()
    return command


def files_of(*roots):
    """Return what stands in every file, and where every link leads."""
    found = {}
    for root in roots:
        for folder, _, names in os.walk(root):
            for name in names:
                path = os.path.join(folder, name)
                if os.path.islink(path):
                    found[path] = os.readlink(path)
                elif os.path.isfile(path):
                    with open(path, "rb") as file:
                        found[path] = file.read()
    return found


OWN = (*RUN_FILES, ".racnn-written", "events.out")


@pytest.mark.parametrize("line", ROWS, ids=lambda line: f"{line.kind}: {line.name}")
def test_an_input_has_its_outcome(line, net, tmp_path):
    words = line.build(tmp_path, net)
    before = files_of(tmp_path, net.photos, net.run)
    result = run(*words)
    assert result.code == line.code, result.said
    for said in line.says:
        assert said in result.said, result.said
    for said in line.silent:
        assert said not in result.said, result.said
    assert "Traceback" not in result.said
    after = files_of(tmp_path, net.photos, net.run)
    changed = [path for path, content in before.items() if after.get(path) != content]
    own = [path for path in changed if os.path.basename(path).startswith(OWN)] if line.code == 0 else []
    assert [path for path in changed if path not in own] == []


def test_there_are_lines_enough():
    assert len({line.kind for line in ROWS}) >= 15
    assert len(ROWS) >= 60


@pytest.mark.parametrize("seed", range(6))
def test_whatever_lies_among_the_photos_stays_as_it_was(seed, net, tmp_path):
    """Photos, their namesakes, records, links and pictures of earlier calls, drawn at random."""
    chance = np.random.default_rng(seed)
    place = tmp_path / "p"
    save(place / "first.jpg", pixels(True, seed))
    if chance.random() < 0.5:
        run("visualize", net.best, place, "--out", place)
    for name in ("a", "b", "sub/a", "sub/b", "regions"):
        for suffix in (".png", ".jpg", ".json", ".tif"):
            if chance.random() < 0.4:
                if suffix == ".json":
                    path = place / f"{name}.json"
                    path.parent.mkdir(exist_ok=True)
                    path.write_text("[]")
                else:
                    save(place / f"{name}{suffix}", pixels(bool(chance.random() < 0.5)))
    if chance.random() < 0.5:
        (place / "link.png").symlink_to(place / "first.jpg")
    if chance.random() < 0.3 and not os.path.lexists(place / "first.png"):
        (place / "first.png").symlink_to("nowhere")
    for photos in (place, place / "first.jpg"):
        before = files_of(tmp_path)
        result = run("visualize", net.best, photos, "--out", place)
        after = files_of(tmp_path)
        assert {path: after.get(path) for path in before if not path.endswith(".racnn-written")} == {
            path: content for path, content in before.items() if not path.endswith(".racnn-written")
        }, result.said
        assert result.code in (0, 2)


def test_photos_of_the_test_split_measure_as_they_did_in_it(net, tmp_path):
    """The run's own test photos, in class folders of their own and under other names, and as a list."""
    assert run("evaluate", net.best, "--json", tmp_path / "own.json").code == 0
    own = json.loads((tmp_path / "own.json").read_text())
    test = {p for p in net.photos.rglob("*.png")}
    stored = torch.load(net.best)
    used = {net.photos / name for name in (*stored["train_names"], *stored["val_names"])}
    rows = []
    for number, path in enumerate(sorted(test - used)):
        target = tmp_path / "new" / path.parent.name / f"new {number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        rows.append(f"{target.relative_to(tmp_path)},{path.parent.name}\n")
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(rows))
    for data in (tmp_path / "new", tmp_path / "list.csv"):
        result = run("evaluate", net.best, "--data", data, "--json", tmp_path / "new.json")
        assert result.code == 0, result.said
        new = json.loads((tmp_path / "new.json").read_text())
        assert new["num_images"] == own["num_images"] == 4
        assert new["num_trained_on"] == 0
        for key in ("top1", "log_prob", "ece", "per_class"):
            assert new[key] == pytest.approx(own[key]) if key != "per_class" else new[key] == own[key]


def test_a_file_is_replaced_that_the_program_wrote(net, tmp_path):
    command = ("visualize", net.best, save(tmp_path / "p" / "a.jpg"), "--out", tmp_path / "out")
    for _ in range(2):
        assert run(*command).code == 0
    for _ in range(2):
        assert run("evaluate", net.best, "--json", tmp_path / "out" / "report.json").code == 0
    assert (
        run("data", "verify", "--root", net.photos, "--write-list", tmp_path / "l.txt", "--workers", 0).code
        == 0
    )


def test_only_what_changed_is_read_again(net, tmp_path, monkeypatch):
    """Size and time stand in for contents of photos that are as they were."""
    root = birds(tmp_path / "p", number=8)
    assert run(*train(tmp_path, root)).code == 0
    known = json.loads((tmp_path / "run" / "photos.json").read_text())
    assert len(known) == 12  # all but the test photos
    name = next(iter(known))
    stale = [*known[name][:3], "0" * 64]
    (tmp_path / "run" / "photos.json").write_text(json.dumps(known | {name: stale}))
    result = run(*train(tmp_path, root, "--resume"))
    assert (result.code, name in result.said) == (2, True)  # what stands there is believed
    os.utime(root / name)
    assert run(*train(tmp_path, root, "--resume")).code == 0
