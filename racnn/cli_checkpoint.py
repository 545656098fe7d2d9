"""The commands on a finished checkpoint: say what it is, hand on its weights, name what is on photos."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shlex
import sys
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from racnn.errors import ConfigError, DataError, LeftOutError
from racnn.written import refuse_foreign, write_bytes, write_text

if TYPE_CHECKING:
    from racnn.engine.predictor import Predictor
    from racnn.portable.network import PortableNetwork

ONNX = ".onnx"
NUM_CHECKED = 8  # validation photos that an export is checked on

Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT", help="best.pt or last.pt of a run, or an exported .safetensors file."
    ),
]
MarksFile = Annotated[
    Path | None,
    typer.Option(
        metavar="MARKS",
        help="Say which marks usually tell the answer from the runner-up: CUB-200-2011's folder, or a CSV file of classes and their marks.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def restore_any(checkpoint: Path, device: str, *, levels: bool = False) -> Predictor | PortableNetwork:
    """Return the network of a checkpoint on a device by its name, or of an .onnx file, without torch."""
    if checkpoint.suffix == ONNX:
        from racnn.portable.network import open_onnx

        return open_onnx(checkpoint, device=device, levels=levels)
    return restore(checkpoint, device, levels=levels)


def restore(checkpoint: Path, device: str, *, levels: bool = False) -> Predictor:
    """Return the network of a checkpoint on a device by its name."""
    if checkpoint.suffix == ONNX:
        raise ConfigError(
            f"{checkpoint}: an .onnx file is for predict and visualize; expected the checkpoint it is of"
        )
    from racnn.engine.device import pick_device
    from racnn.engine.predictor import load

    return load(checkpoint, pick_device(device), levels=levels)


def inspect(
    checkpoint: Checkpoint,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what a checkpoint is: dataset, classes, network, how far it was trained, with what."""
    if checkpoint.suffix == ONNX:
        from racnn.portable.network import describe_onnx

        about = describe_onnx(checkpoint)
        print(json.dumps(about, indent=2) if as_json else _onnx_in_words(checkpoint, about))
        return
    from racnn.engine.checkpoint import describe, format_description

    found = describe(checkpoint)
    print(json.dumps(found, indent=2) if as_json else format_description(found))


def _onnx_in_words(file: Path, about: dict[str, Any]) -> str:
    """Return what an .onnx file says of itself, a line each."""
    checked, int8, stop, caution = (about[key] for key in ("checked", "int8", "early_exit", "caution"))
    names = about["class_names"]
    sizes = " / ".join(map(str, about["view_sizes"]))
    lines = {
        "file": f"{file.stat().st_size:,} bytes, export format {about['format']}, racnn {about['version']}",
        "weights": about["network"],
        "dataset": about["dataset"],
        "classes": f"{len(names)}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}",
        "network": f"{about['backbone']}, {about['scales']} looks, views of {sizes} px",
        "photos": f"{about['source']['resize']} to {about['source']['size']} px",
        "early exit": "not chosen before the export"
        if stop is None
        else "stops at a probability of "
        + ", ".join(f"{each:.2f}" if each <= 1.0 else "none" for each in stop),
        "levels": "not chosen before the export" if caution is None else ", ".join(caution["names"]),
        "checked": f"on {checked['photos']} photos in float32: off by at most {checked['probability']:.1e} in a probability, "
        f"{checked['box']:.1e} pixels in a box",
        "int8": "no"
        if int8 is None
        else f"{100 * int8['top1']:.1f} % right of {int8['photos']} validation photos, "
        f"in float32 {100 * int8['float32']:.1f} %",
    }
    return "\n".join([str(file), *(f"  {key:<13} {value}" for key, value in lines.items())])


def refuse_existing(out: Path, suffix: str, *, overwrite: bool) -> None:
    """Refuse to write an export under a name that does not say what it is, or that is taken.

    Raises:
        ConfigError: The suffix is another one, or something is there.
    """
    if any(0xD800 <= ord(character) < 0xE000 for character in str(out)):
        raise ConfigError(f"--out {out}: expected a name in UTF-8, or other programs cannot read it")
    if out.suffix != suffix:
        raise ConfigError(f"--out {out}: expected a name that ends with {suffix}")
    if os.path.lexists(out) and (out.is_dir() or not overwrite):
        hint = "a folder" if out.is_dir() else "exists already: replace an earlier export with --overwrite"
        raise ConfigError(f"--out {out}: {hint}")


def _card_file(out: Path) -> Path:
    return out.with_name(out.name + ".md")


def _card(checkpoint: Path, out: Path) -> partial[str]:
    """Return what makes the model card of a checkpoint that is handed on; refuse to put it in the place of somebody else's file."""
    from racnn.engine.advise import read_advice
    from racnn.engine.card import model_card
    from racnn.engine.checkpoint import open_checkpoint

    refuse_foreign([_card_file(out)], flag="--out")
    return partial(model_card, open_checkpoint(checkpoint), out.name, read_advice(checkpoint.parent))


def export_weights(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier file.")] = False,
) -> None:
    """Write a network's weights as .safetensors, with all that is needed to use them in its metadata."""
    from racnn.engine.checkpoint import SUFFIX
    from racnn.engine.predictor import export_trained

    refuse_existing(out, SUFFIX, overwrite=overwrite)
    card = _card(checkpoint, out)()
    export_trained(checkpoint, out, card)
    write_text(_card_file(out), card, flag="--out")
    print(
        f"written to {out}: {out.stat().st_size:,} bytes; what it is: {_card_file(out)}, racnn inspect {out}"
    )


def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="The .onnx file to write.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Where the run's dataset lies now; its validation photos check the file."),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Convolutions in whole numbers of 8 bits: smaller, faster, less exact."),
    ] = False,
    most_lost: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Points of top-1 on validation photos that --int8 may lose.  [default: 1]"
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier file.")] = False,
) -> None:
    """Write a network as one .onnx file: from the pixels of a photo of any size to names and places, checked on photos.

    Early exit and levels go into it where they were chosen before.
    """
    refuse_existing(out, ONNX, overwrite=overwrite)
    if most_lost is not None and not int8:
        raise ConfigError(f"--most-lost {most_lost:g}: belongs to --int8")
    if importlib.util.find_spec("onnxscript") is None or importlib.util.find_spec("onnxruntime") is None:
        raise ConfigError(
            "export: needs onnx, onnxscript and onnxruntime: pip install them, or the extra 'export'"
        )
    from racnn.engine.predictor import network_digest
    from racnn.evaluation.levels import caution_file, load_caution
    from racnn.export.int8 import MOST_LOST, photos_of
    from racnn.export.onnx_file import MOST_OFF, Int8, export_onnx, sample_photos
    from racnn.models.early_exit import early_exit_file, load_early_exit

    trained = restore(checkpoint, "cpu")
    if trained.early_exit is None and early_exit_file(checkpoint).is_file():
        trained.early_exit = load_early_exit(checkpoint, network_digest(trained))
    if caution_file(checkpoint).is_file():
        trained.caution = load_caution(checkpoint, network_digest(trained), trained.class_names)
    card = _card(checkpoint, out)
    whole_numbers = None
    if int8:
        whole_numbers = Int8(*photos_of(trained, data), MOST_LOST if most_lost is None else most_lost)
    photos = sample_photos(trained, data, NUM_CHECKED)
    content, about = export_onnx(trained, photos, lambda found: card(int8=found["int8"]), whole_numbers)
    write_bytes(out, content, flag="--out")
    write_text(_card_file(out), card(int8=about["int8"]), flag="--out")
    before = "before, in float32, " if int8 else ""
    print(
        "{before}checked on {photos} photos of {sizes} sizes: off by at most {probability:.1e} in a probability ({most:.0e} is let "
        "pass), {box:.1e} pixels in a box; from the photo on {from_photo:.1e}".format(
            **about["checked"], most=MOST_OFF, before=before
        )
    )
    if lost := about["int8"]:
        print(
            f"in whole numbers {100 * lost['top1']:.1f} % of {lost['photos']} validation photos are answered right, before "
            f"{100 * lost['float32']:.1f} %; {100 * lost['agree']:.1f} % are answered alike; on the photos above probabilities are off by up to "
            f"{lost['probability']:.2f}, boxes by {lost['box']:.1f} pixels"
        )
    print(f"written to {out}: {len(content) / 1e6:.1f} MB; what it is: {_card_file(out)}")
    print(f"next: {shlex.join(['racnn', 'predict', str(out)])} PHOTOS")


def predict(
    checkpoint: Checkpoint,
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTOS", help="Photos, or folders of photos.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    early_exit: Annotated[
        bool,
        typer.Option(
            "--early-exit",
            help="Look closer only at photos that need it; `racnn evaluate CHECKPOINT --early-exit` comes first.",
        ),
    ] = False,
    levels: Annotated[
        bool,
        typer.Option(
            "--levels",
            help="Name the group that is sure, such as a genus; `racnn evaluate CHECKPOINT --levels TAXONOMY` comes first.",
        ),
    ] = False,
    marks: MarksFile = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="Answers a photo; default: 3 in JSON, 1 in words.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Photos at a time; default: 32. An .onnx file takes one.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read photos ahead.")] = 2,
    device: Device = "auto",
) -> None:
    """Name what is on photos, in order and at constant memory. Photos that cannot be read are named on stderr."""
    if as_json and as_csv:
        raise ConfigError("--json and --csv exclude each other")
    if levels and early_exit:
        raise ConfigError(
            "--levels and --early-exit exclude each other: what is sure is chosen for all looks together"
        )
    if batch_size is not None and checkpoint.suffix == ONNX:
        raise ConfigError(f"--batch-size {batch_size}: {checkpoint}: an .onnx file takes photos one by one")
    if marks is not None and as_csv:
        raise ConfigError("--marks and --csv exclude each other: marks are for readers, in words or --json")
    from tqdm import tqdm

    from racnn.data.listing import describe_passed, iter_photos
    from racnn.data.marks import NONE_TELLS, in_plain_types, in_words, read_marks

    trained = restore_any(checkpoint, device, levels=levels)
    known = None if marks is None else read_marks(marks, trained.class_names, flag="--marks")
    early = _early_exit_of(trained, checkpoint) if early_exit else None
    answers = top or (3 if as_json else 1)
    asked = answers if known is None else max(answers, 2)
    options: dict[str, Any] = {"workers": workers, "early": early, "top": asked}
    options |= {} if batch_size is None else {"batch_size": batch_size}
    rows = trained.stream(photos, **options)
    for place in photos:
        if not place.exists():  # before the head of a table
            raise DataError(f"{place}: no such photo or folder")
    regions = [f"region_{number}" for number in range(1, trained.scales)]
    table = csv.writer(sys.stdout, lineterminator="\n")
    if as_csv:
        sure = ["level", "sure", "sure_probability"] if levels else []
        table.writerow(["photo", "name", "probability", "scales", *regions, *sure, "error"])
    damaged = total = 0
    bar = tqdm(rows, desc="photos", unit="photo", leave=False, disable=None)
    for row in bar:
        total += 1
        if "error" in row:
            damaged += 1
            bar.write(f"left out {row['error']}", file=sys.stderr)
        elif known is not None and len(row["top"]) > 1:
            answer, second = (each["name"] for each in row["top"][:2])
            found = known.telling(answer, second)
            row["marks"] = in_plain_types(found, second)
            row["top"] = row["top"][:answers]
        if as_json:
            bar.write(json.dumps(row), file=sys.stdout)
        elif as_csv:
            table.writerow(_csv_fields(row, len(regions), levels=levels))
        elif "error" not in row:
            looks = f"{row['scales']} look{'' if row['scales'] == 1 else 's'}"
            said = ", ".join(f"{each['name']}  {100 * each['probability']:.1f} %" for each in row["top"])
            bar.write(
                f"{row['photo']}  {_sure_in_words(row['sure'], said) if levels else said}  {looks}",
                file=sys.stdout,
            )
            if "marks" in row:
                told = f", usually: {in_words(found)}" if found else f": {NONE_TELLS}"
                bar.write(f"    {answer} rather than {second}{told}", file=sys.stdout)
    passed: Counter[str] = Counter()
    with suppress(DataError, OSError):  # the answers are there, whatever has become of the folder
        for _ in iter_photos([place for place in photos if place.is_dir()], passed):
            pass
    if passed:
        print(describe_passed(passed), file=sys.stderr)
    if damaged:
        failed = LeftOutError if damaged < total else DataError
        raise failed(f"{damaged} of {total} photos could not be read")


def _early_exit_of(trained: Any, checkpoint: Path) -> Any:
    """Return when a network is to stop looking.

    Raises:
        ConfigError: It cannot, or nothing was chosen.
    """
    if checkpoint.suffix == ONNX:
        if trained.early_exit is None:
            raise ConfigError(
                f"--early-exit: {checkpoint}: nothing was chosen before the export; `racnn evaluate CHECKPOINT --early-exit`, "
                "then export anew"
            )
        return trained.early_exit
    from racnn.engine.evaluator import refuse_early_exit
    from racnn.engine.predictor import network_digest
    from racnn.models.early_exit import load_early_exit

    refuse_early_exit(trained)
    return trained.early_exit or load_early_exit(checkpoint, network_digest(trained))


def _sure_in_words(sure: dict[str, Any], said: str) -> str:
    """Return what is sure of a photo, and, where that is not the class that it is most probably of, that class."""
    if sure["level"] == "unsure":
        return f"not sure; perhaps {said}"
    known = f"{sure['name']}  {100 * sure['probability']:.1f} %"
    return known if said.startswith(f"{sure['name']}  ") else f"{known} ({sure['level']}); perhaps {said}"


def _csv_fields(row: dict[str, Any], num_regions: int, *, levels: bool) -> list[Any]:
    """Return the fields of a photo in a table; a box is four numbers in one field."""
    if "error" in row:
        return [row["photo"], "", "", "", *[""] * (num_regions + 3 * levels), row["error"]]
    boxes = [" ".join(f"{value:g}" for value in box) for box in row["boxes_xyxy"]]
    boxes += [""] * (num_regions - len(boxes))
    best = row["top"][0]
    sure = [row["sure"][key] for key in ("level", "name", "probability")] if levels else []
    return [row["photo"], best["name"], best["probability"], row["scales"], *boxes, *sure, ""]
