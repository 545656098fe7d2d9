"""The command line. Torch is imported inside the commands, so that help comes at once."""

from __future__ import annotations

import atexit
import io
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from racnn import __version__, cli_checkpoint, cli_data, cli_predict
from racnn.cli_checkpoint import Checkpoint
from racnn.errors import ConfigError, DataError, TrainingError, UserError

if TYPE_CHECKING:
    import numpy as np

    from racnn.config import Config
    from racnn.engine.inference import Trained

app = typer.Typer(
    help="RA-CNN: fine-grained recognition that looks at the whole photo, zooms to where it matters, and looks again.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(cli_data.app, name="data")

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the configuration; repeatable."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from last.pt of the folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in the folder.")]


def main() -> None:
    """Run the command line."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files and classes may hold any bytes
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        run_with_messages(app)
    except SystemExit as end:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            _end_at_once(end)
        raise


def _end_at_once(end: SystemExit) -> NoReturn:
    """End one of several processes as Python would, but without the destructors of C++ libraries.

    DistributedDataParallel of torch 2.13 leaves threads of gloo behind, with which they abort now and then, and
    torchrun would call a finished training failed.
    """
    assert end.code is None or isinstance(end.code, int), "a text is not a code to leave with"
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(end.code or 0)


def run_with_messages(command: Callable[[], Any]) -> None:
    """Run a command; a user's mistake ends with one message and exit code 2, a failed training with 1."""
    try:
        command()
    except UserError as error:
        message = str(error)
        # torch wraps what a loader's worker raised in that worker's traceback
        if message.startswith("Caught "):
            message = message.strip().rpartition("racnn.errors.")[2].partition(": ")[2]
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2) from None
    except TrainingError as error:
        print(f"training stopped: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except BrokenPipeError:  # the reader of our output had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
        raise SystemExit(1) from None
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not have been imported
            print(
                f"error: {'. '.join(str(error).split('. ')[:2]).rstrip('.')}; see what else uses the GPU, or choose another --device",
                file=sys.stderr,
            )
            raise SystemExit(1) from None
        if not str(error).startswith("DataLoader worker"):
            raise
        print(
            f"error: {error}\na process that reads photos died: too little memory, or too small a /dev/shm; "
            "try --set data.num_workers=0",
            file=sys.stderr,
        )
        raise SystemExit(1) from None
    except OSError as error:  # a full disk, a folder that cannot be written
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _show_version(value: bool) -> None:
    if value:
        print(f"racnn {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


@app.command()
def train(
    config: Annotated[Path, typer.Option(help="A YAML file of overrides, see configs/.")],
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; default: run.out of the configuration.")
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bits every time, on a GPU too; slower there.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Train a network as a configuration says."""
    if deterministic:
        settings = [*(settings or []), "run.deterministic=true"]
    loaded = _load(config, settings, out)
    best, report = _fit(loaded, device, resume=resume, overwrite=overwrite)
    from racnn.engine.distributed import speaks
    from racnn.report import format_report

    if not speaks():
        return
    print(f"\nvalidation photos, {best}:\n{format_report(report)}")
    _print_verdict(report, loaded)
    print(f"\nnext: racnn evaluate {best}")


@app.command("config")
def show_config(
    config: Annotated[Path, typer.Argument(help="A YAML file of overrides, see configs/.")],
    settings: Settings = None,
) -> None:
    """Print a configuration in full, as YAML, with every phase of its schedule by the key that --set takes."""
    import yaml

    from racnn.config import dump_config, load_config

    loaded = load_config(config, settings or [])
    print(yaml.safe_dump(dump_config(loaded), sort_keys=False), end="")
    for key, phase in loaded.phases_by_key().items():
        scales = " of scale " + ", ".join(map(str, phase.scales)) if phase.scales else ""
        print(f"# {key}: {phase.kind}{scales}, {phase.epochs} epoch{'s' * (phase.epochs > 1)}")


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    split: Annotated[str, typer.Option(help="test, val or train.")] = "test",
    data: Annotated[
        Path | None, typer.Option(help="The dataset's folder, if it moved since training.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the report to this file too.")
    ] = None,
    skip_damaged: Annotated[
        bool, typer.Option("--skip-damaged", help="Leave out photos that cannot be read, and count them.")
    ] = False,
    early_exit: Annotated[
        bool,
        typer.Option(
            "--early-exit",
            help="Also choose, on the validation photos, when a photo needs no further look, for `racnn predict`.",
        ),
    ] = False,
    device: Device = "auto",
) -> None:
    """Measure a checkpoint on a split of its dataset."""
    if split not in ("test", "val", "train"):
        raise ConfigError(f"--split: expected test, val or train, got '{split}'")
    from racnn.engine.inference import evaluate_trained
    from racnn.report import format_report

    trained = _restore(checkpoint, device)
    report = evaluate_trained(
        trained, split=split, root=data, skip_damaged=skip_damaged, early_exit=early_exit
    )

    print(format_report(report))
    if early_exit:
        from racnn.engine.early_exit import early_exit_file, format_early_exit

        choice = early_exit_file(checkpoint)
        _write_json(choice, report["early_exit"]["choice"])
        print(f"\n{format_early_exit(report)}\n\nfor `racnn predict --early-exit`: {choice}")
    if report["num_skipped"]:
        print(f"\n{report['num_skipped']} damaged photos of the data set were left out")
    if json_file is not None:
        _write_json(json_file, report)
        print(f"\nwritten to {json_file}")


@app.command()
def visualize(
    checkpoint: Checkpoint,
    photos: Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures and regions.json.")] = Path("visualize"),
    limit: Annotated[
        int | None, typer.Option(min=1, help="Draw so many photos, taken evenly from all of them.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Show where a network looked: one picture a photo, and regions.json with the boxes in the photo's pixels."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; expected a folder for the pictures")
    from racnn.data.listing import find_photos
    from racnn.data.photos import read_photo

    paths = find_photos(photos)
    if limit is not None and limit < len(paths):  # the first ones would all be of the same class
        paths = [paths[i * len(paths) // limit] for i in range(limit)]
    damaged: list[str] = []

    def readable() -> Iterable[tuple[Path, np.ndarray]]:
        for path in paths:
            try:
                yield path, read_photo(path)
            except DataError as error:
                damaged.append(str(error))

    several = len({path.parent for path in paths}) > 1
    rows = _draw(_restore(checkpoint, device), readable(), out, name_folders=several)
    print(f"{len(rows)} pictures and regions.json in {out}")
    if older := {path.name for path in out.glob("*.png")} - {row["picture"] for row in rows}:
        print(f"{len(older)} other pictures were there before, and are not in regions.json")
    if damaged:
        raise DataError(f"{len(damaged)} of {len(paths)} photos were left out:\n" + "\n".join(damaged))


app.command()(cli_predict.predict)
app.command()(cli_checkpoint.inspect)
app.command()(cli_checkpoint.export_weights)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/demo"),
    settings: Settings = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> None:
    """Train on the built-in set of drawn birds, measure, and show where the network looked, in a few minutes."""
    from racnn.config import load_config

    loaded = load_config(_config_file("demo.yaml"), [*(settings or []), f"run.out={out}"])
    best, validation = _fit(loaded, device, resume=resume, overwrite=overwrite)
    from racnn.data import build_data
    from racnn.engine.inference import evaluate_trained
    from racnn.report import format_report

    trained = _restore(best, device)
    report = evaluate_trained(trained, split="test")
    _write_json(out / "evaluation.json", report)
    test = build_data(trained.config.data, seed=0).splits["test"]
    drawings = (
        (Path(f"{record.name}_{trained.class_names[record.label]}.png"), test.catalog.load(record))
        for record in test.records[:16]
    )
    _draw(trained, drawings, out / "pictures")
    print(f"\n{report['num_images']} held-out drawings:\n{format_report(report)}")
    _print_verdict(validation, loaded)
    print(f"\nreport       {out / 'evaluation.json'}\npictures     {out / 'pictures'}\nnetwork      {best}")
    print(f"curves       tensorboard --logdir {out / 'tensorboard'}")


def _load(config: Path, settings: list[str] | None, out: Path | None) -> Config:
    from racnn.config import load_config

    last = [f"run.out={out}"] if out is not None else []
    return load_config(config, [*(settings or []), *last])


def _fit(config: Config, device: str, *, resume: bool, overwrite: bool) -> tuple[Path, dict[str, Any]]:
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    from racnn.engine.precision import pick_device
    from racnn.engine.trainer import fit

    return fit(config, device=pick_device(device), resume=resume, overwrite=overwrite)


def _print_verdict(report: dict[str, Any], config: Config) -> None:
    """Say what did not pay in a run, as its validation photos show it, and what to try."""
    from racnn.engine.remarks import verdict

    for line in verdict(report, config):
        print(f"\nnote: {line}")


def _draw(
    trained: Trained, photos: Iterable[tuple[Path, np.ndarray]], out: Path, *, name_folders: bool = False
) -> list[dict[str, Any]]:
    """Write one picture a photo, and regions.json; ``name_folders``: a picture's name begins with its photo's folder."""
    from racnn.engine.inference import look

    out.mkdir(parents=True, exist_ok=True)
    rows = []
    taken: set[str] = set()
    for path, photo in photos:
        picture, row = look(trained, photo)
        name = _free_name(f"{path.parent.name}_{path.stem}" if name_folders else path.stem, taken)
        picture.save(out / f"{name}.png")
        rows.append({"photo": str(path), "picture": f"{name}.png", **row})
    _write_json(out / "regions.json", rows)
    return rows


def _free_name(stem: str, taken: set[str]) -> str:
    """Return a file name that no earlier photo of this call has."""
    name, number = stem, 2
    while name in taken:
        name, number = f"{stem}_{number}", number + 1
    taken.add(name)
    return name


def _restore(checkpoint: Path, device: str) -> Trained:
    from racnn.engine.inference import load_trained
    from racnn.engine.precision import pick_device

    return load_trained(checkpoint, pick_device(device))


def _config_file(name: str) -> Path:
    """Return a configuration that comes with the program, installed or in a checkout."""
    package = Path(__file__).parent
    for folder in (package.parent / "configs", Path(sys.prefix) / "share" / "racnn" / "configs"):
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(f"{name}: not found beside the installed package")


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
