"""One photo after another, from its pixels to names and boxes, by every way that a trained network can answer.

Ways take turns photo by photo, so that whatever else the machine does is shared by all. Of the times of one photo the median and the 95th
percentile are compared with those of the network as it was trained, in float32.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.figures import Figure, summary
from racnn.data.image_io import read_photo
from racnn.data.listing import find_photos
from racnn.data.transforms import SourceTransform
from racnn.engine.predictor import Predictor, load
from racnn.models.early_exit import look_until_confident
from racnn.portable.network import PortableNetwork, open_onnx

BASE = "eager, float32"
REST = 0.1  # seconds, until the threads of the way before no longer wait for work
Way = Callable[[np.ndarray], object]


def measure(
    checkpoint: Path, onnx: Sequence[Path], one_look: Path | None, photos: Sequence[Path], *, num: int
) -> list[Figure]:
    """Return the figures of ``tools/benchmark.py answer``.

    Args:
        checkpoint: The network.
        onnx: Exports of it.
        one_look: Checkpoint of another one that looks once and costs as much.
        photos: Photos and folders of photos.
        num: How many of them to answer, evenly from all.
    """
    found = find_photos(photos)
    pixels = [read_photo(found[i * len(found) // num]) for i in range(min(num, len(found)))]
    times = take_turns(ways_of(checkpoint, onnx, one_look), pixels)
    figures = []
    for name in times:
        for share, word in ((0.5, "median"), (0.95, "95th percentile")):
            if name != BASE:
                ratio = float(np.quantile(times[BASE], share) / np.quantile(times[name], share))
                target = 1.5 if word == "median" and onnx and name == f"ONNX, {onnx[0].stem}" else None
                figures.append(
                    summary(f"{name}, {word}", "times as fast as", BASE, [ratio], "at least", target)
                )
    return figures


def ways_of(checkpoint: Path, onnx: Sequence[Path], one_look: Path | None) -> dict[str, Way]:
    """Return the ways by name, the one that others are compared with first."""
    trained = load(checkpoint)
    trained.model.compute_dtype = None
    half = load(checkpoint)
    half.model.compute_dtype = torch.bfloat16
    compiled = copy.copy(trained)
    compiled.model = torch.compile(copy.deepcopy(trained.model), dynamic=False)
    ways: dict[str, Way] = {
        BASE: eager(trained),
        "eager, bfloat16": eager(half),
        "compiled, float32": eager(compiled),
    }
    if trained.early_exit is not None:
        ways["eager, float32, early exit"] = eager(trained, early=True)
    for file in onnx:
        network = open_onnx(file)
        ways[f"ONNX, {file.stem}"] = exported(network)
        if network.early_exit is not None:
            ways[f"ONNX, {file.stem}, early exit"] = exported(network, early=True)
    if one_look is not None:
        other = load(one_look)
        other.model.compute_dtype = None
        ways["one look of equal cost, eager, float32"] = eager(other)
    return ways


def eager(trained: Predictor, *, early: bool = False) -> Way:
    """Return the way from pixels to answers of a network as it is."""
    data = trained.config.data
    transform = SourceTransform(data.source_size, data.resize)

    @torch.no_grad()
    def answer(photo: np.ndarray) -> Any:
        source = transform.source(photo, (photo.shape[0], photo.shape[1]))[None]
        if early:
            return look_until_confident(
                trained.model, source, trained.early_exit, scales=trained.scales, fused=trained.fused
            )
        return trained.model(source, num_scales=trained.scales)

    return answer


def exported(network: PortableNetwork, *, early: bool = False) -> Way:
    """Return the way from pixels to answers of an exported network."""
    names = ["probabilities", *(["boxes"] if network.scales > 1 else [])]
    stop = network.early_exit if early else None
    return lambda photo: network._run(photo[None], names, stop)


def take_turns(ways: dict[str, Way], photos: Sequence[np.ndarray]) -> dict[str, list[float]]:
    """Return how long each way takes for each photo, in seconds, after a warm-up on the first three."""
    for way, photo in ((way, photo) for way in ways.values() for photo in photos[:3]):
        way(photo)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for photo in photos:
        for name, way in ways.items():
            time.sleep(REST)
            start = time.perf_counter()
            way(photo)
            times[name].append(time.perf_counter() - start)
    return times
