"""Show what boxes the response maps of a trained scale would teach the next APN, for choosing the keys of `apn_init`.

    python tools/teacher.py runs/mine/best.pt --scale 1
    python tools/teacher.py runs/mine/best.pt --scale 2 --enlarge 2 --levels 0,0.2,0.4 --trims 0,0.01

The boxes are measured on the validation photos (or, with --split train, on the training photos, which are more) against
the true boxes and parts, where the dataset has them. The mean side needs none. What the training photos have in common (ddt)
is found first, which reads all of them.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from racnn.cli import run_with_messages
from racnn.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from racnn.engine.predictor import Predictor
    from racnn.ops.ddt import CommonPart

RESPONSES = ("sum", "cam", "ddt")


def main(
    checkpoint: Annotated[Path, typer.Argument(help="best.pt or last.pt of a run.")],
    scale: Annotated[int, typer.Option(min=1, help="The trained scale whose response map is read.")] = 1,
    split: Annotated[str, typer.Option(help="val or train; the test photos choose nothing.")] = "val",
    levels: Annotated[str, typer.Option(help="Thresholds, from the map's mean (0) to its peak (1).")] = (
        "0,0.1,0.2,0.3,0.4,0.5,0.6"
    ),
    trims: Annotated[
        str, typer.Option(help="Shares of the response that the box leaves out a side.")
    ] = "0,0.01",
    enlarge: Annotated[
        float, typer.Option(min=1.0, max=4.0, help="Read the map from a view so many times as large.")
    ] = 1.0,
    data: Annotated[Path | None, typer.Option(help="The dataset's folder, if it has moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Print one row for each kind of response map, level and trim."""
    from racnn.data import eval_loader
    from racnn.engine.device import pick_device
    from racnn.engine.evaluator import data_of
    from racnn.engine.predictor import load
    from racnn.models.racnn import make_phase
    from racnn.models.racnn.pseudo_boxes import find_common_part
    from racnn.ops.heatmap import component_region
    from racnn.ops.regions import clamp

    heights, shares = _parse("--levels", levels, below=1.0), _parse("--trims", trims, below=0.25)
    if split not in ("val", "train"):
        raise ConfigError(f"--split {split}: expected val or train; the test photos choose nothing")
    trained = load(checkpoint, pick_device(device))
    if scale > trained.scales:
        raise ConfigError(f"--scale {scale}: {checkpoint} has {trained.scales} trained scale(s)")
    found = data_of(trained, root=data)
    bounds = trained.model.bounds[scale - 1] if scale <= len(trained.model.bounds) else (0.0, 1.0)
    loaders = {name: eval_loader(found.splits[name], trained.config.data) for name in ("train", split)}
    common = find_common_part(
        trained.model,
        loaders["train"],
        scale,
        make_phase(kind="apn_init", epochs=1, lr=1.0, response="ddt", enlarge=enlarge),
        device=next(trained.model.parameters()).device,
    )
    regions, maps, boxes, points = _responses(
        trained, loaders[split], scale, enlarge, common, found.focus_parts
    )
    print(f"{found.dataset}, {split}: {len(boxes)} photos; boxes read from the responses of scale {scale}")
    print("response  level   trim  mean side     IoU  coverage %  part hit %  centred %")
    for response, level, trim in itertools.product(RESPONSES, heights, shares):
        region = clamp(component_region(maps[response], level, trim), *bounds)  # what the APN can propose
        print(f"{response:8}  {level:5.2f}  {trim:5.3f}  {_columns(region, regions, boxes, points)}")


def _parse(option: str, text: str, *, below: float) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text}: expected numbers such as 0,0.2") from None
    if not all(0.0 <= number < below for number in numbers):
        raise ConfigError(f"{option} {text}: each must be at least 0 and below {below:g}")
    return numbers


def _responses(
    trained: Predictor,
    batches: object,
    scale: int,
    enlarge: float,
    common: CommonPart,
    focus_parts: tuple[int, ...],
) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
    """Return the views' regions [N, 3], the response maps by kind [N, h, w], boxes [N, 4] and telling points [N, 2]."""
    import torch

    from racnn.evaluation.metrics import focus_points
    from racnn.models.racnn.losses import response_map

    model = trained.model
    device = next(model.parameters()).device
    weight = model.classifiers[scale - 1].get_parameter("weight")
    rows: dict[str, list[Tensor]] = {key: [] for key in ("regions", *RESPONSES, "boxes", "parts")}
    with torch.no_grad():
        for batch in batches:  # type: ignore[attr-defined]
            images, labels = batch["image"].to(device), batch["label"].to(device)
            output = model(images, num_scales=scale)
            view = model.enlarged_view(scale, images, output, enlarge)
            query = model.query(output.scales[: scale - 1])
            features, inner = model.extract_with_inner(scale, view, query)
            rows["regions"].append(output.regions[-1].cpu())
            rows["sum"].append(response_map(features).cpu())
            rows["cam"].append(response_map(features, weight=weight, labels=labels).cpu())
            rows["ddt"].append(common.response(inner).cpu())
            rows["boxes"].append(batch["box"])
            rows["parts"].append(batch["parts"])
    joined = {key: torch.cat(parts) for key, parts in rows.items()}
    maps = {response: joined[response] for response in RESPONSES}
    return joined["regions"], maps, joined["boxes"], focus_points(joined["parts"], focus_parts)


def _columns(proposal: Tensor, regions: Tensor, boxes: Tensor, points: Tensor) -> str:
    from racnn.evaluation.metrics import localisation
    from racnn.ops.regions import compose

    measured = localisation(compose(regions, proposal), boxes, points, regions) or {}
    percent = {key: f"{100 * value:.1f}" for key, value in measured.items() if value is not None}
    iou = measured.get("iou")
    columns = [
        f"{proposal[:, 2].mean():9.3f}",
        f"{iou:6.3f}" if iou is not None else "     -",
        f"{percent.get('coverage', '-'):>10}",
        f"{percent.get('part_hit', '-'):>10}",
        f"{percent.get('part_hit_centred', '-'):>9}",
    ]
    return "  ".join(columns)


if __name__ == "__main__":
    run_with_messages(lambda: typer.run(main))
