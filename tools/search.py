"""Show what a search among places could gain a finer look, and how much of that can be known beforehand.

    python tools/search.py runs/mine/best.pt --region 1 --csv runs/mine/search_1.csv

The idea of the ranking loss, that the finer look should be surer, followed by finite moves instead of a derivative. The
run is one of `--recipe quick`, whose folder still holds its descriptors. For each photo the finer look is shown the region as it is
proposed and moved, shrunk and grown, and what the look says of the true class is compared: of training photos by heads that have
not seen them, of validation photos by the look's own.

* best by the true class: the headroom, which nobody who does not know the class can have;
* most confident: among all places, looked at one after the other;
* each move for all photos alike;
* foreseen: a ridge regression from what the look shows where it is proposed, and from where that is, to the gain of each move;
  of training photos each is foreseen by the others' folds, of validation photos by all training photos. The share of the headroom
  that it reaches on photos that it has not seen is what a network that proposes regions could learn of it.

Nothing is trained or written but the csv file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from racnn.cli import run_with_messages
from racnn.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from racnn.engine.predictor import Predictor
    from racnn.models.racnn.heads import Head

MOVES = {  # of the centre in sides of the region, and the factor of the side; the first is the base
    "as it is proposed": (0.0, 0.0, 1.0),
    "left": (-0.15, 0.0, 1.0),
    "right": (0.15, 0.0, 1.0),
    "up": (0.0, -0.15, 1.0),
    "down": (0.0, 0.15, 1.0),
    "a fifth smaller": (0.0, 0.0, 0.8),
    "a quarter larger": (0.0, 0.0, 1.25),
    "a third smaller": (0.0, 0.0, 0.64),
    "half as large again": (0.0, 0.0, 1.5),
}
COMPONENTS = 64  # of the descriptor, that the regression reads
PENALTIES = (30.0, 300.0, 3000.0)  # of the regression; the best on training photos, by folds
FEW = 4  # photos, by which the stored descriptors are compared with the network
LARGEST = 2.0  # gain in log-probability that counts as one of its size


def main(
    checkpoint: Annotated[Path, typer.Argument(help="best.pt of a run of quick.")],
    region: Annotated[int, typer.Option(min=1, help="The region that is moved.")] = 1,
    limit: Annotated[int, typer.Option(min=50, help="Photos of each split.")] = 1000,
    data: Annotated[Path | None, typer.Option(help="The dataset's folder, if it has moved.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the table to this file.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Print what other places would be worth to a finer look, with 95 % intervals over photos."""
    from racnn.data import eval_loader
    from racnn.engine.device import pick_device
    from racnn.engine.evaluator import data_of
    from racnn.engine.predictor import load
    from racnn.models.racnn.heads import fit_head
    from racnn.written import refuse_foreign, write_text

    if csv is not None:
        refuse_foreign([csv], flag="--csv")
    trained = load(checkpoint, pick_device(device))
    if region >= trained.scales:
        raise ConfigError(f"--region {region}: {checkpoint} has {trained.scales} trained scale(s)")
    photos = data_of(trained, root=data).splits
    proposed, finer = stored_looks(checkpoint.parent / "descriptors", region, len(photos["train"]))
    refuse_other_network(trained, photos["train"], region, proposed, finer)
    head = fit_head(finer["descriptors"], finer["labels"], trained.model.num_classes)
    seen: dict[str, Places] = {}
    for split in ("train", "val"):
        batches = eval_loader(photos[split], trained.config.data, most=limit)
        seen[split] = look_around(
            trained.model, batches, region, proposed if split == "train" else None, head
        )
        print(f"{split}: {len(seen[split].labels)} photos looked at in {len(MOVES)} places")
    lines = ["split,choice,top1,top1_gain,low,high,log_prob_gain,log_prob_low,log_prob_high,moved"]
    print(
        f"scale {region + 1}, by where region {region} is: top-1 %, its gain, gain in log-probability (95 %)"
    )
    for name, choice, places in choices(seen["train"], seen["val"]):
        row = worth(places, choice)
        split = "train" if places is seen["train"] else "val"
        print(
            f"{split:5}  {name:28}  {100 * row[0]:5.1f}  {100 * row[1]:+5.1f} ({100 * row[2]:+.1f} to {100 * row[3]:+.1f})  "
            f"{row[4]:+.3f} ({row[5]:+.3f} to {row[6]:+.3f})  moved {100 * row[7]:.0f} %"
        )
        lines.append(",".join([split, name, *(f"{value:.4f}" for value in row)]))
    if csv is not None:
        write_text(csv, "\n".join(lines) + "\n", flag="--csv")


@dataclass(frozen=True)
class Places:
    """What a look says of photos in each place.

    Attributes:
        labels: [N].
        logits: [N, K, C]; the first place is the one that is proposed.
        log_prob: [N, K] of the true class.
        shown: [N, D + 6], what is known where it is proposed: descriptor, region, how sure the look is.
        folds: [N], of the head that answered.
    """

    labels: Tensor
    logits: Tensor
    log_prob: Tensor
    shown: Tensor
    folds: Tensor


def stored_looks(folder: Path, region: int, num_photos: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return where a region of each training photo was, and what the finer look made of it, as the run wrote them.

    Raises:
        ConfigError: The files are not there, or are of other photos.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    name = "look_1" if region == 1 else f"evidence_{region}"
    try:
        where, finer = (load_file(folder / f"{each}.safetensors") for each in (name, f"look_{region + 1}"))
        proposed = where["next_region"]
    except (OSError, SafetensorError, KeyError) as error:
        raise ConfigError(f"{folder}: holds no descriptors of a run of quick ({error})") from None
    if len(proposed) != num_photos:
        raise ConfigError(f"{folder}: is of {len(proposed)} training photos, and there are {num_photos}")
    return proposed, finer


def refuse_other_network(
    trained: Predictor, photos: Any, region: int, proposed: Tensor, finer: dict[str, Tensor]
) -> None:
    """Refuse a network that makes something else of the first photos than the one whose descriptors were stored.

    Raises:
        ConfigError: It does; it has been trained since.
    """
    import torch

    from racnn.data import eval_loader

    model = trained.model
    device = next(model.parameters()).device
    batch = next(iter(eval_loader(photos, trained.config.data, most=FEW)))
    view = model.crop(
        region + 1, model.normalise(batch["image"].to(device)), proposed[batch["index"]].to(device)
    )
    with torch.no_grad():
        own = model.describe(model.extract(region + 1, view)).cpu()
    stored = finer["descriptors"][batch["index"]]
    if not torch.allclose(own, stored, atol=0.05 * float(stored.abs().max())):
        raise ConfigError(
            "the descriptors in the run's folder are of another network: this one was trained since"
        )


def move(region: Tensor, by: tuple[float, float, float]) -> Tensor:
    """Return regions [N, 3] moved by shares of their sides, with sides of another size, inside the photo."""
    import torch

    from racnn.ops.regions import clamp

    x, y, factor = by
    side = region[:, 2:]
    centre = region[:, :2] + 2.0 * side * side.new_tensor([x, y])
    return clamp(torch.cat([centre, factor * side], dim=1), 0.0, 1.0)


def look_around(model: Any, batches: Any, number: int, proposed: Tensor | None, head: Head) -> Places:
    """Return what scale ``number + 1`` says of photos in each place.

    Args:
        model: The network, in evaluation mode.
        batches: Photos of a split, from :func:`racnn.data.eval_loader`.
        number: Number of the region, from 1.
        proposed: [N, 3] for all photos of the split, which are answered by heads that have not seen them; None: as the network
            proposes, answered by the look's own head.
        head: Head of the finer look, fitted to all training photos.
    """
    import torch

    from racnn.models.parts import read_rows

    device = next(model.parameters()).device

    def read(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        source = model.normalise(batch["image"].to(device))
        if proposed is None:
            base = model(batch["image"].to(device), num_scales=number).scales[-1].next_region
        else:
            base = proposed[batch["index"]].to(device)
        views = [model.crop(number + 1, source, move(base, by)) for by in MOVES.values()]
        found = [model.describe(model.extract(number + 1, view)).cpu() for view in views]
        return {
            "found": torch.stack(found, dim=1),
            "base": base.cpu(),
            **{k: batch[k] for k in ("index", "label")},
        }

    rows = read_rows(read, batches, device=device)
    labels, found = rows["label"], rows["found"]
    folds = head.folds[rows["index"]] if proposed is not None else torch.zeros_like(labels)
    if proposed is not None:
        logits = (
            torch.einsum("nkd,ncd->nkc", found, head.fold_weights[folds]) + head.fold_biases[folds][:, None]
        )
    else:
        logits = found @ head.weight.T + head.bias
    every = logits.log_softmax(dim=2)
    first = every[:, 0].topk(2, dim=1).values
    entropy = -(every[:, 0].exp() * every[:, 0]).sum(dim=1, keepdim=True)
    return Places(
        labels,
        logits,
        every.gather(2, labels[:, None, None].expand(-1, len(MOVES), 1))[..., 0],
        torch.cat([found[:, 0], rows["base"], first, entropy], dim=1),
        folds,
    )


def choices(train: Places, val: Places) -> list[tuple[str, Tensor, Places]]:
    """Return ways to choose a place: the name, the place [N] of each photo, and of which photos."""
    import torch

    by_folds, penalty = foreseen_by_folds(train)
    rows = []
    for places, foreseen in ((train, by_folds), (val, foresee(train, val.shown, penalty))):
        rows += [
            ("best by the true class", places.log_prob.argmax(dim=1), places),
            ("most confident", places.logits.log_softmax(dim=2).amax(dim=2).argmax(dim=1), places),
            (f"foreseen (penalty {penalty:g})", foreseen, places),
        ]
        rows += [
            (name, torch.full_like(places.labels, number), places)
            for number, name in enumerate(MOVES)
            if number
        ]
    return rows


def foreseen_by_folds(train: Places) -> tuple[Tensor, float]:
    """Return the place [N] that is foreseen to be the best for each photo by photos of other folds, and the best penalty."""
    import torch

    best: tuple[float, Tensor, float] | None = None
    for penalty in PENALTIES:
        place = torch.zeros_like(train.labels)
        for fold in train.folds.unique().tolist():
            others = train.folds != fold
            place[~others] = foresee(train, train.shown[~others], penalty, others)
        gain = float(_gain(train, place).mean())
        if best is None or gain > best[0]:
            best = gain, place, penalty
    assert best is not None
    return best[1], best[2]


def foresee(train: Places, shown: Tensor, penalty: float, photos: Tensor | slice = slice(None)) -> Tensor:
    """Return the place [M] with the largest gain that a ridge regression on training photos expects of what is shown [M, ...]."""
    import torch

    known, gains = (
        train.shown[photos],
        (train.log_prob - train.log_prob[:, :1])[photos].clamp(-LARGEST, LARGEST),
    )
    width = known.shape[1] - 6
    middle = known[:, :width].mean(dim=0)
    basis = torch.linalg.svd(known[:, :width] - middle, full_matrices=False).Vh[:COMPONENTS].T

    def read(rows: Tensor) -> Tensor:
        return torch.cat([(rows[:, :width] - middle) @ basis, rows[:, width:]], dim=1)

    mean, deviation = read(known).mean(dim=0), read(known).std(dim=0).clamp(min=1e-6)
    inputs, ask = ((read(rows) - mean) / deviation for rows in (known, shown))
    square = inputs.T @ inputs + penalty * torch.eye(inputs.shape[1])
    expected = ask @ torch.linalg.solve(square, inputs.T @ (gains - gains.mean(dim=0))) + gains.mean(dim=0)
    expected[:, 0] = 0.0
    return expected.argmax(dim=1)


def worth(places: Places, choice: Tensor) -> list[float]:
    """Return top-1 in the places that are chosen, its gain with its interval, the gain in log-probability with its, and the
    share of the photos that are moved."""
    import torch

    from racnn.evaluation.metrics import paired_difference

    chosen = places.logits[torch.arange(len(choice)), choice].argmax(dim=1) == places.labels
    base = places.logits[:, 0].argmax(dim=1) == places.labels
    gain = _gain(places, choice)
    mean, error = float(gain.mean()), float(gain.std()) / len(gain) ** 0.5
    return [
        float(chosen.float().mean()),
        *paired_difference(chosen, base),
        mean,
        mean - 1.96 * error,
        mean + 1.96 * error,
        float((choice > 0).float().mean()),
    ]


def _gain(places: Places, choice: Tensor) -> Tensor:
    return places.log_prob.gather(1, choice[:, None])[:, 0] - places.log_prob[:, 0]


if __name__ == "__main__":
    run_with_messages(lambda: typer.run(main))
