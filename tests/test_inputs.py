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


def wrote(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogateescape"))
    return path


def linked(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def linked_record(folder):
    return linked(folder / ".racnn-written", wrote(folder / "precious", "mine"))


def birds(root, classes=("red", "green"), number=6, suffix="png"):
    for name in classes:
        for i in range(number):
            save(root / name / f"{i}.{suffix}", pixels(name.startswith("r")))
    return root


def copy(photos, folder, before="", but=()):
    """Copy photos, but for some, in their class folders; ``before`` is put before their names."""
    for path in sorted(set(photos.rglob("*.png")) - set(but)):
        wrote(folder / path.parent.name / f"{before}{path.name}", path.read_bytes())
    return folder


def listed(root, text, name="list.csv", number=3):
    """Write a list and the photos r0, r1, ... and g0, g1, ... that it may name."""
    for i in range(number):
        save(root / f"r{i}.png", pixels(True))
        save(root / f"g{i}.png", pixels(False))
    return wrote(root / name, text)


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
    return ("data", "verify", root, "--workers", 0, *words)


def info(root, *words):
    return ("data", "info", root, *words)


def visualize(net, photos, out):
    return "visualize", net.best, photos, "--out", out


def predict(net, photos, *words):
    return "predict", net.best, photos, "--workers", 0, *words


def evaluate(net, data, *words):
    return "evaluate", net.best, "--data", data, *words


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


row(
    LOSS,
    "pictures go where the photos lie",
    code=2,
    says=["photos/a.png", "nothing says that racnn wrote it"],
)(lambda place, net: visualize(net, save(place / "photos/a.png").parent, place / "photos"))
row(LOSS, "the folder of pictures is a link to the photos", code=2, says=["a.png"])(
    lambda place, net: visualize(
        net, save(place / "photos/a.png").parent, linked(place / "out", place / "photos")
    )
)
for name, said, out in (
    ("a photo beside another of its name", "p.png", lambda p: save(p / "p.png")),
    ("a foreign regions.json", "regions.json", lambda p: wrote(p / "out/regions.json", "[]")),
    ("a link for a picture", "p.png is a link", lambda p: linked(p / "out/p.png", save(p / "precious.png"))),
    ("a link to nowhere", "regions.json is a link", lambda p: linked(p / "out/regions.json", p / "nowhere")),
    ("a folder for a picture", "p.png is a folder", lambda p: wrote(p / "out/p.png/mine", "").parent),
    ("pictures in a file", "is a file", lambda p: wrote(p / "out", "mine") / "p.png"),
):
    row(LOSS, name, code=2, says=[said])(
        lambda place, net, out=out: visualize(net, save(place / "p.jpg"), out(place).parent)
    )


@row(LOSS, "a picture that was drawn, and changed since", code=2, says=["p.png was changed since"])
def _(place, net):
    command = visualize(net, save(place / "p.jpg"), place / "out")
    assert run(*command).code == 0
    wrote(place / "out" / "p.png", "my notes")
    return command


for name, said, report in (
    ("a report over notes", "notes.json", lambda p: wrote(p / "notes.json", "{}")),
    ("a report through a link", "r.json is a link", lambda p: linked(p / "r.json", wrote(p / "notes", "{}"))),
    (
        "through a link for the record",
        ".racnn-written",
        lambda p: linked_record(p / "out").with_name("r.json"),
    ),
    ("for a folder", "is a folder", lambda p: wrote(p / "r" / "mine", "mine").parent),
):
    row(LOSS, name, code=2, says=[said])(
        lambda place, net, report=report: ("evaluate", net.best, "--json", report(place))
    )
row(LOSS, "a report over the network", code=2, says=["best.pt"])(
    lambda place, net: ("evaluate", net.best, "--json", net.best)
)
row(LOSS, "a list of damaged photos over a list by hand", code=2, says=["mine.txt"])(
    lambda place, net: verify(net.photos, "--write-list", wrote(place / "mine.txt", "red/1.png\n"))
)


@row(LOSS, "an export over another program's file", code=2, says=["nothing says that racnn wrote it"])
def _(place, net):
    save_file({"a": torch.zeros(1)}, place / "other.safetensors")
    return "export-weights", net.best, "--out", place / "other.safetensors", "--overwrite"


@row(LOSS, "a run over another program's run", code=2, says=["best.pt", "none that this program wrote"])
def _(place, net):
    wrote(place / "run" / "best.pt", b"of another program")
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


row(LOSS, "a cache in the place of a file", code=2, says=["data.cache", "is a file"])(
    lambda place, net: train(place, net.photos, "--set", f"data.cache={wrote(place / 'cache', 'mine')}")
)
row(LOSS, "a run among the classes", code=2, says=["run.out", "whose folders are classes"])(
    lambda place, net: train(place, birds(place / "photos"), "--out", place / "photos" / "run")
)


@row(LOSS, "the record itself", code=2, says=[".racnn-written", "record"])
def _(place, net):
    assert run("evaluate", net.best, "--json", place / "report.json").code == 0
    return "evaluate", net.best, "--json", place / ".racnn-written"


@row(LOSS, "notes beside the curves of a run that is replaced", says=["next: racnn evaluate"])
def _(place, net):
    assert run(*train(place, net.photos)).code == 0
    (place / "run" / "tensorboard" / "notes.md").write_text("mine")
    return train(place, net.photos, "--overwrite")


row(LOSS, "a report where early exit writes", code=2, says=["--early-exit writes"])(
    lambda place, net: (
        "evaluate", net.best, "--early-exit", "--json", net.best.with_suffix(".early_exit.json")
    )
)  # fmt: skip


@row(LOSS, "a record that a crash has torn does no harm", says=["12 photos"])
def _(place, net):
    wrote(birds(place / "p") / "red/.racnn-written", '{"name": "a.png", "sha256": "0"}\n{"name": "b.p')
    return info(place / "p")


# --- names that are no UTF-8 ------------------------------------------------------------------------------------------

BYTES = "names that are no UTF-8"
CAFE = os.fsdecode(b"caf\xe9.png")


def latin(place, content=None):
    """Write photos, one of them under a name in Latin-1; ``content``: of this one instead."""
    photo = save(birds(place / "photos") / "red" / "x.png").rename(place / "photos/red" / CAFE)
    if content is not None:
        photo.write_bytes(content)
    return place / "photos"


row(BYTES, "are read", says=["13 photos read, 0 damaged"])(lambda place, net: verify(latin(place)))
row(BYTES, "are printed and listed as they are", code=1, says=[f"red/{CAFE}: cannot", "1 damaged"])(
    lambda place, net: verify(latin(place, b"no photo"), "--write-list", place / "list.txt")
)
row(BYTES, "are answered", says=[CAFE])(lambda place, net: predict(net, latin(place), "--csv"))
row(BYTES, "are drawn", says=["13 pictures"])(lambda place, net: visualize(net, latin(place), place / "out"))
row(BYTES, "of the run's own folder are refused", code=2, says=["run.out", "UTF-8"])(
    lambda place, net: train(place, net.photos, "--out", place / CAFE)
)


@row(BYTES, "are left out by that list", says=["photos: 8 train, 2 val, 2 test"])
def _(place, net):
    root = latin(place, b"no photo")
    assert run(*verify(root, "--write-list", place / "list.txt")).code == 1
    return train(place, root, "--set", f"data.exclude={place / 'list.txt'}")


@row(BYTES, "stand in a list", says=["6 photos read, 0 damaged"])
def _(place, net):
    path = listed(place, f"path,label\nr0.png,r\nr1.png,r\n{CAFE},r\ng0.png,g\ng1.png,g\ng2.png,g\n")
    (place / "r2.png").rename(place / CAFE)
    return verify(path)


# --- a last batch of one photo ----------------------------------------------------------------------------------------

LAST = "a last batch of one photo"
CELL = {"backbone": "timm/test_resnet", "sizes": (32,)}  # a view that ends in one cell


def seventeen(place):
    birds(place / "p" / "train", ("red", "green"), 8)
    save(place / "p" / "train" / "red" / "last.png")
    birds(place / "p" / "val", number=1)
    birds(place / "p" / "test", number=1)
    return place / "p"


for name, says, silent, words, size in (
    ("joins the batch before it", ["17 photos leave a single one over at 8 a batch"], [], (), 8),
    ("of the parts of a batch", [], ["single one over"], ("--set", "run.micro_batch=8"), 17),
    ("of parts of two", [], ["single one over"], ("--set", "run.micro_batch=2"), 17),
    ("where every batch is one photo", ["batch norm", "data.batch_size"], [], (), 1),
):
    row(LAST, name, code=2 * (size == 1), says=says, silent=silent)(
        lambda place, net, words=words, size=size: train(
            place, seventeen(place), *words, data__batch_size=size, **CELL
        )
    )


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
        lambda place, net, build=build: predict(net, build(place))
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
        lambda place, net, kind=kind, value=value: predict(net, with_resolution(place / "a.jpg", kind, value))
    )
row(TAGS, "an EXIF block of junk", says=["2 looks"])(
    lambda place, net: predict(net, save(place / "a.jpg", exif=b"Exif\0\0junk!"))
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
for name, code, says, numbers in (
    ("two sets", 0, ["(8 train, 4 test)", "2 classes"], {"training_set": 4, "test_set": 2}),
    ("all three", 0, ["(8 train, 2 val, 4 test)"], {"training": 4, "validation": 1, "testing": 2}),
    ("Train and train", 2, ["Train", "one folder of training photos"], {"train": 4, "Train": 2}),
    ("test and testing", 2, ["testing", "one folder of test"], {"train": 4, "test": 1, "testing": 2}),
):
    row(SPLITS, name, code=code, says=says)(
        lambda place, net, numbers=numbers: info(splits(place, **numbers))
    )
for name, said in (
    ("training", "other: a folder of photos beside"),  # understood: the other folder is not
    *[(n, f"{n}: looks like a split") for n in ("testing", "test", "validation", "eval", "hold-out")],
):
    row(SPLITS, f"{name} beside another folder", code=2, says=[said])(
        lambda place, net, name=name: info(splits(place, **{name: 4, "other": 4}))
    )
row(SPLITS, "beside a folder without photos", says=["(8 train", "2 classes"])(
    lambda place, net: info(wrote(splits(place, train=4, test=1) / "notes/a.txt", "mine").parents[1])
)


@row(SPLITS, "inside the classes", code=2, says=["holds splits"])
def _(place, net):
    for name in ("red", "green"):
        birds(place / "p" / name, ("train", "test"))
    return info(place / "p")


# --- links and copies -------------------------------------------------------------------------------------------------

COPIES = "links and copies"


for name, says, link, target in (
    ("to its own folder", ["1 links to folders that are read anyway"], "red/current", "."),
    ("to the folder above", [], "red/all", ".."),
    ("to another class inside a class", ["1 links"], "red/more", "../green"),
    ("to another class for a class", ["2 classes"], "crimson", "red"),
):
    row(COPIES, f"a link {name}", says=["12 photos", *says])(
        lambda place, net, link=link, target=target: info(
            linked(birds(place / "p") / link, target).parents[link.count("/")]
        )
    )


@row(COPIES, "a link to a folder inside one that is linked too", says=["12 photos"])
def _(place, net):
    birds(place / "p")
    birds(place / "x", ("sub",), 2)
    (place / "p" / "red" / "0").symlink_to(place / "x" / "sub")
    (place / "p" / "red" / "1").symlink_to(place / "x")
    for path in (place / "p" / "red").glob("[0-1].png"):
        path.unlink()
    return info(place / "p")


@row(COPIES, "a class that lies elsewhere", says=["12 photos", "2 classes"])
def _(place, net):
    birds(place / "p").joinpath("red").rename(place / "elsewhere")
    (place / "p" / "red").symlink_to(place / "elsewhere")
    return info(place / "p")


def copied(place, source, target, link=False):
    root = splits(place, train=4, test=2)
    (root / target).unlink(missing_ok=True)
    linked(root / target, root / source) if link else wrote(root / target, (root / source).read_bytes())
    return root


LEAK = ["1 test photo is also among the training photos", "train/red/1.png", "test/red/9.png"]
TWICE = ["1 photo stands in more than one class", "train/red/1.png", "train/green/9.png"]
for said, target in ((LEAK, "test/red/9.png"), (TWICE, "train/green/9.png")):
    for link in (False, True):
        row(COPIES, f"a training photo {'linked' if link else 'copied'} to {target}", code=1, says=said)(
            lambda place, net, to=target, link=link: verify(copied(place, "train/red/1.png", to, link))
        )
    row(COPIES, f"{target} is told of before training", says=["warning", *said, "01-classification"])(
        lambda place, net, to=target: train(place, copied(place, "train/red/1.png", to))
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


row(OTHERS, "a HEIF photo that is asked for", code=2, says=["a.heic", "needs pillow-heif"])(
    lambda place, net: predict(net, wrote(place / "a.heic", b"\0\0\0\x18ftypheic" + b"\0" * 104))
)


for name, said, photos in (
    ("no photo there", "no such photo", lambda p: p / "none.png"),
    ("a folder without", "no photos", lambda p: wrote(p / "photos" / "a.txt", "text").parent),
    ("text", "a.png: cannot be read", lambda p: wrote(p / "a.png", "no photo")),
):
    row(OTHERS, name, code=2, says=[said])(
        lambda place, net, photos=photos: visualize(net, photos(place), place / "out")
    )


@row(OTHERS, "a pipe called like a photo", says=["12 photos", "1 no regular file"])
def _(place, net):
    os.mkfifo(birds(place / "p") / "red" / "pipe.jpg")
    return info(place / "p")


@row(OTHERS, "pictures of an earlier call", says=["12 pictures", "13 files passed over: 13 written by racnn"])
def _(place, net):
    assert run(*visualize(net, birds(place / "p"), place / "p" / "seen")).code == 0
    return visualize(net, place / "p", place / "other")


# --- order of names ---------------------------------------------------------------------------------------------------

ORDER = "classes in natural order"
LISTS, ALIKE = "lists", ["class names that look alike"]
NUMBERED = tuple(str(number) for number in range(1, 13))
for kind, name, code, says, classes, words in (
    (SPLITS, "without classes", 2, ["looks like a split"], ("train_images", "test_images"), ()),
    (SPLITS, "no splits", 0, ["12 photos", "2 classes"], ("crash test dummy/a", "train station/b"), ()),
    (
        ORDER,
        "of folders",
        0,
        ["--classes 1-3  1: 1, 2: 2, 3: 3", "3 classes"],
        NUMBERED,
        ("--classes", "1-3"),
    ),
    (ORDER, "in words", 0, ["1: bird2, 2: bird10"], ("bird10", "bird2"), ("--classes", "1-2")),
    (LISTS, "folders look alike", 0, ["3 classes", *ALIKE], ("red", "Red", "green"), ()),
    (LISTS, "folders are one", 2, ["two class folders are both 'red'"], ("red", "red\u200b", "green"), ()),
):
    row(kind, name, code=code, says=says)(
        lambda place, net, classes=classes, words=words: info(birds(place / "p", classes), *words)
    )
row(ORDER, "of a list", says=["1: 2, 2: 10"])(
    lambda place, net: info(labels(place, "10", "2"), "--classes", "1-2")
)
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
for setting, *says in (
    *[(f"data.batch_size={text}", "data.batch_size") for text in ("on", "1_0_")],
    *[(f"schedule.0.lr={text}", "schedule.0.lr") for text in ("true", "1:30.5")],
    ("run.seed=yes", "run.seed"),
    ("data.root=", "--set data.root=", "expected a value"),
):
    row(VALUES, f"refused: {setting}", code=2, says=says)(
        lambda place, net, setting=setting: ("config", config_of(place, net.photos), "--set", setting)
    )
row(VALUES, "the home folder", silent=["out: ~"])(
    lambda place, net: ("config", config_of(place, net.photos), "--set", "run.out=~/runs/x")
)
for name, code, said, text in (
    ("a path that is empty in a file", 2, "data.root: expected a value, or null", "data:\n  root: ''\n"),
    ("a number of a file that YAML takes for octal", 0, "classes: '010'", "data:\n  classes: 010\n"),
):
    row(VALUES, name, code=code, says=[said])(
        lambda place, net, text=text: ("config", wrote(place / "c.yaml", text))
    )


# --- lists ------------------------------------------------------------------------------------------------------------

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
row(LISTS, "a line separator inside a JSON line", says=["2 classes", "6 photos"])(
    lambda place, net: info(labels(place, "red\u2028x", "green", suffix="jsonl"))
)
for name, says, silent, names in (
    ("an invisible end", ["2 classes"], ALIKE, ("red", "green", "red\u200b", "green\ufeff")),
    ("an accent stored in two ways", ["2 classes"], ALIKE, ("pic\u00e9", "green", "pice\u0301")),
    ("a label of two lines", ["2 classes", "red second (3 photos)"], [], ("red\nsecond", "green", "green")),
    ("two cases", ["4 classes", *ALIKE, "'Red', 'red'"], [], ("red", "green", "Red", "Green")),
    ("an invisible character inside", ["3 classes", *ALIKE, "r\\u200bed"], [], ("red", "r\u200bed", "green")),
    ("a letter of another script", ["3 classes", *ALIKE, "\\u0430uk"], [], ("auk", "\u0430uk", "green")),
    ("words joined in two ways", ["3 classes", *ALIKE], [], ("blue jay", "blue_jay", "green")),
):
    row(LISTS, name, says=says, silent=silent)(lambda place, net, names=names: info(labels(place, *names)))
row(LISTS, "alike labels are told of before training", says=["warning: class names that look alike"])(
    lambda place, net: train(place, labels(place, "red", "green", "Red"))
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
    return train(place, root, "--resume", "--set", f"data.root={copy(root, place / 'copy')}")


@row(EXCHANGED, "photos are added", code=2, says=["training photos were added or removed"])
def _(place, net):
    return train(place, copy(net.photos, begun(place), "more "), "--resume")


@row(EXCHANGED, "others replace those of the test", code=2, says=["test photos were used in training"])
def _(place, net):
    root = begun(place)
    stored = torch.load(place / "run" / "best.pt")
    for path in set(root.rglob("*.png")) - {root / n for n in stored["train_names"] + stored["val_names"]}:
        path.unlink()
    return "evaluate", place / "run" / "best.pt"


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


NO_NUMBER = torch.full((16, 3, 3, 3), float("nan"))
for name, says, make in (
    ("of DataParallel", [], lambda: trunk("module.")),
    ("of torch.compile", [], lambda: trunk("_orig_mod.")),
    ("of both", [], lambda: {"model": trunk("module._orig_mod.")}),
    ("in a larger network", [], lambda: {"state_dict": trunk("model.") | {"head.weight": torch.zeros(3)}}),
    ("a whole module", ["torch.save(model)", "state_dict"], lambda: torch.nn.Linear(2, 2)),
    ("of two", ["2 such networks", "student.", "teacher."], lambda: trunk("teacher.") | trunk("student.")),
    ("not finite", ["NaN or infinite", "0.weight"], lambda: trunk(**{"features.0.weight": NO_NUMBER})),
    ("under numbers", ["a dictionary of tensors by name"], lambda: trunk() | {5: torch.zeros(1)}),
    ("true or false", ["other kinds", "0.weight bool"], lambda: {k: v > 0 for k, v in trunk().items()}),
    ("sparse", ["other kinds", "sparse"], lambda: {k: v.to_sparse() for k, v in trunk().items()}),
):
    row(WEIGHTS, name, code=2 if says else 0, says=says)(
        lambda place, net, make=make: started(place, net, make())
    )
row(WEIGHTS, "under another suffix")(
    lambda place, net: (
        save_file(trunk(), place / "w.bin"), train(place, net.photos, "--set", f"model.weights={place / 'w.bin'}")
    )[1]
)  # fmt: skip


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
row(WEIGHTS, "a pointer of Git LFS", code=2, says=["Git LFS pointer"])(
    lambda place, net: train(place, net.photos, "--set", f"model.weights={wrote(place / 'w.pth', LFS)}")
)


@row(WEIGHTS, "a whole module as a checkpoint", code=2, says=["torch.save(model)"])
def _(place, net):
    torch.save(torch.nn.Linear(2, 2), place / "m.pt")
    return "inspect", place / "m.pt"


# --- new photos to measure on -----------------------------------------------------------------------------------------

NEW = "new photos to measure on"
for name, code, says, make, words in (
    ("folders", 0, ["6 photos, 2 classes", "0 of the 6"], lambda p: birds(p / "new", number=3), ()),
    ("of fewer classes", 0, ["3 photos, 2 classes"], lambda p: birds(p / "new", ("green",), 3), ()),
    ("of unknown classes", 2, ["'blue' is new"], lambda p: birds(p / "new", ("green", "blue"), 3), ()),
    ("in splits", 0, ["folder, all: 12 photos"], lambda p: splits(p, train=4, test=2), ()),
    ("a split", 0, ["folder, test: 4 photos"], lambda p: splits(p, train=4, test=2), ("--split", "test")),
    ("no such split", 2, ["--split val", "only test, all"], lambda p: birds(p / "new"), ("--split", "val")),
    ("test photos alone", 0, ["folder, all: 4 photos"], lambda p: splits(p, test=2), ()),
    ("a list", 0, ["manifest, all: 9 photos"], lambda p: labels(p, "red", "green", "Red"), ()),
    ("of no known kind", 2, ["no such folder or list"], lambda p: p / "nowhere", ()),
    ("for early exit", 2, ["--early-exit", "valid"], lambda p: birds(p / "new"), ("--early-exit",)),
):
    row(NEW, name, code=code, says=says)(
        lambda place, net, make=make, words=words: evaluate(net, make(place), *words)
    )
row(NEW, "all of the run's own", says=["folder, all: 20 photos", "14 of the 20 photos", "too good"])(
    lambda place, net: ("evaluate", net.best, "--split", "all")
)
row(
    NEW,
    "that were trained on, under other names",
    says=["of the 20 photos are photos that the network was trained on", "14 of"],
)(lambda place, net: evaluate(net, copy(net.photos, place / "new", "other ")))


@row(NEW, "a class without photos", says=["folder, all: 6 photos"])
def _(place, net):
    (birds(place / "new", ("green",), 6) / "red").mkdir()
    return evaluate(net, place / "new")


@row(NEW, "a photo in two classes", says=["warning: 1 photo stands in more than one class"])
def _(place, net):
    new = birds(place / "new", number=3)
    wrote(new / "red" / "0.png", (new / "green" / "0.png").read_bytes())
    return evaluate(net, new)


@row(NEW, "the run's own, one of which is gone", code=2, says=["1 of the 2 validation photos", "not in this"])
def _(place, net):
    lost = net.photos / torch.load(net.best)["val_names"][0]
    return evaluate(net, copy(net.photos, place / "moved", but=[lost]), "--split", "test")


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


@pytest.mark.parametrize("seed", range(6))
def test_whatever_lies_among_the_photos_stays_as_it_was(seed, net, tmp_path):
    """Photos, their namesakes, records, links and pictures of earlier calls, drawn at random."""
    chance = np.random.default_rng(seed)
    place = tmp_path / "p"
    save(place / "first.jpg", pixels(True, seed))
    if chance.random() < 0.5:
        run(*visualize(net, place, place))
    for name in ("a", "b", "sub/a", "sub/b", "regions"):
        for suffix in (".png", ".jpg", ".json", ".tif"):
            if chance.random() < 0.4:
                if suffix == ".json":
                    wrote(place / f"{name}.json", "[]")
                else:
                    save(place / f"{name}{suffix}", pixels(bool(chance.random() < 0.5)))
    if chance.random() < 0.5:
        (place / "link.png").symlink_to(place / "first.jpg")
    if chance.random() < 0.3 and not os.path.lexists(place / "first.png"):
        (place / "first.png").symlink_to("nowhere")
    for photos in (place, place / "first.jpg"):
        before = files_of(tmp_path)
        result = run(*visualize(net, photos, place))
        after = files_of(tmp_path)
        assert {path: after.get(path) for path in before if not path.endswith(".racnn-written")} == {
            path: content for path, content in before.items() if not path.endswith(".racnn-written")
        }, result.said
        assert result.code in (0, 1, 2)


def test_photos_of_the_test_split_measure_as_they_did_in_it(net, tmp_path):
    """The run's own test photos, in class folders of their own and under other names, and as a list."""
    assert run("evaluate", net.best, "--json", tmp_path / "own.json").code == 0
    own = json.loads((tmp_path / "own.json").read_text())
    stored = torch.load(net.best)
    used = [net.photos / name for name in (*stored["train_names"], *stored["val_names"])]
    new = sorted(copy(net.photos, tmp_path / "new", "new ", but=used).rglob("*.png"))
    rows = "".join(f"{path.relative_to(tmp_path)},{path.parent.name}\n" for path in new)
    wrote(tmp_path / "list.csv", f"path,label\n{rows}")
    for data in (tmp_path / "new", tmp_path / "list.csv"):
        result = run(*evaluate(net, data, "--json", tmp_path / "new.json"))
        assert result.code == 0, result.said
        new = json.loads((tmp_path / "new.json").read_text())
        assert new["num_images"] == own["num_images"] == 4
        assert new["num_trained_on"] == 0
        for key in ("top1", "log_prob", "ece", "per_class"):
            assert new[key] == pytest.approx(own[key]) if key != "per_class" else new[key] == own[key]


def test_a_file_is_replaced_that_the_program_wrote(net, tmp_path):
    for _ in range(2):
        for words in (
            visualize(net, save(tmp_path / "p" / "a.jpg"), tmp_path / "out"),
            ("evaluate", net.best, "--json", tmp_path / "out" / "report.json"),
            verify(net.photos, "--write-list", tmp_path / "l.txt"),
        ):
            assert run(*words).code == 0


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
