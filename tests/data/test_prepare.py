"""From the authors' archives to a trained network, for every official data set, through the command line."""

import hashlib
import http.server
import json
import os
import tarfile
import threading
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import yaml
from layouts import write_cars_apart, write_cub, write_dogs

from racnn.data import prepare as module
from racnn.data.download import Archive
from racnn.data.prepare import MARKER, OFFICIAL

LAYOUT = {  # archive: what it unpacks to
    "cub": {"CUB_200_2011.tgz": ["CUB_200_2011"]},
    "dogs": {
        "images.tar": ["Images"],
        "lists.tar": ["train_list.mat", "test_list.mat"],
        "annotation.tar": ["Annotation"],
    },
    "cars": {
        "cars_train.tgz": ["cars_train"],
        "cars_test.tgz": ["cars_test"],
        "car_devkit.tgz": ["devkit"],
        "cars_test_annos_withlabels.mat": [],
    },
}
WRITERS = {"cub": lambda root: write_cub(root / "CUB_200_2011"), "dogs": write_dogs, "cars": write_cars_apart}
COUNTS = {"cub": (3, 15, 9), "dogs": (3, 15, 6), "cars": (3, 15, 6)}


@pytest.fixture(params=LAYOUT)
def small(request, tmp_path, monkeypatch):
    """A small official data set: its archives on a server of this machine, their sizes and hashes in the table."""
    name, source, served = request.param, tmp_path / "source", tmp_path / "served"
    served.mkdir()
    WRITERS[name](source)
    archives = []
    for file, entries in LAYOUT[name].items():
        path = served / file
        if entries:
            with tarfile.open(path, "w:gz" if file.endswith("tgz") else "w") as tar:
                for entry in entries:
                    tar.add(source / entry, arcname=entry)
        else:
            path.write_bytes((source / file).read_bytes())
        content = path.read_bytes()
        archives.append(
            Archive(file, f"https://none.invalid/{file}", len(content), hashlib.sha256(content).hexdigest())
        )
    classes, train, test = COUNTS[name]
    official = replace(OFFICIAL[name], archives=tuple(archives), classes=classes, train=train, test=test)
    monkeypatch.setitem(module.OFFICIAL, name, official)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield SimpleNamespace(
        name=name,
        official=official,
        served=served,
        root=tmp_path / "data",
        url=f"http://127.0.0.1:{server.server_port}",
    )
    server.shutdown()
    server.server_close()


def prepared(racnn, small, *more):
    return racnn("data", "prepare", small.name, "--root", small.root, "--mirror", small.url, *more)


def test_archives_become_a_network(small, racnn, tmp_path):
    result = prepared(racnn, small)
    assert result.code == 0, result.err
    assert "complete: 15 training" in result.out
    assert not [path for path in small.root.iterdir() if path.suffix in (".tgz", ".tar", ".part")]

    place = (f"{small.name}:{small.root}",)
    info = racnn("data", "info", *place)
    assert info.code == 0
    assert "15 train" in info.out
    assert "official        complete" in info.out
    verify = racnn("data", "verify", *place, "--workers", 0)
    assert (verify.code, verify.out.splitlines()[-1]) == (
        0,
        f"{sum(COUNTS[small.name][1:])} photos read, 0 damaged",
    )

    config = {
        "data": {
            "dataset": small.official.dataset,
            "root": str(small.root),
            "source_size": 32,
            "batch_size": 6,
            "num_workers": 0,
        },
        "model": {"backbone": "tiny", "view_sizes": [16, 16]},
        "run": {"num_preview": 0},
        "schedule": [{"kind": "classification", "epochs": 1, "lr": 0.01}],
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    run = tmp_path / "run"
    trained = racnn("train", "--config", tmp_path / "config.yaml", "--out", run, "--device", "cpu")
    assert trained.code == 0, trained.err
    measured = racnn("evaluate", run / "best.pt", "--json", run / "report.json", "--device", "cpu")
    assert measured.code == 0, measured.err
    report = json.loads((run / "report.json").read_text())
    assert report["num_images"] == COUNTS[small.name][2]
    assert report["localisation"]["region_1"]["iou"] > 0


def test_what_is_prepared_is_not_fetched_again(small, racnn):
    assert prepared(racnn, small, "--keep-archives").code == 0
    for path in small.served.iterdir():
        path.unlink()
    again = prepared(racnn, small)
    assert again.code == 0, again.err
    assert "complete" in again.out


def test_archives_fetched_by_hand_are_used_and_left(small, racnn):
    given = [word for path in small.served.iterdir() for word in ("--from", path)]
    result = racnn("data", "prepare", small.name, "--root", small.root, *given)
    assert result.code == 0, result.err
    assert sorted(path.name for path in small.served.iterdir()) == sorted(LAYOUT[small.name])


def test_a_missing_archive_is_named_and_the_others_are_kept(small, racnn):
    *others, last = LAYOUT[small.name]
    (small.served / last).rename(small.served / "away")
    result = prepared(racnn, small)
    assert result.code == 2
    assert "answers 404" in result.err
    assert f"fetch {last} by hand and pass it with --from" in result.err
    assert "still needed, by hand with --from FILE, or all from a folder with --mirror URL:" in result.err
    assert [line.split()[0] for line in result.err.splitlines()[2:]] == [last]
    (small.served / "away").rename(small.served / last)
    for name in others:
        (small.served / name).unlink()
    assert prepared(racnn, small).code == 0


@pytest.mark.parametrize("moment", ["before the first entry", "after the first entry", "before the marker"])
def test_a_kill_while_an_archive_is_put_in_place_loses_nothing(moment, small, racnn):
    """Killed, not stopped: nothing is cleared away."""
    plain_rename, plain_replace, markers = os.rename, os.replace, []

    def rename(source, target):
        if moment == "before the first entry":
            os._exit(9)
        plain_rename(source, target)
        if moment == "after the first entry":
            os._exit(9)

    def replace_marker(source, target):
        markers.extend([target] * (target.name == MARKER))
        if moment == "before the marker" and len(markers) == 2:  # the first is the claim
            os._exit(9)
        plain_replace(source, target)

    child = os.fork()
    if child == 0:  # a process that can die without taking the tests along
        os.rename, os.replace = rename, replace_marker
        module.prepare(small.name, small.root, mirror=small.url)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert bool(list(small.root.glob(".unpacking-*"))) == (moment != "before the marker")
    again = prepared(racnn, small)
    assert again.code == 0, again.err
    assert not list(small.root.glob(".unpacking-*"))
    done = json.loads((small.root / MARKER).read_text())
    assert done == {archive.name: archive.sha256 for archive in small.official.archives}


def test_what_a_user_put_there_is_not_replaced(small, racnn):
    first = next(iter(LAYOUT[small.name].values()))[0]
    small.root.mkdir()
    (small.root / first).write_text("mine")
    result = prepared(racnn, small)
    assert result.code == 2
    assert f"{first}: is there already" in result.err
    assert (small.root / first).read_text() == "mine"


def test_a_data_set_that_was_unpacked_by_hand_is_not_fetched(small, racnn):
    small.root.mkdir()
    WRITERS[small.name](small.root)
    for path in small.served.iterdir():
        path.unlink()
    result = prepared(racnn, small)
    assert result.code == 0, result.err
    assert "complete: 15 training" in result.out


def test_an_incomplete_data_set_says_what_is_missing(small, racnn, monkeypatch):
    monkeypatch.setitem(module.OFFICIAL, small.name, replace(small.official, train=5994, classes=200))
    result = prepared(racnn, small)
    assert result.code == 2
    assert "incomplete: 3 of 200 classes; 15 of 5994 training photos" in result.err
    assert str(small.root / MARKER) in result.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("birds", "--root", "x"), "no official data set is called 'birds'"),
        (("cub", "--root", "x", "--from", "CUB_200_2012.tgz"), "did you mean 'CUB_200_2011.tgz'"),
        (("cub", "--root", "x", "--from", "none/CUB_200_2011.tgz"), "no such file"),
    ],
)
def test_wrong_words_are_named(words, said, racnn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = racnn("data", "prepare", *words)
    assert result.code == 2
    assert said in result.err
    assert not (tmp_path / "x").exists()


def test_a_damaged_marker_is_named(racnn, tmp_path):
    (tmp_path / MARKER).write_text("{")
    result = racnn("data", "prepare", "cub", "--root", tmp_path)
    assert result.code == 2
    assert f"{MARKER}: damaged" in result.err


def test_the_table_is_the_official_one():
    assert {name: (o.classes, o.train, o.test) for name, o in OFFICIAL.items()} == {
        "cub": (200, 5994, 5794),
        "dogs": (120, 12000, 8580),
        "cars": (196, 8144, 8041),
    }
    for official in OFFICIAL.values():
        for archive in official.archives:
            assert archive.url.startswith("https://")
            assert archive.url.endswith(f"/{archive.name}")
            assert len(archive.sha256) == 64


def test_an_archive_that_lay_in_the_folder_is_not_deleted(small, racnn):
    small.root.mkdir()
    first = small.official.archives[0].name
    (small.root / first).write_bytes((small.served / first).read_bytes())
    assert prepared(racnn, small).code == 0
    assert (small.root / first).is_file()
