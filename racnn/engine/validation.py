"""What a run measures on its validation photos, and how it says and draws it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from racnn.config import Config
from racnn.data import Data, eval_loader
from racnn.engine.distributed import ProcessGroup
from racnn.engine.loop import Predictions, predict, report
from racnn.evaluation import draw as viz
from racnn.models.racnn.model import RACNN
from racnn.ops.crop import zoom
from racnn.ops.regions import to_boxes_xyxy


@dataclass
class Validation:
    """A network as its validation photos show it.

    Attributes:
        model: The network.
        data: Its photos.
        config: Configuration of the run.
        device: Where the network is.
        world: The processes that share the photos; every measure is of all photos, on every rank.
        after_batch: Called after each batch of photos; it may raise to stop.
    """

    model: RACNN
    data: Data
    config: Config
    device: torch.device
    world: ProcessGroup
    after_batch: Callable[[], None]

    def batches(self, split: str = "val") -> DataLoader:
        """Return this rank's photos of a split, unchanged and in order."""
        return eval_loader(
            self.data.splits[split], self.config.data, rank=self.world.rank, num_ranks=self.world.size
        )

    def predict(self, scales: int, *, fused: bool, propose: bool = False) -> Predictions:
        """Return what the first ``scales`` scales, and the fusion layer if ``fused``, answer, see :func:`racnn.engine.loop.predict`."""
        return predict(
            self.model,
            self.batches(),
            device=self.device,
            num_scales=scales,
            propose=propose,
            fused=fused,
            world=self.world,
            after_batch=self.after_batch,
        )

    def report(self, predictions: Predictions) -> dict[str, Any]:
        """Return the measures of predictions on the validation photos, see :func:`racnn.engine.loop.report`."""
        return report(predictions, data=self.data, split="val", bounds=self.model.bounds)

    def picture(self, predictions: Predictions) -> np.ndarray | None:
        """Return the first photos with their regions and views, or None where none are to be drawn."""
        num = self.config.run.num_preview
        if not num or not predictions.proposals or not self.world.is_main_process:
            return None
        val = self.data.splits["val"].without_augmentation()
        photos = torch.stack([val[(0, i)]["image"] for i in range(min(num, len(val)))]).float() / 255.0
        places = [place[: len(photos)] for place in predictions.regions[1:]]
        boxes = [to_boxes_xyxy(place, (photos.shape[2], photos.shape[3])) for place in places]
        sides = self.model.view_sizes[1:]
        views = [
            zoom(photos, place, (side, side)).clamp(0, 1) for place, side in zip(places, sides, strict=False)
        ]
        return viz.preview(photos, boxes, views)


def flat(result: dict[str, Any]) -> dict[str, float]:
    """Return a report's figures by names such as ``top1_scale_1`` and ``region_1_iou``."""
    figures = {f"top1_{k}": v for k, v in result["top1"].items()}
    figures |= {f"log_prob_{k}": v for k, v in result["log_prob"].items()}
    for name, statistics in result["regions"].items():
        figures |= {f"{name}_{k}": v for k, v in statistics.items()}
    for name, measures in result["localisation"].items():
        figures |= {f"{name}_{k}": v for k, v in (measures or {}).items() if v is not None}
    return figures


def summary(result: dict[str, Any]) -> str:
    """Return a report in a line."""
    shown = "  ".join(f"{name} {100 * value:.1f}" for name, value in result["top1"].items())
    sides = "  ".join(f"side_{n[-1]} {s['tl_mean']:.2f}" for n, s in result["regions"].items())
    return f"val top-1 % {shown}  {sides}".rstrip()
