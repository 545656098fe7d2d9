"""The command that draws where a network looked, and the pictures that a training ends with."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from racnn.cli_checkpoint import Checkpoint, Device, restore, restore_any
from racnn.errors import ConfigError, DataError, LeftOutError
from racnn.written import refuse_foreign, write_file, write_json

if TYPE_CHECKING:
    import numpy as np

    from racnn.engine.predictor import Predictor
    from racnn.portable.network import PortableNetwork

REGIONS = "regions.json"
NUM_DRAWN = 16  # photos whose pictures a training or the demo draws at its end


def visualize(
    checkpoint: Checkpoint,
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTOS", help="Photos, or folders of photos.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures and regions.json.")] = Path("visualize"),
    limit: Annotated[
        int | None, typer.Option(min=1, help="Draw so many photos, taken evenly from all of them.")
    ] = None,
    why: Annotated[
        bool,
        typer.Option(
            "--why", help="Also show what on each view speaks for the answer and against the next best class."
        ),
    ] = False,
    attention: Annotated[
        bool, typer.Option("--attention", help="Also show how each view's cells are weighed (model.pooling).")
    ] = False,
    device: Device = "auto",
) -> None:
    """Show where a network looked: one picture a photo, and regions.json with the boxes in the photo's pixels."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; expected a folder for the pictures")
    from racnn.data.image_io import read_photo
    from racnn.data.listing import describe_passed, find_photos

    passed: Counter[str] = Counter()
    paths = find_photos(photos, passed)
    if limit is not None and limit < len(paths):  # the first ones would all be of the same class
        paths = [paths[i * len(paths) // limit] for i in range(limit)]
    several = len({path.parent for path in paths}) > 1
    names = picture_names(paths, name_folders=several)
    folders = {path.parent for path in paths} | {place for place in photos if place.is_dir()}
    refuse_pictures(out, names, photo_folders=folders)
    damaged: list[str] = []

    def readable() -> Iterable[tuple[Path, str, np.ndarray]]:
        for path, name in zip(paths, names, strict=True):
            try:
                yield path, name, read_photo(path)
            except DataError as error:
                damaged.append(str(error))

    trained = restore_any(checkpoint, device)
    if why:
        trained.refuse_why()
    if attention:
        _refuse_attention(trained, why=why)
    rows = draw(trained, readable(), out, why=why, attention=attention)
    if rows:
        print(f"{len(rows)} pictures and regions.json in {out}")
    if passed:
        print(describe_passed(passed), file=sys.stderr)
    if older := {path.name for path in out.glob("*.png")} - {row["picture"] for row in rows}:
        print(f"{len(older)} other pictures were there before, and are not in regions.json")
    if damaged:
        failed = LeftOutError if rows else DataError
        raise failed(f"{len(damaged)} of {len(paths)} photos were left out:\n" + "\n".join(damaged))


def draw_validation(best: Path, device: str) -> Path:
    """Draw some validation photos of a run, taken evenly from all, and return the folder of the pictures."""
    from racnn.engine.evaluator import data_of

    trained = restore(best, device)
    photos = data_of(trained).splits["val"]
    records = photos.records
    if len(records) > NUM_DRAWN:
        records = [records[i * len(records) // NUM_DRAWN] for i in range(NUM_DRAWN)]
    paths = [record.path or Path(f"{record.name}.png") for record in records]
    names = picture_names(paths, name_folders=True)
    out = best.parent / "pictures"
    refuse_pictures(out, names)
    loaded = zip(paths, names, map(photos.catalog.load, records), strict=True)
    draw(trained, loaded, out)
    return out


def picture_names(photos: Iterable[Path], *, name_folders: bool = False) -> list[str]:
    """Return a name without spaces for the picture of each photo, no two the same; ``name_folders``: with its photo's folder before it."""
    taken: dict[str, None] = {}
    for path in photos:
        stem = "_".join((f"{path.parent.name}_{path.stem}" if name_folders else path.stem).split()) or "photo"
        name, number = stem, 2
        while name in taken:
            name, number = f"{stem}_{number}", number + 1
        taken[name] = None
    return [f"{name}.png" for name in taken]


def refuse_pictures(out: Path, names: Iterable[str], photo_folders: Iterable[Path] = ()) -> None:
    """Refuse to draw where one of the pictures, or regions.json, would replace what this program did not write."""
    refuse_foreign([out / name for name in (*names, REGIONS)], flag="--out", photo_folders=photo_folders)


def _refuse_attention(predictor: Predictor | PortableNetwork, *, why: bool) -> None:
    """Refuse to draw weights of cells that there are not, or beside something else in the same place.

    Raises:
        ConfigError: They cannot be drawn.
    """
    if why:
        raise ConfigError("--why and --attention exclude each other: both lie over the views")
    if not hasattr(predictor, "config"):
        raise ConfigError(
            "--attention: how cells are weighed does not come out of an .onnx file; give its checkpoint"
        )
    if getattr(predictor.config.model, "pooling", "mean") != "attention":
        raise ConfigError("--attention: this network weighs all cells alike (model.pooling: mean)")


def draw(
    predictor: Predictor | PortableNetwork,
    photos: Iterable[tuple[Path, str, np.ndarray]],
    out: Path,
    *,
    why: bool = False,
    attention: bool = False,
) -> list[dict[str, Any]]:
    """Write one picture a photo, under the name given, and regions.json."""
    rows = []
    for path, name, photo in photos:
        found = predictor.predict(photo, why=why)
        write_file(
            out / name,
            partial(found.show(attention=attention).save, format="PNG"),
            flag="--out",
            checked=True,
        )
        rows.append({"photo": str(path), "picture": name, **found.to_dict()})
    if rows:
        write_json(out / REGIONS, rows, flag="--out")
    return rows
