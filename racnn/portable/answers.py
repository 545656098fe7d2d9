"""What a network said of a photo, whoever computed it, and the photos that it is asked about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from racnn.data.image_io import as_rgb, read_photo
from racnn.data.listing import find_photos
from racnn.errors import DataError
from racnn.evaluation import draw
from racnn.evaluation.hedge import SureAnswer

ALIKE = 1e-4  # of the mean weight: attention that never learned, or was taken back
BRIGHTEST = 3.0  # doublings of the mean weight, as a map of attention is drawn
Answer = list[tuple[str, float]]  # names with probabilities, the most probable first
Photo = str | Path | np.ndarray | Image.Image


@dataclass
class Prediction:
    """What a network made of one photo.

    Attributes:
        photo: uint8 [h, w, 3], upright.
        path: Path of the photo, where it was a file.
        top: The answer of all looks together: names with probabilities, the most probable first.
        boxes_xyxy: Where each finer look looked, in the photo's pixels.
        views: What each look saw, [3, side, side] in [0, 1]; tensors on the CPU, of an exported network arrays.
        looks: The answer of each look by itself: ``scale_1``, ..., and ``fused`` where there is one.
        sure: What is sure of the photo, a class or a group of some level, where levels were loaded.
        attention: How each look weighs the cells of its map, [h, w] of mean 1, where ``model.pooling`` is attention.
        why: Where each look sees the answer rather than the second most probable class, [h, w], at least 0, in logits; where
            that was asked for.
    """

    photo: np.ndarray = field(repr=False)
    path: Path | None
    top: Answer
    boxes_xyxy: list[list[float]]
    views: list[Any] = field(repr=False)
    looks: dict[str, Answer] = field(repr=False)
    why: list[Any] | None = field(default=None, repr=False)
    sure: SureAnswer | None = None
    attention: list[Any] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The most probable class."""
        return self.top[0][0]

    @property
    def probability(self) -> float:
        """Probability of the most probable class."""
        return self.top[0][1]

    def show(self, *, attention: bool = False) -> Image.Image:
        """Return a picture: the photo with its boxes, the views, and what each look made of them.

        Over the views lies why, if that was asked, or with ``attention`` how their cells were weighed.
        """
        scales = [answer for name, answer in self.looks.items() if name != "fused"]
        views = [np.moveaxis(np.asarray(view), 0, -1) for view in self.views]
        title = None
        if attention:
            views = [np.asarray(each) for each in self.attention_views()]
            title = "what counts more than the mean" if self.weighs_cells else "all cells count alike"
        elif self.why is not None:
            views = [np.asarray(draw.heat(view, each)) for view, each in zip(views, self.why, strict=True)]
            title = f"why {self.top[0][0]} and not {self.top[1][0]}"
        return draw.panel(self.photo, self.boxes_xyxy, views, scales, self.looks.get("fused"), title)

    @property
    def weighs_cells(self) -> bool:
        """Whether a look's attention weighs cells otherwise than all alike."""
        return any(float(np.ptp(np.asarray(each))) >= ALIKE for each in self.attention or [])

    def attention_views(self) -> list[Image.Image]:
        """Return the views with how their cells were weighed over them: bright is what counts more than the mean."""
        assert self.attention is not None, "this network weighs all cells alike"
        doublings = [np.log2(np.maximum(np.asarray(each), 1.0)) for each in self.attention]
        views = [np.moveaxis(np.asarray(view), 0, -1) for view in self.views]
        return [draw.heat(view, each, most=BRIGHTEST) for view, each in zip(views, doublings, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Return the answer in plain types, as ``racnn predict --json`` and ``regions.json`` have it."""
        return {
            **({} if self.path is None else {"photo": str(self.path)}),
            **answer_dict(self.top, self.boxes_xyxy),
            "looks": {name: plain(answer) for name, answer in self.looks.items()},
            **sure_dict(self.sure),
        }


def answer_dict(top: Answer, boxes_xyxy: list[list[float]]) -> dict[str, Any]:
    """Return an answer in plain types: ``top``, ``scales`` (how many looked) and ``boxes_xyxy``."""
    boxes = [[round(value, 2) for value in box] for box in boxes_xyxy]
    return {"top": plain(top), "scales": len(boxes) + 1, "boxes_xyxy": boxes}


def sure_dict(sure: SureAnswer | None) -> dict[str, Any]:
    """Return what is sure in plain types: ``sure`` of ``level``, ``name`` and ``probability``; nothing where it is not known."""
    if sure is None:
        return {}
    return {"sure": {"level": sure.level, "name": sure.name, "probability": round(sure.probability, 6)}}


def plain(top: Answer) -> list[dict[str, Any]]:
    """Return names with probabilities in plain types."""
    return [{"name": name, "probability": round(p, 6)} for name, p in top]


def best(probabilities: Iterable[float], names: list[str], num: int = 3) -> Answer:
    """Return the most probable names with their probabilities; of equal ones the first."""
    found = sorted(zip(names, map(float, probabilities), strict=True), key=lambda pair: -pair[1])
    return found[:num]


def load_photos(photos: Any) -> tuple[list[tuple[Path | None, np.ndarray]], bool]:
    """Return photos as pixels, with their paths, and whether they are several.

    Args:
        photos: A photo, as a path, a PIL image or a uint8 array [h, w, 3] or [h, w]; or a folder, or a list of photos and folders.

    Raises:
        DataError: A photo cannot be read or is no such array, or a folder holds none.
    """
    if isinstance(photos, list | tuple):
        return [pair for photo in photos for pair in _load(photo)], True
    return _load(photos), isinstance(photos, str | Path) and Path(photos).is_dir()


def _load(photo: Photo) -> list[tuple[Path | None, np.ndarray]]:
    """Return the photos that one thing given to :func:`load_photos` stands for, as pixels."""
    if isinstance(photo, str | Path):
        return [(path, read_photo(path)) for path in find_photos([Path(photo)])]
    if isinstance(photo, Image.Image):
        return [(None, as_rgb(photo))]
    if isinstance(photo, np.ndarray):
        grey = photo.ndim == 2
        if (
            photo.dtype != np.uint8
            or not (grey or (photo.ndim == 3 and photo.shape[2] == 3))
            or not photo.size
        ):
            raise DataError(
                f"expected a photo as a uint8 array [h, w, 3] or [h, w], got {photo.dtype} {list(photo.shape)}"
            )
        return [(None, np.repeat(photo[..., None], 3, axis=2) if grey else photo)]
    raise DataError(f"expected a path, a PIL image or an array, got {type(photo).__name__}")
