"""The commands that measure: answers to photos whose classes are known, and what to make of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from racnn.cli_checkpoint import Checkpoint, Device, restore
from racnn.errors import ConfigError, DataError
from racnn.written import STREAMS, refuse_foreign, write_bytes, write_json, write_text

if TYPE_CHECKING:
    from racnn.engine.evaluator import Measured
    from racnn.engine.predictor import Predictor
    from racnn.evaluation.hedge import Caution


def evaluate(
    checkpoint: Checkpoint,
    split: Annotated[
        str | None,
        typer.Option(help="test, val, train or all; default: test, of other photos than the run's all."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Where the run's dataset lies now, or other photos with its classes: a folder or a list."
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the report to this file too.")
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="Write what each look says of each photo to this file too, a line of JSON a photo."
        ),
    ] = None,
    descriptors: Annotated[
        Path | None,
        typer.Option(help="Write what the classifiers read of each photo to this .safetensors file too."),
    ] = None,
    skip_damaged: Annotated[
        bool, typer.Option("--skip-damaged", help="Leave out photos that cannot be read, and count them.")
    ] = False,
    early_exit: Annotated[
        bool,
        typer.Option(
            "--early-exit",
            help="Also measure the choice of when a photo needs no further look, for `racnn predict`; where training has "
            "made none, the validation photos do.",
        ),
    ] = False,
    levels: Annotated[
        str | None,
        typer.Option(
            metavar="TAXONOMY",
            help="Choose how sure the answers of `racnn predict --levels` are to be: a CSV file of classes and their groups, or "
            "cub200; default: as chosen before.",
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Measure a checkpoint on a split of its dataset, or on other photos with labels."""
    if split not in (None, "test", "val", "train", "all"):
        raise ConfigError(f"--split: expected test, val or train, or all, got '{split}'")
    from racnn.engine.evaluator import measure_trained
    from racnn.engine.photo_rows import photo_rows
    from racnn.evaluation.levels import caution_file, caution_json, format_levels
    from racnn.evaluation.photo_rows import format_photo_rows
    from racnn.evaluation.report import format_confused, format_report, notes
    from racnn.models.early_exit import early_exit_file, format_early_exit

    choice = early_exit_file(checkpoint)
    asked = {"--json": json_file, "--predictions": predictions, "--descriptors": descriptors}
    files = {flag: path for flag, path in asked.items() if path is not None}
    if early_exit:
        files["--early-exit"] = choice
    if levels is not None:
        files["--levels"] = caution_file(checkpoint)
    _refuse_same_file(files)
    for flag, path in files.items():
        refuse_foreign([path], flag=flag)
    trained = restore(checkpoint, device)
    measured = measure_trained(
        trained,
        split=split,
        root=data,
        skip_damaged=skip_damaged,
        early_exit=early_exit,
        descriptors=descriptors is not None,
    )
    report = measured.report
    remarks = notes(report, on_other_photos=data is not None)
    caution = _measure_levels(trained, checkpoint, levels, measured, data, remarks, choose=False)

    print(format_report(report))
    if confused := format_confused(report):
        print(f"\n{confused}")
    if early_exit:
        write_json(choice, report["early_exit"]["choice"], flag="--early-exit")
        print(f"\n{format_early_exit(report)}\n\nfor `racnn predict --early-exit`: {choice}")
    if caution is not None:
        print(f"\n{format_levels(report['levels'])}")
        if levels is not None:
            write_json(caution_file(checkpoint), caution_json(caution), flag="--levels")
            print(f"\nfor `racnn predict --levels`: {caution_file(checkpoint)}")
    for line in remarks:
        print(f"\n{line}")
    if json_file is not None:
        write_json(json_file, report, flag="--json")
    if predictions is not None:
        write_text(predictions, format_photo_rows(photo_rows(trained, measured)), flag="--predictions")
    if descriptors is not None:
        write_bytes(descriptors, _descriptors_file(trained.class_names, measured), flag="--descriptors")
    written = ", ".join(str(path) for path in (json_file, predictions, descriptors) if path is not None)
    if written:
        print(f"\nwritten to {written}")


def compare(
    networks: Annotated[
        list[str],
        typer.Argument(
            metavar="NETWORK",
            help="Runs, checkpoints, or files of `racnn evaluate --predictions`; the first is what the others are compared with.",
        ),
    ],
    split: Annotated[
        str, typer.Option(help="val or test: photos that are answered by runs and checkpoints.")
    ] = "val",
    data: Annotated[Path | None, typer.Option(help="Where the runs' dataset lies now.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for compare.json and compare.svg.")] = Path("compare"),
    device: Device = "auto",
) -> None:
    """Compare networks on the same photos: accuracy, photos won and lost, where they look, what they cost."""
    if split not in ("val", "test"):
        raise ConfigError(f"--split: expected val or test, got '{split}'")
    if len(networks) < 2:
        raise ConfigError("expected two networks or more")
    places = [Path(name) / "best.pt" if Path(name).is_dir() else Path(name) for name in networks]
    files = out / "compare.json", out / "compare.svg"
    refuse_foreign(files, flag="--out")
    from racnn.engine.evaluator import measure_trained
    from racnn.engine.photo_rows import photo_rows
    from racnn.evaluation.compare import compare as beside
    from racnn.evaluation.compare import format_comparison, picture
    from racnn.evaluation.photo_rows import PhotoRow, read_photo_rows

    every: dict[str, list[PhotoRow]] = {}
    for place, name in zip(places, _short_names(places), strict=True):
        if place.suffix == ".jsonl":
            every[name] = read_photo_rows(place)
        else:
            trained = restore(place, device)
            measured = measure_trained(trained, split=split, root=data)
            every[name] = list(photo_rows(trained, measured, every=False))
    found = beside(every)
    print(format_comparison(found))
    write_json(files[0], found, flag="--out")
    write_text(files[1], picture(found), flag="--out")
    print(f"\npicture: {files[1]}")


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or a checkpoint.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    split: Annotated[
        str | None,
        typer.Option(help="val, test, train or all; default: val, of other photos than the run's all."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Where the run's dataset lies now, or other photos with its classes.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
    levels: Annotated[
        str | None,
        typer.Option(
            metavar="TAXONOMY",
            help="Show answers at the level that is sure: a CSV file of classes and their groups, or cub200; default: as chosen before, or by data.levels.",
        ),
    ] = None,
    marks: Annotated[
        Path | None,
        typer.Option(
            metavar="MARKS",
            help="Say what tells confused classes apart: CUB-200-2011's folder, or a CSV file of classes and their marks.",
        ),
    ] = None,
    skip_damaged: Annotated[
        bool, typer.Option("--skip-damaged", help="Leave out photos that cannot be read, and count them.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Write one HTML file about a network: what it confuses, where it looked, how sure it is; to look at, to send, to print."""
    if split not in (None, "test", "val", "train", "all"):
        raise ConfigError(f"--split: expected val, test, train or all, got '{split}'")
    refuse_foreign([out], flag="--out")
    from tqdm import tqdm

    from racnn.data.marks import read_marks
    from racnn.engine.advise import read_advice
    from racnn.engine.checkpoint import unfinished
    from racnn.engine.evaluator import is_data_of_run, measure_trained
    from racnn.evaluation.charts import read_log
    from racnn.evaluation.report import notes
    from racnn.report.page import report_page

    checkpoint = run / "best.pt" if run.is_dir() else run
    advice = read_advice(checkpoint.parent)
    trained = restore(checkpoint, device)
    known = None if marks is None else read_marks(marks, trained.class_names, flag="--marks")
    measured = measure_trained(
        trained,
        split=split or ("val" if data is None or is_data_of_run(trained, data) else None),
        root=data,
        skip_damaged=skip_damaged,
        early_exit=trained.early_exit is not None,
    )
    remarks = notes(measured.report, on_other_photos=data is not None)
    trained.caution = _measure_levels(trained, checkpoint, levels, measured, data, remarks)
    if where := unfinished(checkpoint.parent / "last.pt", trained.train_names):
        remarks.append(f"the training has not come to its end yet: it is {where}")
    with tqdm(desc="pictures", leave=False, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total or None
            bar.update(done - bar.n)

        page = report_page(
            trained,
            measured,
            title=title or f"{measured.report['dataset']}: {checkpoint.resolve().parent.name}",
            log=read_log(checkpoint.parent),
            advice=advice,
            remarks=remarks,
            marks=known,
            progress=progress,
        )
    write_text(out, page, flag="--out")
    print(f"written to {out}: {len(page.encode()) / 1e6:.1f} MB")


def _short_names(places: list[Path]) -> list[str]:
    """Return names that tell files apart: what of their paths is not the same for all.

    Raises:
        ConfigError: Two are the same file.
    """
    parts = [place.resolve().parts for place in places]
    if len(set(parts)) < len(parts):
        raise ConfigError("a network is named twice: expected different ones")
    start = 0
    while len({each[: start + 1] for each in parts}) == 1:
        start += 1
    names = ["/".join(each[start:]) for each in parts]
    shorter = [name.removesuffix("/best.pt").removesuffix(".jsonl") for name in names]
    return shorter if all(shorter) and len(set(shorter)) == len(shorter) else names


def _measure_levels(
    trained: Predictor,
    checkpoint: Path,
    levels: str | None,
    measured: Measured,
    data: Path | None,
    remarks: list[str],
    *,
    choose: bool = True,
) -> Caution | None:
    """Add to the report how sure answers are at the levels of a taxonomy, and return how careful they are.

    Without a taxonomy as it was chosen before, or, if there is something to ``choose`` by, by that of the run's configuration; None
    where there is neither. A choice that cannot be used any more is only remarked upon.
    """
    from racnn.engine.evaluator import data_of, is_data_of_run
    from racnn.engine.levels import choose_caution, combined
    from racnn.engine.predictor import network_digest
    from racnn.evaluation.levels import caution_file, levels_report, load_caution

    chosen = levels is None and caution_file(checkpoint).is_file()
    if not chosen and levels is None and (trained.config.data.levels is None or not choose):
        return None
    moved = data if data is not None and is_data_of_run(trained, data) else None
    own = data is None or moved is not None
    try:
        if chosen:
            caution = load_caution(checkpoint, network_digest(trained), trained.class_names)
        else:
            caution = choose_caution(
                trained, checkpoint, levels, lambda: measured.data if own else data_of(trained), moved
            )
    except DataError as error:
        if levels is not None:
            raise
        remarks.append(f"levels were not measured: {error}")
        return None
    in_sample = own and caution.chosen_by == "validation" and measured.report["split"] in ("val", "all")
    measured.report["levels"] = levels_report(caution, *combined(measured), in_sample=in_sample)
    return caution


def _refuse_same_file(files: Mapping[str, Path]) -> None:
    """Refuse two flags that would write the same file.

    Raises:
        ConfigError: There are such.
    """
    taken: dict[Path, str] = {}
    for flag, path in files.items():
        other = taken.setdefault(path.resolve(), flag)
        if other != flag and str(path) not in STREAMS:
            raise ConfigError(f"{other} {path}: is where {flag} writes; choose another file")


def _descriptors_file(class_names: list[str], measured: Measured) -> bytes:
    """Return a .safetensors file of the descriptors ``scale_s`` [N, D], ``label`` [N], and the names of photos and classes."""
    import safetensors.torch

    found = measured.predictions
    rows = {f"scale_{number}": each for number, each in enumerate(found.descriptors, start=1)}
    names = [record.name for record in measured.photos.records]
    about = {"photos": json.dumps(names), "class_names": json.dumps(class_names)}
    return safetensors.torch.save(rows | {"label": found.labels}, about)
