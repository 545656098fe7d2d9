"""How fast the parts are, each as a ratio against a named baseline measured beside it in the same run.

    python tools/benchmark.py zoom --json zoom.json      the zoom, forward and backward
    python tools/benchmark.py step --backbone vgg16      steps of training, their memory, what is not convolution
    python tools/benchmark.py phases                     what the time of each phase of the recipe is spent on
    python tools/benchmark.py infer                      photos a second
    python tools/benchmark.py answer BEST.pt PHOTOS      one photo, by every way that a trained network can answer
    python tools/benchmark.py data                       from a JPEG to a tensor

Absolute times depend on the machine and are not printed as results; ratios travel. Each figure is the median over
rounds in which ours and the baselines take turns, with the range of the middle half. The files of ``tools/bench``
say what is compared with what.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.figures import show
from racnn.cli import Device, run_with_messages
from racnn.written import refuse_foreign

app = typer.Typer(help="Measure the parts against named baselines.", no_args_is_help=True)


def _free(file: Path | None) -> Path | None:
    """Refuse a file that cannot be written to before anything is measured."""
    if file is not None:
        refuse_foreign([file], flag="--json")
    return file


Json = Annotated[
    Path | None, typer.Option("--json", help="Write the figures to this file too.", callback=_free)
]
Rounds = Annotated[int, typer.Option(min=3, help="Times that everything is measured in turn.")]
Batch = Annotated[int, typer.Option(min=1, help="Photos at a time.")]
StepBatch = Annotated[int | None, typer.Option(min=1, help="Photos at a time; default: 2, on CUDA 16.")]
Side = Annotated[
    int, typer.Option(min=32, help="Of the photos and of the first view, in pixels; finer views have half.")
]


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
    from bench.data import measure

    show(measure(photos=photos, root=root, rounds=rounds), json_file)


@app.command()
def answer(
    checkpoint: Annotated[Path, typer.Argument(help="best.pt of a run.")],
    photos: Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.")],
    onnx: Annotated[list[Path] | None, typer.Option(help="An export of it; repeatable.")] = None,
    one_look: Annotated[
        Path | None, typer.Option(help="A network that looks once and costs as much.")
    ] = None,
    num: Annotated[int, typer.Option(min=3, help="Photos to answer.")] = 60,
    json_file: Json = None,
) -> None:
    """From the pixels of one photo to its answer: as trained, in bfloat16, compiled, exported, with early exit."""
    from bench.answer import measure

    show(measure(checkpoint, onnx or [], one_look, photos, num=num), json_file)


@app.command()
def zoom(
    batch: Batch = 16,
    side: Side = 448,
    rounds: Rounds = 15,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Cut regions out of photos and sample them to views, with the gradients in the photos and the regions.

    The baselines go through the photos one by one: as public implementations of RA-CNN do, and as well as can be.
    """
    from bench.zoom import measure
    from racnn.engine.device import pick_device

    show(measure(batch=batch, side=side, rounds=rounds, device=pick_device(device)), json_file)


@app.command()
def step(
    backbone: Annotated[list[str] | None, typer.Option(help="Repeatable; vgg16 and vgg19.")] = None,
    batch: StepBatch = None,
    side: Side = 448,
    rounds: Rounds = 3,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Train for one step, the optimizer's included: classification of all scales, and ranking.

    The baseline is the same network in float32, channels first, with a graph through all of it in every phase.
    """
    from bench.step import measure
    from racnn.engine.device import determinism, pick_device

    where = pick_device(device)
    batch = batch or (16 if where.type == "cuda" else 2)
    figures = []
    with determinism(False, where):  # as in training
        for name in backbone or ["vgg16", "vgg19"]:
            figures += measure(backbone=name, batch=batch, side=side, rounds=rounds, device=where)
    show(figures, json_file)


@app.command()
def phases(
    backbone: Annotated[str, typer.Option(help="Any that model.backbone names.")] = "vgg16",
    batch: StepBatch = None,
    side: Side = 448,
    rounds: Rounds = 3,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Train each phase of the default recipe for a step: how long it takes, and on which operations."""
    from bench.phases import measure
    from racnn.engine.device import determinism, pick_device

    where = pick_device(device)
    batch = batch or (16 if where.type == "cuda" else 2)
    with determinism(False, where):  # as in training
        figures = measure(backbone=backbone, batch=batch, side=side, rounds=rounds, device=where)
    show(figures, json_file)


@app.command()
def infer(
    backbone: Annotated[str, typer.Option(help="Any that model.backbone names.")] = "vgg16",
    batch: Batch = 8,
    side: Side = 448,
    rounds: Rounds = 5,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Take photos through the whole recursion.

    The baseline is the same network in float32, channels first, one photo at a time and with a graph.
    """
    from bench.infer import measure
    from racnn.engine.device import pick_device

    figures = measure(backbone=backbone, batch=batch, side=side, rounds=rounds, device=pick_device(device))
    show(figures, json_file)


if __name__ == "__main__":
    run_with_messages(app)
