"""How fast the parts are, each as a ratio against a named baseline measured beside it in the same run.

    python tools/benchmark.py data --json data.json

Absolute times depend on the machine and are not printed as results; ratios travel. Each figure is the median over
rounds in which ours and the baseline take turns, with the range of the middle half.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from racnn.cli import run_with_messages

if TYPE_CHECKING:
    from racnn.config import DataConfig

app = typer.Typer(help="Measure the parts against named baselines.", no_args_is_help=True)

Json = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")]
Rounds = Annotated[int, typer.Option(min=3, help="Times that everything is measured in turn.")]


@dataclass(frozen=True)
class Figure:
    """One ratio.

    Attributes:
        name: Of what was measured.
        baseline: Of what it is compared with.
        ratio: How many times as fast as the baseline, the median over rounds.
        low: First quartile over rounds.
        high: Third quartile over rounds.
        target: Least ratio that is wanted.
        ok: Whether the target is met.
    """

    name: str
    baseline: str
    ratio: float
    low: float
    high: float
    target: float
    ok: bool


def compare(
    ours: dict[str, tuple[Callable[[], object], float]],
    baseline: tuple[str, Callable[[], object]],
    rounds: int,
) -> list[Figure]:
    """Time each of ours and the baseline in turn, after one warm-up each.

    Args:
        ours: By name, what to call and the target.
        baseline: Its name and what to call; all calls do the same amount of work.
        rounds: How often.
    """
    base_name, base = baseline
    for call in (base, *(call for call, _ in ours.values())):
        call()
    ratios: dict[str, list[float]] = {name: [] for name in ours}
    for _ in range(rounds):
        reference = seconds(base)
        for name, (call, _) in ours.items():
            ratios[name].append(reference / seconds(call))
    figures = []
    for name, (_, target) in ours.items():
        low, middle, high = statistics.quantiles(ratios[name], n=4)
        figures.append(Figure(name, base_name, middle, low, high, target, middle >= target))
    return figures


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def show(figures: list[Figure], file: Path | None) -> None:
    """Print a markdown table and write the same as JSON."""
    print("| what | times as fast as | ratio | middle half | target | ok |")
    print("|---|---|---|---|---|---|")
    for f in figures:
        met = "yes" if f.ok else "NO"
        print(
            f"| {f.name} | {f.baseline} | {f.ratio:.2f} | {f.low:.2f} - {f.high:.2f} | {f.target:g} | {met} |"
        )
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([asdict(f) for f in figures], indent=2) + "\n", encoding="utf-8")


@app.callback()
def _root() -> None:
    """Keep the names of sub-commands, also while there is only one."""


@app.command()
def data(
    photos: Annotated[int, typer.Option(min=8, help="JPEGs of CUB's size that are made and read.")] = 48,
    root: Annotated[Path | None, typer.Option(help="A folder of photos to read instead.")] = None,
    rounds: Rounds = 9,
    json_file: Json = None,
) -> None:
    """From a JPEG to a normalised 448 px tensor with all random changes, on one core: from files and from the cache.

    The baseline does the same with torchvision.transforms.v2 on PIL images.
    """
    import cv2
    import torch

    from racnn.config import DataConfig
    from racnn.data.photos import find_photos

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "photos"
        paths = write_photos(place, photos) if root is None else find_photos([root])[:photos]
        config = DataConfig(dataset="folder", num_workers=0, cache=Path(folder) / "cache")
        from_files, from_cache = (sample_reader(paths, config, cached=cached) for cached in (False, True))
        figures = compare(
            {"data, from files": (from_files, 2.0), "data, from the cache": (from_cache, 4.0)},
            ("torchvision.transforms.v2 on PIL", torchvision_reader(paths, config)),
            rounds,
        )
    show(figures, json_file)


def write_photos(place: Path, number: int) -> list[Path]:
    """Write JPEGs of 500 x 375 pixels, about as hard to decode as photos."""
    import numpy as np
    from PIL import Image

    place.mkdir()
    paths = []
    for index in range(number):
        rng = np.random.default_rng(index)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.array(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=float)
        noisy = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
        paths.append(place / f"{index}.jpg")
        Image.fromarray(noisy).save(paths[-1], quality=85)
    return paths


def sample_reader(paths: list[Path], config: DataConfig, *, cached: bool) -> Callable[[], None]:
    """Return a call that takes every photo through the dataset of this package."""
    import itertools

    import torch

    from racnn.data import PhotoDataset
    from racnn.data.catalog import Catalog, Record
    from racnn.models.backbone import IMAGENET_MEAN, IMAGENET_STD

    records = [Record(str(path), 0, path) for path in paths]
    catalog = Catalog("folder", ["a", "b"], records, None, records, [], ())
    dataset = PhotoDataset(catalog, records, config, augment=True)
    if cached:
        dataset.use_cache(lambda _: None)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    epochs = itertools.count()

    def read() -> None:
        epoch = next(epochs)
        for index in range(len(paths)):
            dataset[epoch, index]["image"].float().div_(255.0).sub_(mean).div_(std)

    return read


def torchvision_reader(paths: list[Path], config: DataConfig) -> Callable[[], None]:
    """Return a call that takes every photo through a plain torchvision pipeline with the same random changes."""
    from racnn.compat import import_torchvision

    import_torchvision()
    import torch
    from PIL import Image
    from torchvision.transforms import v2

    from racnn.models.backbone import IMAGENET_MEAN, IMAGENET_STD

    size, augment = config.source_size, config.augment
    before = round(size / augment.crop)
    changes = v2.Compose(
        [
            v2.Resize((before, before), antialias=True),
            v2.RandomCrop(size),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(augment.color, augment.color, augment.color),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )

    def read() -> None:
        for path in paths:
            with Image.open(path) as photo:
                _ = changes(photo.convert("RGB"))

    return read


if __name__ == "__main__":
    run_with_messages(app)
