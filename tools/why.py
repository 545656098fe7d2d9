"""Measure where what speaks for an answer lies: against the runner-up, beside plain class activation, the middle of the view, and
where the network has it (model.pooling), attention.

    python tools/why.py runs/mine/best.pt

A peak is the middle of the cell that says most. It is in the object where it lies in its true box, and at the telling point
(the head of a bird) where that is at most a quarter of the object's size away, the root of its box's area. Validation photos
of data sets that bring boxes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from racnn.cli import run_with_messages
from racnn.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from racnn.engine.predictor import Predictor

NEAR = 0.25  # of the object's size


def main(
    checkpoint: Annotated[Path, typer.Argument(help="best.pt or last.pt of a run.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Photos to measure; default: all.")] = None,
    data: Annotated[Path | None, typer.Option(help="The dataset's folder, if it has moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Print for each look how often peaks lie in the object, and near its telling point, with 95 % intervals."""
    import torch

    from racnn.engine.device import pick_device
    from racnn.engine.predictor import load
    from racnn.evaluation.metrics import wilson_interval
    from racnn.evaluation.table import table

    trained = load(checkpoint, pick_device(device))
    trained.refuse_why()
    found = measure(trained, limit=limit, root=data)
    rows = []
    for name, (inside, near) in found.items():
        row = [name]
        for hits in (inside, near[near.isfinite()]):
            low, high = wilson_interval(int(hits.sum()), len(hits)) if len(hits) else (0.0, 1.0)
            row.append(f"{100 * hits.mean():.1f} ({100 * low:.0f} - {100 * high:.0f})" if len(hits) else "-")
        rows.append(row)
    photos = len(next(iter(found.values()))[0])
    told = int(torch.isfinite(next(iter(found.values()))[1]).sum())
    print(f"{photos} photos, {told} with a telling point")
    print(table(["peak of", "in the object %", "at its telling point %"], rows))


def measure(
    trained: Predictor, *, limit: int | None = None, root: Path | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return for each kind of peak whether it lies in the object [N], and at its telling point [N], NaN where there is none.

    Raises:
        ConfigError: The photos bring no boxes.
    """
    import torch
    from tqdm import tqdm

    from racnn.data import eval_loader
    from racnn.engine.evaluator import data_of
    from racnn.engine.predictor import why_cells
    from racnn.evaluation.metrics import focus_points
    from racnn.models.family import combined_log_probs
    from racnn.models.racnn.losses import response_map

    model, data = trained.model, data_of(trained, root=root)
    photos = data.splits["val"].without_augmentation()
    if limit is not None and limit < len(photos):
        photos.records = [photos.records[i * len(photos) // limit] for i in range(limit)]  # of all classes
    device = next(model.parameters()).device
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for batch in tqdm(eval_loader(photos, trained.config.data), leave=False, disable=None):
        boxes, points = batch["box"].float(), focus_points(batch["parts"], data.focus_parts).float()
        with torch.no_grad():
            output = model(batch["image"].to(device), num_scales=trained.scales)
            answers = combined_log_probs(output.logits, output.fused if trained.fused else None)
            every = why_cells(model, output, answers)
        for number, (cells, scale) in enumerate(zip(every, output.scales, strict=True), start=1):
            head = model.classifiers[number - 1].get_parameter("weight")
            gain = model.gain(scale.weighed)
            plain = response_map(scale.weighed, weight=head, labels=answers.argmax(dim=1), gain=gain)
            middle = torch.zeros_like(plain[:, :1, :1])
            kinds = [("why", cells), ("class activation", plain), ("the middle", middle)]
            kinds += [] if scale.attention is None else [("attention", scale.attention)]
            for name, shown in kinds:
                at = peak(shown, scale.region).cpu()
                found.setdefault(f"look {number}: {name}", []).append(hits(at, boxes, points))
    joined = {
        name: (torch.cat([inside for inside, _ in rows]), torch.cat([near for _, near in rows]))
        for name, rows in found.items()
    }
    known = next(iter(joined.values()))[0].isfinite()
    if not known.any():
        raise ConfigError("the photos bring no boxes of their objects to compare with")
    return {name: (inside[known], near[known]) for name, (inside, near) in joined.items()}


def peak(cells: Tensor, region: Tensor) -> Tensor:
    """Return in the frame of the photo the middle [B, 2] of the cell that says most, of maps [B, h, w] of views [B, 3]."""
    import torch

    height, width = cells.shape[1:]
    index = cells.flatten(1).argmax(dim=1)
    x, y = (index % width + 0.5) / width, (index // width + 0.5) / height
    return region[:, :2] + region[:, 2:] * (2.0 * torch.stack([x, y], dim=1) - 1.0)


def hits(at: Tensor, boxes: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether points [B, 2] lie in boxes [B, 4], and near telling points [B, 2], as 0, 1, or NaN where that is not known."""
    import torch

    inside = ((at >= boxes[:, :2]) & (at <= boxes[:, 2:])).all(dim=1).float()
    size = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    distance = (at - points).norm(dim=1) / size
    known = boxes.isfinite().all(dim=1)
    near = torch.where(distance.isfinite(), (distance <= NEAR).float(), torch.nan)
    return torch.where(known, inside, torch.nan), near


if __name__ == "__main__":
    run_with_messages(lambda: typer.run(main))
