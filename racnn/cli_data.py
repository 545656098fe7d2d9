"""The ``racnn data`` commands: bring a data set, look over it, check every photo."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from racnn.errors import ConfigError

if TYPE_CHECKING:
    from racnn.data.sources.catalog import Catalog

app = typer.Typer(help="Bring a dataset, look over it, check its photos.", no_args_is_help=True)

PHOTOS = "A folder with a folder for each class, a list, cub:ROOT, dogs:ROOT, cars:ROOT, or synthetic, the built-in set."
Photos = Annotated[str, typer.Argument(metavar="PHOTOS", help=PHOTOS)]
Classes = Annotated[str | None, typer.Option(help="Only these class ids, such as 1-10,14.")]


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="cub, dogs or cars.")],
    root: Annotated[Path, typer.Option(help="The folder to fill.")],
    given: Annotated[
        list[Path] | None, typer.Option("--from", help="An archive that was fetched by hand; repeatable.")
    ] = None,
    mirror: Annotated[
        str | None,
        typer.Option(help="Fetch from this folder URL; sizes and hashes are checked all the same."),
    ] = None,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="Do not delete them at the end.")
    ] = False,
) -> None:
    """Download, check and unpack an official dataset; a stopped download goes on where it was."""
    from racnn.data.prepare import prepare as bring

    catalog = bring(name, root, given=given or [], mirror=mirror, keep=keep_archives)
    print(
        f"complete: {len(catalog.train)} training and {len(catalog.test)} test photos of {len(catalog.class_names)} classes"
    )
    print(f"use it: {shlex.join(['racnn', 'train', f'{name}:{root}'])}")


@app.command()
def info(photos: Photos, classes: Classes = None) -> None:
    """Say what is in a dataset: counts, classes, sizes, imbalance, what was passed over."""
    from racnn.data.prepare import OFFICIAL, differences
    from racnn.data.statistics import format_survey, survey
    from racnn.sections import parse_ranges

    catalog = _catalog(photos, classes)
    print(format_survey(survey(catalog)))
    if classes is not None:
        named = zip(parse_ranges(classes), catalog.class_names, strict=True)
        print(f"--classes {classes}  {', '.join(f'{number}: {name}' for number, name in named)}")
    official = OFFICIAL.get("cub" if catalog.dataset == "cub200" else catalog.dataset)
    if official and classes is None:
        missing = differences(catalog, official)
        print(f"official        {'; '.join(missing) if missing else 'complete'}")


@app.command()
def verify(
    photos: Photos,
    classes: Classes = None,
    write_list: Annotated[
        Path | None, typer.Option(help="Write the damaged photos' names here, for data.exclude.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes; default: one a core.")] = None,
) -> None:
    """Read every photo: list the damaged ones, copies across splits and classes, boxes outside their photos.

    Exit code 1 if there are any; names that look alike and files that were passed over are only told of.
    """
    from tqdm import tqdm

    from racnn.data.contents import describe_copies, find_copies
    from racnn.data.sources.catalog import exclusion_line
    from racnn.data.statistics import box_problems, damaged, notes_on
    from racnn.recipes import DRAWN
    from racnn.written import refuse_foreign, write_text

    if photos == DRAWN:
        raise ConfigError(f"PHOTOS: {DRAWN}: drawn photos need no check")
    if write_list is not None:
        refuse_foreign([write_list], flag="--write-list")
    catalog = _catalog(photos, classes)
    splits = catalog.splits()
    records = catalog.records()
    found = []
    checked = damaged(records, workers=os.cpu_count() or 1 if workers is None else workers)
    for record, reason in tqdm(checked, total=len(records), unit="photo", disable=None):
        if reason is not None:
            reason = " ".join(reason.split())  # one line
            found.append((record.name, reason))
            tqdm.write(f"{record.name}: {reason}")
    copies = find_copies(splits)
    boxes = box_problems(records)
    for record, problem, _ in boxes:
        print(f"{record.name}: {problem}")
    for line in (*describe_copies(copies, catalog.class_names), *notes_on(catalog)):
        print(line)
    print(f"{len(records)} photos read, {len(found)} damaged")
    if write_list is not None:
        lines = [f"# {reason}\n{exclusion_line(name)}\n" for name, reason in found]
        write_text(write_list, "".join(lines), flag="--write-list")
        print(f"written to {write_list}; leave them out with --set data.exclude={write_list}")
    if found or copies or any(misplaced for _, _, misplaced in boxes):
        raise typer.Exit(1)


def _catalog(photos: str, classes: str | None) -> Catalog:
    from racnn.config import load_config
    from racnn.data import DATASETS
    from racnn.recipes import photo_settings

    given = photo_settings(photos)
    dataset, root = given["data.dataset"], given.get("data.root")
    config = load_config(None, [] if classes is None else [f"data.classes={classes}"]).data
    place = None if root is None else Path(root)
    return DATASETS[dataset](config.model_copy(update={"dataset": dataset, "root": place}))
