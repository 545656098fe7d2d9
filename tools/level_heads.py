"""How good the heads of coarser levels are beside sums over the classes: top-1 of each level three ways.

    python tools/level_heads.py runs/mgcnn/best.pt

``sums``: the species' probabilities, added up in each group, with the heads left out; ``heads``: each level's own head alone; ``agreed``:
what the network answers, see racnn/models/racnn/level_heads.py. Validation photos, unless --split says otherwise.
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

WAYS = ("sums", "heads", "agreed")


def main(
    checkpoint: Annotated[Path, typer.Argument(help="best.pt or last.pt of a run with model.level_heads.")],
    split: Annotated[str, typer.Option(help="val or train; the test photos choose nothing.")] = "val",
    data: Annotated[Path | None, typer.Option(help="The dataset's folder, if it has moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Print top-1 of every level, in percent."""
    from racnn.engine.device import pick_device
    from racnn.engine.evaluator import data_of, predict_split
    from racnn.engine.predictor import load
    from racnn.evaluation.table import table

    if split not in ("val", "train"):
        raise ConfigError(f"--split {split}: expected val or train; the test photos choose nothing")
    trained = load(checkpoint, pick_device(device))
    if getattr(trained.model, "levels", None) is None:
        raise ConfigError(f"{checkpoint}: has no heads of levels (model.level_heads)")
    photos = data_of(trained, root=data).splits[split]
    found = predict_split(trained, photos, descriptors=True)
    rows = measure(trained, found.descriptors, found.labels)
    print(f"{split}, {len(photos)} photos, top-1 %")
    print(
        table(
            ["level", *WAYS],
            [
                [name, *("-" if each is None else f"{100 * each:.1f}" for each in right)]
                for name, right in rows.items()
            ],
        )
    )


def measure(trained: Predictor, descriptors: list[Tensor], labels: Tensor) -> dict[str, list[float | None]]:
    """Return by level the shares of photos that are answered rightly in each of :data:`WAYS`.

    Args:
        trained: A network with level heads.
        descriptors: [N, D] of each look.
        labels: [N].
    """
    import torch
    import torch.nn.functional as F

    model = trained.model
    levels = model.levels
    device = levels.trust.device
    with torch.no_grad():
        joined = torch.cat([F.normalize(each.to(device), dim=1) for each in descriptors], dim=1)
        fused = model.fusion(joined)
        said = {"sums": fused.log_softmax(dim=1), "agreed": levels.consistent(fused, joined)}
        truth = labels.to(device)
        classes = [float((said[way].argmax(dim=1) == truth).float().mean()) for way in ("sums", "agreed")]
        rows: dict[str, list[float | None]] = {"classes": [classes[0], None, classes[1]]}
        for number, name in enumerate(levels.names):
            groups = levels.groups[number]
            members = (groups[:, None] == torch.arange(len(groups), device=device)).float()
            shares = {way: log_probs.exp() @ members for way, log_probs in said.items()}
            shares["heads"] = levels.answers(joined)[number]
            rows[name] = [float((shares[way].argmax(dim=1) == groups[truth]).float().mean()) for way in WAYS]
    return rows


if __name__ == "__main__":
    run_with_messages(lambda: typer.run(main))
