"""Whatever stands in a checkpoint: it works, or it is a user's mistake, at once and in little memory."""

import random
import zipfile
from functools import partial

import pytest
import torch
from conftest import tiny_values
from fuzz import NESTED, NUMBERS, WORDS, is_refused, little_memory, mutate

from racnn.config import parse_config
from racnn.engine import trainer
from racnn.engine.checkpoint import digest, disallowed, load_checkpoint
from racnn.engine.predictor import load
from racnn.engine.run_dir import open_folder
from racnn.engine.trainer import fit
from racnn.errors import DamagedError, TrainingError, UserError
from racnn.models.racnn import apn as network

CPU = torch.device("cpu")
STOPS = (3, 6, 9)  # in apn_init by AdamW, ranking, fusion


@pytest.fixture(scope="module", autouse=True)
def small_apn():
    """Make the APN small, so that reading a thousand checkpoints takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "CompactAPN", partial(network.CompactAPN, width=4, hidden=8))
        yield


@pytest.fixture(scope="module")
def stopped(small_apn, tmp_path_factory):
    """The configuration of a run of two scales, and its last.pt in the middle of three kinds of phases."""
    folder = tmp_path_factory.mktemp("stopped")
    one = {"epochs": 1, "lr": 0.001}
    schedule = [
        {"kind": "classification", **one},
        {"kind": "apn_init", "scales": [1], "optimizer": "adamw", **one},
        {"kind": "ranking", **one, "keep": "if_better"},
        {"kind": "fusion", **one, "epochs": 2, "keep": "best"},
    ]
    changes = {"data__synthetic__num_train": 32, "data__source_size": 32, "run__save_every": 1}
    values = tiny_values(folder / "run", schedule=schedule, **changes)
    values["model"] = {"backbone": "tiny", "view_sizes": [16, 16], "shared_backbone": True}
    values["run"]["num_preview"] = 0
    config = parse_config(values, origin="test")
    plain, kept = trainer.save_checkpoint, {}

    def keep(path, content, **rest):
        plain(path, content, **rest)
        if path.name == "last.pt" and content["optimizer"] and content["step"] in STOPS:
            kept.setdefault(content["step"], path.read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "save_checkpoint", keep)
        fit(config, device=CPU)
    assert tuple(kept) == STOPS
    return config, list(kept.values())


def take_up(folder, config, told):
    """Read the last.pt of a folder as evaluation does and as a run that is resumed; return which of them refused it."""
    if is_refused(partial(load, folder / "last.pt"), told):
        return {"evaluate", "resume"}  # which begins in the same way
    refused = is_refused(partial(open_folder, folder, config, resume=True, overwrite=False), told)
    return {"resume"} if refused else set()


def damage(data, rng):
    """Return bytes with some flipped, taken out, put in, or moved."""
    data = bytearray(data)
    # half of the places in what is not weights: the directory, the pickle, the headers
    ends = rng.random() < 0.5
    place = rng.randrange(len(data))
    if ends:
        place = rng.choice([rng.randrange(4000), len(data) - 1 - rng.randrange(4000)])
    length = rng.choice([1, 1, 2, 64, 5000])
    kind = rng.choice(["flip", "flip", "zero", "cut", "shorten", "insert", "copy"])
    if kind == "flip":
        data[place] ^= 1 << rng.randrange(8)
    elif kind == "zero":
        data[place : place + length] = bytes(len(data[place : place + length]))
    elif kind == "cut":
        del data[place:]
    elif kind == "shorten":
        del data[place : place + length]
    elif kind == "insert":
        data[place:place] = rng.randbytes(length)
    else:
        start = rng.randrange(len(data))
        data[place : place + length] = data[start : start + length]
    return bytes(data)


@pytest.mark.filterwarnings("ignore")
def test_250_damaged_checkpoints_are_refused_or_unharmed(stopped, tmp_path):
    rng, (config, files) = random.Random(1), stopped
    path, refused = tmp_path / "last.pt", 0
    path.write_bytes(files[0])
    whole = digest(load_checkpoint(path))
    with little_memory():
        for number in range(250):
            path.write_bytes(damage(files[0], rng))
            if take_up(tmp_path, config, number):
                refused += 1
            else:
                assert digest(load_checkpoint(path)) == whole
    assert 200 < refused < 250  # some bytes of a zip file mean nothing


def tensors():
    """Return tensors that belong in no checkpoint, or not there."""
    return [
        torch.zeros(0),
        torch.zeros(3),
        torch.zeros(7, 96),
        torch.tensor(float("nan")),
        torch.full((8, 96), float("inf")),
        torch.full((8,), -1.0),
        torch.zeros(1).expand(10**6),
        torch.zeros(1).expand(10**10),
        torch.zeros(8, dtype=torch.int32),
        torch.zeros(8, 96, dtype=torch.float16),
        torch.zeros(8, dtype=torch.complex64),
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, device="meta"),
        torch.nn.Parameter(torch.zeros(8)),
        torch.float32,
        b"x",
        {"x"},
        1j,
        (1, 2),
        {(1, 2): 3},
    ]


def nonsense(content, rng):
    """Change a place or two of a content; its parts are drawn alike, so that it is not always the weights."""
    plain = [None, True, False, *NUMBERS, *WORDS, *NESTED, ["x"] * 8, [f"c{i}" for i in range(10**4)]]
    done = []
    for _ in range(rng.choice([1, 1, 1, 2])):
        junk = tensors() if rng.random() < 0.3 else plain
        part = rng.choice(list(content))
        while isinstance(content[part], dict | list) and content[part] and rng.random() < 0.9:
            done.append(f"{part}: {mutate(content[part], rng, junk)}")
            break
        else:
            done.append(mutate(content, rng, junk))
    return done


def write_signed(path, content):
    """Write a content that nobody checks, with the digest that belongs to it, unless to compute it takes ages."""
    content.pop("digest", None)
    content["digest"] = ""
    if disallowed(content, room=10**6) is None:
        del content["digest"]
        content["digest"] = digest(content)
    torch.save(content, path)


def check_nonsense(stopped, folder, num, seed, train=None):
    """Return how many of so many checkpoints were good to go on from."""
    rng, (config, files) = random.Random(seed), stopped
    path, taken = folder / "last.pt", 0
    with little_memory():
        for number in range(num):
            path.write_bytes(files[number % len(files)])
            content = torch.load(path, weights_only=True)
            done = nonsense(content, rng)
            write_signed(path, content)
            if "resume" not in take_up(folder, config, done):
                taken += 1
                if train is not None:
                    train(folder, config, done)
    return taken


@pytest.mark.filterwarnings("ignore")
def test_100_checkpoints_of_nonsense_are_refused_or_used(stopped, tmp_path):
    assert 10 < check_nonsense(stopped, tmp_path, 100, seed=2) < 40


def bomb():
    """Return a billion values in a few names of lists."""
    node = ["x"] * 10
    for _ in range(9):
        node = [node] * 10
    return node


def cycle():
    node = []
    node.append(node)
    return node


def deep(levels):
    node = []
    for _ in range(levels):
        node = [node]
    return node


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(extra=bomb()),
        lambda c: c.update(extra=cycle()),
        lambda c: c.update(extra=deep(200)),
        lambda c: c.update(extra=torch.zeros(1).expand(10**12)),
        lambda c: c.update(extra=[c["model"]["fusion.weight"]] * 10**5),
        lambda c: c.update(train_names=[c["train_names"]] * 10**5),
        lambda c: c.update(class_names=["x"] * 3 * 10**5),
        lambda c: c["config"]["model"].update(view_sizes=[10**9, 10**9]),
        lambda c: c["config"]["model"].update(view_sizes=[4096] * 16, apn="paper"),
        lambda c: c["config"]["model"].update(view_sizes=[4096, 4096], apn="paper"),
        lambda c: c["config"]["model"].update(view_sizes=[16] * 10**5),
        lambda c: c["config"]["data"].update(classes="1-999999999999"),
        lambda c: c["config"]["data"]["synthetic"].update(num_train=10**12),
        lambda c: c["progress"].update(epoch=10**14, best=None),
        lambda c: c["progress"].update(best_weights=None),
    ],
    ids=range(15),
)
def test_a_wicked_checkpoint_is_refused(change, stopped, tmp_path):
    config, files = stopped
    path = tmp_path / "last.pt"
    path.write_bytes(files[-1])
    content = torch.load(path, weights_only=True)
    change(content)
    write_signed(path, content)
    with little_memory():
        assert "resume" in take_up(tmp_path, config, "wicked")


def test_a_packed_checkpoint_is_refused(stopped, tmp_path):
    """A file of a few kilobytes can unpack to gigabytes."""
    path = tmp_path / "last.pt"
    path.write_bytes(stopped[1][0])
    with (
        zipfile.ZipFile(path) as plain,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, bytes(10**7) if name.endswith("data/0") else plain.read(name))
    with pytest.raises(DamagedError, match=r"packed\.pt: cannot be read"):
        load(tmp_path / "packed.pt")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore")
def test_500_checkpoints_of_nonsense_are_refused_or_trained_on(stopped, tmp_path):
    def train(folder, config, told):
        config = config.model_copy(update={"run": config.run.model_copy(update={"out": str(folder)})})
        try:
            fit(config, device=CPU, resume=True)
        except (UserError, TrainingError):
            pass
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}\nof {told}") from error

    assert 60 < check_nonsense(stopped, tmp_path, 500, seed=3, train=train) < 200
