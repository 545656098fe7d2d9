"""Show what it matters to a finer scale where its region lies, and whether a derivative could tell it where to go.

    python tools/slopes.py runs/mine/best.pt --region 1

First what the scale, as it is, says at other places: of the region in the middle of the view, around the true box where
all photos have one, moved, shrunk and grown; each with its distance from the proposal and the standard error of that. Where the
middle is as good, the network need not have learned where to look; where no move helps, no error that all photos share is left.

Then, for each photo: the exact derivative of log p(true class) at scale s + 1 in (tx, ty, tl) of region s, against its slope
between two regions that lie ``step`` apart in one coordinate. Where the two do not correlate, a ranking phase with
``gradient: exact`` follows noise; ``gradient: smoothed`` is the alternative, not yet shown to be better.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from racnn.cli import run_with_messages
from racnn.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from racnn.engine.predictor import Predictor

COORDINATES = ("tx", "ty", "tl")
PROPOSED = "as it is proposed"
TRUE = "around the true box"
MOVES = {  # of the centre in sides of the region, and the factor of the side
    "a tenth of its side to the left": (-0.1, 0.0, 1.0),
    "a tenth of its side to the right": (0.1, 0.0, 1.0),
    "a tenth of its side up": (0.0, -0.1, 1.0),
    "a tenth of its side down": (0.0, 0.1, 1.0),
    "a fifth smaller": (0.0, 0.0, 0.8),
    "a fifth larger": (0.0, 0.0, 1.2),
}


def main(
    checkpoint: Annotated[Path, typer.Argument(help="best.pt or last.pt of a run.")],
    region: Annotated[int, typer.Option(min=1, help="The region that is moved.")] = 1,
    split: Annotated[str, typer.Option(help="val or train; the test photos choose nothing.")] = "val",
    steps: Annotated[
        str, typer.Option(help="Distances, as shares of the region's side.")
    ] = "0.01,0.02,0.05,0.1,0.2",
    limit: Annotated[int, typer.Option(min=2, help="Photos to measure.")] = 60,
    data: Annotated[Path | None, typer.Option(help="The dataset's folder, if it has moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Print what places are worth, and for each step and coordinate the slope and how it goes with the derivative."""
    import torch

    from racnn.data import eval_loader
    from racnn.engine.device import pick_device
    from racnn.engine.evaluator import data_of
    from racnn.engine.predictor import load

    distances = parse_steps(steps)
    if split not in ("val", "train"):
        raise ConfigError(f"--split {split}: expected val or train; the test photos choose nothing")
    trained = load(checkpoint, pick_device(device))
    if region >= trained.scales:
        raise ConfigError(f"--region {region}: {checkpoint} has {trained.scales} trained scale(s)")
    if trained.model.sides == 2:
        raise ConfigError(
            f"{checkpoint}: proposes rectangles (model.sampler affine), and slopes are of squares"
        )
    found = data_of(trained, root=data)
    photos = found.splits[split].without_augmentation()
    number = min(limit, len(photos))
    photos.records = [photos.records[i * len(photos) // number] for i in range(number)]  # of all classes
    loader = eval_loader(photos, trained.config.data)
    said = elsewhere(trained, loader, region)
    print(f"{found.dataset}, {split}: {len(photos)} photos; scale {region + 1} where region {region} is")
    print(f"{'':32}  top-1 %  log p  from the proposal's")
    for name, (log_prob, right) in said.items():
        away = log_prob - said[PROPOSED][0]
        error = away.std() / len(away) ** 0.5
        print(
            f"{name:32}  {100 * right.mean():7.1f}  {log_prob.mean():5.3f}  {away.mean():+.3f} +- {error:.3f}"
        )
    trained.model.compute_dtype = None  # full precision: the steps are small
    exact, slopes = measure(trained, loader, region, distances)
    print(f"\nlog p of scale {region + 1} as region {region} moves")
    print(
        "coordinate  photos   step  slope rms  with the derivative (rms)  same sign %  with the largest step"
    )
    for axis, name in enumerate(COORDINATES):
        inside = torch.stack(slopes)[:, :, axis].isfinite().all(dim=0)
        if inside.sum() < 3:
            print(f"{name:10}  {inside.sum():6}  have room to move: at the bounds, or at the edge")
            continue
        derivative, largest = exact[inside, axis], slopes[-1][inside, axis]
        for step, each in zip(distances, slopes, strict=True):
            ours = each[inside, axis]
            same = 100 * (ours.sign() == derivative.sign()).float().mean()
            print(
                f"{name:10}  {inside.sum():6}  {step:5.2f}  {rms(ours):9.2f}  {correlation(ours, derivative):12.2f} "
                f"({rms(derivative):7.2f})  {same:15.0f}  {correlation(ours, largest):21.2f}"
            )


def parse_steps(text: str) -> list[float]:
    """Return the steps in rising order."""
    try:
        steps = sorted(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--steps {text}: expected numbers such as 0.02,0.1") from None
    if not all(0.0 < step <= 1.0 for step in steps):
        raise ConfigError(f"--steps {text}: each must be above 0 and at most 1")
    return steps


def elsewhere(trained: Predictor, batches: object, number: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return log p [N] of scale ``number + 1``, and whether it is right [N], by where its region is put."""
    import torch

    from racnn.models.racnn.losses import true_class_prob
    from racnn.ops.regions import bounding_region, clamp

    model = trained.model
    bounds = model.bounds[number - 1]
    device = next(model.parameters()).device
    said: dict[str, list[tuple[Tensor, Tensor]]] = {}
    with torch.no_grad():
        for batch in batches:  # type: ignore[attr-defined]
            images, labels = batch["image"].to(device), batch["label"].to(device)
            source, output = model.normalise(images), model(images, num_scales=number)
            proposal = output.proposals[-1]
            centre, side = proposal[:, :2], proposal[:, 2:]
            places = {PROPOSED: proposal, "in the middle": torch.cat([torch.zeros_like(centre), side], dim=1)}
            if number == 1 and batch["box"].isfinite().all():  # later views have frames of their own
                places[TRUE] = clamp(bounding_region(batch["box"].to(device)), *bounds)
            for name, (x, y, factor) in MOVES.items():
                moved = torch.cat([centre + 2.0 * side * side.new_tensor([x, y]), factor * side], dim=1)
                places[name] = clamp(moved, *bounds)
            for name, region in places.items():
                logits = model.classify_proposal(number + 1, source, output.scales[-1], region)
                log_prob, right = true_class_prob(logits, labels, "log_prob"), logits.argmax(dim=1) == labels
                said.setdefault(name, []).append((log_prob.cpu(), right.float().cpu()))
    found = {
        name: (torch.cat([each[0] for each in rows]), torch.cat([each[1] for each in rows]))
        for name, rows in said.items()
    }
    if TRUE in found and len(found[TRUE][0]) < len(found[PROPOSED][0]):
        del found[TRUE]  # not every photo has a box
    return found


def measure(
    trained: Predictor, batches: object, number: int, steps: Sequence[float]
) -> tuple[Tensor, list[Tensor]]:
    """Return the derivative [N, 3] and the slope at each step [N, 3] of log p of scale ``number + 1``.

    A step is in units of the region's side, slopes are per unit of the frame of the region's view. Regions stay inside
    the view and their bounds; a slope is NaN where that leaves less than half of the move, or moves the centre too.
    """
    import torch

    from racnn.models.racnn.losses import true_class_prob

    model = trained.model
    model.requires_grad_(False)
    device = next(model.parameters()).device
    exact: list[Tensor] = []
    slopes: list[list[Tensor]] = [[] for _ in steps]
    for batch in batches:  # type: ignore[attr-defined]
        images, labels = batch["image"].to(device), batch["label"].to(device)
        source, output = model.normalise(images), model(images, num_scales=number)
        parent = output.scales[-1]
        proposal = output.proposals[-1]

        def log_prob(region: Tensor) -> Tensor:
            logits = model.classify_proposal(number + 1, source, parent, region)  # noqa: B023
            return true_class_prob(logits, labels, "log_prob")  # noqa: B023

        place = proposal.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(log_prob(place).sum(), place)
        exact.append(gradient.cpu())
        with torch.no_grad():
            for step, rows in zip(steps, slopes, strict=True):
                moves = [slope(log_prob, proposal, axis, step, model.bounds[number - 1]) for axis in range(3)]
                rows.append(torch.stack(moves, dim=1).cpu())
    return torch.cat(exact), [torch.cat(rows) for rows in slopes]


def slope(
    score: Callable[[Tensor], Tensor], region: Tensor, axis: int, step: float, bounds: tuple[float, float]
) -> Tensor:
    """Return the slope [B] of a score between two regions ``step`` sides apart in one coordinate."""
    import torch

    from racnn.ops.regions import clamp

    half = torch.zeros_like(region)
    half[:, axis] = step * region[:, 2]  # tl is half the side
    ahead, behind = clamp(region + half, *bounds), clamp(region - half, *bounds)
    moved = ahead - behind
    own = moved[:, axis]
    alone = moved.abs().sum(dim=1) <= own + 1e-6  # a side that grows at the edge would push the centre too
    return torch.where(alone & (own >= half[:, axis]), (score(ahead) - score(behind)) / own, torch.nan)


def rms(values: Tensor) -> float:
    """Return the root mean square."""
    return float(values.square().mean().sqrt())


def correlation(left: Tensor, right: Tensor) -> float:
    """Return Pearson's correlation."""
    import torch

    return float(torch.corrcoef(torch.stack([left, right]))[0, 1])


if __name__ == "__main__":
    run_with_messages(lambda: typer.run(main))
