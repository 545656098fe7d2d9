"""The command line. Torch is imported inside the commands, so that help comes at once."""

from __future__ import annotations

import atexit
import codecs
import io
import os
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from racnn import __version__, cli_checkpoint, cli_data, cli_evaluate, cli_serve, cli_visualize
from racnn.cli_checkpoint import Device, restore
from racnn.cli_visualize import NUM_DRAWN, draw, draw_validation, picture_names, refuse_pictures
from racnn.errors import ConfigError, ExportError, LeftOutError, TrainingError, UserError
from racnn.written import refuse_foreign, write_json, write_text

if TYPE_CHECKING:
    from racnn.config import Config

app = typer.Typer(
    help="RA-CNN: fine-grained recognition that looks at the whole photo, zooms to where it matters, and looks again.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help, and mistakes in one style: see run_with_messages
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

app.add_typer(cli_data.app, name="data")

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the configuration; repeatable."),
]
BackboneName = Annotated[
    str | None, typer.Option(help="Network to look with, such as timm/resnet50 or vgg16.")
]
Weights = Annotated[str | None, typer.Option(help="What the network starts from: imagenet, or a file.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from last.pt of the folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in the folder.")]


def main() -> None:
    """Run the command line."""
    codecs.register_error("racnn.names", _any_name)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="racnn.names")
    try:
        run_with_messages(partial(app, standalone_mode=False))
        raise SystemExit(0)
    except SystemExit as end:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            _end_at_once(end)
        raise


def _any_name(error: UnicodeError) -> tuple[str | bytes, int]:
    """Print the name of a file byte for byte, whatever its bytes are; of other characters that cannot be printed the code."""
    assert isinstance(error, UnicodeEncodeError)
    found = error.object[error.start : error.end]
    if all(0xDC80 <= ord(character) <= 0xDCFF for character in found):
        return bytes(ord(character) - 0xDC00 for character in found), error.end
    return codecs.backslashreplace_errors(error)


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
    prefix = "error"
    try:
        code = command()
        if isinstance(code, int):  # of a command that has said all there is to say, such as --help
            raise SystemExit(code)
        return
    except UserError as error:
        message, code = str(error), 1 if isinstance(error, LeftOutError) else 2
        # torch wraps what a loader's worker raised in that worker's traceback
        if message.startswith("Caught "):
            message = message.strip().rpartition("racnn.errors.")[2].partition(": ")[2]
    except TrainingError as error:
        message, code = str(error), 1
        prefix = "training stopped"
    except ExportError as error:
        message, code = str(error), 1
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] == "racnn":  # our own mistake
            raise
        message, code = (
            f"this needs {error.name}, which is not installed: pip install -r requirements.txt. "
            "Without, .onnx files are answered: racnn predict, visualize, inspect, serve",
            2,
        )
    except BrokenPipeError:  # the reader of our output had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
        raise SystemExit(1) from None
    except RuntimeError as error:
        message, code = str(error), 1
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not have been imported
            message = ". ".join(message.split(". ")[:2]).rstrip(".")
            message += "; see what else uses the GPU, or choose another --device"
        elif message.startswith("DataLoader worker"):
            message += "\na process that reads photos died: too little memory, or too small a /dev/shm; "
            message += "try --set data.num_workers=0"
        else:
            raise
    except OSError as error:  # a full disk, a folder that cannot be written
        message, code = str(error), 1
    except Exception as error:
        if not hasattr(error, "format_message"):  # a mistake in the words of a command, of typer's click
            raise
        if type(error).__name__ == "NoArgsIsHelpError":  # the message is the help
            print(error.format_message())
            raise SystemExit(2) from None
        message, code = _usage_mistake(error), 2
    print(f"{prefix}: {message}", file=sys.stderr)
    raise SystemExit(code)


def _usage_mistake(error: Any) -> str:
    """Return what is wrong with the words of a command, and where help is."""
    context = getattr(error, "ctx", None)
    command = "racnn" if context is None else context.command_path
    return f"{error.format_message().rstrip('.')}; see {command} --help"


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


@app.command(short_help="Train a network to tell classes apart.")
def train(
    photos: Annotated[
        str | None,
        typer.Argument(metavar="PHOTOS", help=cli_data.PHOTOS, show_default=False),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="quick: minutes, on a frozen trunk (default); full: trains everything; paper: as published."
        ),
    ] = None,
    backbone: BackboneName = None,
    weights: Weights = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of each classification phase.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Photos at a time.")] = None,
    lr: Annotated[
        float | None, typer.Option(min=0.0, help="Learning rate of each classification phase.")
    ] = None,
    limit: Annotated[
        str | None,
        typer.Option(
            "--time",
            metavar="DURATION",
            help="End within about so long, such as 30m: with fewer epochs, or smaller views where nothing takes steps.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Instead of PHOTOS and a recipe: a YAML file of overrides, or the name of one in configs/."
        ),
    ] = None,
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
    """Train a network to tell the classes of PHOTOS, or as a configuration says."""
    from racnn.config import load_config
    from racnn.recipes import config_file, recipe_config

    settings = list(settings or [])
    if deterministic:
        settings.append("run.deterministic=true")
    if out is not None:
        settings.append(f"run.out={out}")
    options: dict[str, Any] = {
        "backbone": backbone,
        "weights": weights,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
    }
    if limit is not None and epochs is not None:
        raise ConfigError("--time and --epochs exclude each other")
    if photos is not None:
        if config is not None:
            raise ConfigError(
                "PHOTOS and --config exclude each other: --recipe chooses how to train on PHOTOS"
            )
        loaded = recipe_config(photos, recipe or "quick", settings, **options)
        if limit is not None:
            settings += _settings_in_time(loaded, limit, device, resume=resume, overwrite=overwrite)
            loaded = recipe_config(photos, recipe or "quick", settings, **options)
        elif not resume and loaded.steps_by_key():
            _print_estimate(loaded, device, overwrite=overwrite)
    elif config is not None:
        if idle := [
            name for name, value in {"recipe": recipe, "time": limit, **options}.items() if value is not None
        ]:
            flag = f"--{idle[0].replace('_', '-')}"
            raise ConfigError(f"{flag}: belongs to PHOTOS; a configuration is changed by --set")
        loaded = load_config(config_file(config), settings)
    else:
        raise ConfigError("expected PHOTOS to train on, or --config FILE")
    best, report = _fit(loaded, device, resume=resume, overwrite=overwrite)
    from racnn.engine.distributed import speaks
    from racnn.evaluation.report import format_gain, format_report

    if not speaks():
        return
    print(f"\nvalidation photos, {best}:\n{format_report(report)}")
    _print_diagnosis(report, loaded)
    if loaded.data.levels is not None:
        try:
            print(f"\n{_choose_caution(best, device)}")
        except UserError as error:  # the training stands
            print(f"\nlevels were not measured: {error}")
    print(f"\n{format_gain(report, loaded.model)}")
    try:
        print(f"pictures of where it looked: {draw_validation(best, device)}")
    except (UserError, OSError, RuntimeError) as error:  # the training stands
        print(f"no pictures were drawn: {error}")
    print(f"\nnext: racnn evaluate {best}  # on test photos\n      racnn report {best.parent}")


@app.command(short_help="Say whether looking closer pays.")
def advise(
    photos: Annotated[str, typer.Argument(metavar="PHOTOS", help=cli_data.PHOTOS)],
    backbone: BackboneName = None,
    weights: Weights = None,
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="Folder for advise.json and advise.svg.")] = Path("advise"),
    device: Device = "auto",
) -> None:
    """Say whether looking closer pays on PHOTOS, at which sizes, beside what costs as much; in minutes, nothing is trained."""
    from racnn.engine.advise import advise as measure
    from racnn.engine.advise import format_advice, picture
    from racnn.engine.device import pick_device
    from racnn.recipes import recipe_config

    files = out / "advise.json", out / "advise.svg"
    refuse_foreign(files, flag="--out")
    given = ["data.val_fraction=0.3", *(settings or [])]
    config = recipe_config(photos, "quick", given, backbone=backbone, weights=weights)
    report = measure(config, device=pick_device(device))
    same = [] if backbone is None else ["--backbone", backbone]
    same += [] if weights is None else ["--weights", weights]
    same += [word for setting in settings or [] for word in ("--set", setting)]
    print(f"\n{format_advice(report, shlex.join(['racnn', 'train', photos, *same]))}")
    write_json(files[0], report, flag="--out")
    write_text(files[1], picture(report), flag="--out")
    print(f"\npicture: {files[1]}")


@app.command("config", short_help="Print a configuration in full.")
def show_config(
    config: Annotated[
        Path,
        typer.Argument(metavar="CONFIG", help="A YAML file of overrides, or the name of one in configs/."),
    ],
    settings: Settings = None,
) -> None:
    """Print a configuration in full, as YAML, with every phase of its schedule by the key that --set takes."""
    import yaml

    from racnn.config import dump_config, load_config
    from racnn.recipes import config_file

    loaded = load_config(config_file(config), settings or [])
    print(yaml.safe_dump(dump_config(loaded), sort_keys=False), end="")
    for key, phase in loaded.phases_by_key().items():
        scales = " of scale " + ", ".join(map(str, phase.scales)) if phase.scales else ""
        print(f"# {key}: {phase.kind}{scales}, {phase.num_epochs()} epoch{'s' * (phase.num_epochs() > 1)}")


app.command(short_help="Measure a checkpoint on photos.")(cli_evaluate.evaluate)
app.command(short_help="Compare networks on the same photos.")(cli_evaluate.compare)
app.command(short_help="Write one HTML file about a network.")(cli_evaluate.report)


app.command(short_help="Draw where a network looked, and why.")(cli_visualize.visualize)
app.command(short_help="Name what is on photos.")(cli_checkpoint.predict)
app.command(short_help="Serve a page to drop a photo on.")(cli_serve.serve)
app.command(short_help="Say what a checkpoint is.")(cli_checkpoint.inspect)
app.command(short_help="Write a network as one .onnx file.")(cli_checkpoint.export)
app.command(short_help="Write weights as .safetensors.")(cli_checkpoint.export_weights)


@app.command(short_help="See all of it on drawn birds, in minutes.")
def demo(
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/demo"),
    settings: Settings = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> None:
    """Train on the built-in set of drawn birds, measure, and show where the network looked, in a few minutes."""
    from racnn.config import load_config
    from racnn.data import build_data
    from racnn.recipes import packaged

    loaded = load_config(packaged("demo.yaml"), [*(settings or []), f"run.out={out}"])
    test = build_data(loaded.data, seed=0)
    records = test.splits["test"].records[:NUM_DRAWN]
    photos = [Path(f"{record.name}_{test.class_names[record.label]}.png") for record in records]
    names = picture_names(photos)
    refuse_foreign([out / "evaluation.json"], flag="--out")
    refuse_pictures(out / "pictures", names)
    best, validation = _fit(loaded, device, resume=resume, overwrite=overwrite)
    from racnn.engine.evaluator import evaluate_trained
    from racnn.evaluation.report import format_report

    trained = restore(best, device)
    report = evaluate_trained(trained, split="test")
    write_json(out / "evaluation.json", report, flag="--out")
    load = test.splits["test"].catalog.load
    drawings = (
        (photo, name, load(record)) for photo, name, record in zip(photos, names, records, strict=True)
    )
    draw(trained, drawings, out / "pictures")
    print(f"\n{report['num_images']} held-out drawings:\n{format_report(report)}")
    _print_diagnosis(validation, loaded)
    print(f"\nreport       {out / 'evaluation.json'}\npictures     {out / 'pictures'}\nnetwork      {best}")
    print(f"curves       tensorboard --logdir {out / 'tensorboard'}")


def _settings_in_time(config: Config, limit: str, device: str, *, resume: bool, overwrite: bool) -> list[str]:
    """Return the settings by which a recipe ends within a time, or by which the run to go on with was to."""
    from racnn.config import load_config
    from racnn.durations import parse_duration
    from racnn.engine.device import pick_device
    from racnn.engine.estimate import settings_in_time
    from racnn.models.backbone import suitable_view

    parse_duration(limit, flag="--time")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("--time: is measured by one process; give several of them --epochs")
    stored = Path(config.run.out) / "config.yaml"
    if stored.exists() != resume and not overwrite:
        return []  # it will be refused at once
    if resume:
        print("--time: the run goes on with the epochs and views that it began with")
        before = load_config(stored)
        views = f"model.view_sizes=[{', '.join(map(str, before.model.view_sizes))}]"
        return [views, *(f"{key}.epochs={p.num_epochs()}" for key, p in before.steps_by_key().items())]
    print("measuring on a few photos ...", flush=True)
    found = settings_in_time(
        config,
        limit,
        device=pick_device(device),
        suit=partial(suitable_view, config.model.backbone),
    )
    print(f"--time {limit}: " + (", ".join(found) or "the recipe as it is fits"))
    return found


def _print_estimate(config: Config, device: str, *, overwrite: bool) -> None:
    """Say what a training will do and how long that takes here, unless several processes share the work."""
    if not overwrite and (Path(config.run.out) / "config.yaml").exists():
        return  # it will be refused at once
    from racnn.engine.device import pick_device
    from racnn.engine.estimate import estimate, format_estimate

    if os.environ.get("WORLD_SIZE", "1") == "1":
        print("measuring on a few photos ...", flush=True)
        print(format_estimate(estimate(config, device=pick_device(device))), flush=True)


def _fit(config: Config, device: str, *, resume: bool, overwrite: bool) -> tuple[Path, dict[str, Any]]:
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    from racnn.engine.device import pick_device
    from racnn.engine.trainer import fit

    return fit(config, device=pick_device(device), resume=resume, overwrite=overwrite)


def _print_diagnosis(report: dict[str, Any], config: Config) -> None:
    """Say what did not pay in a run, as its validation photos show it, and what to try."""
    from racnn.evaluation.diagnostics import diagnose

    for line in diagnose(report, config):
        print(f"\nnote: {line}")


def _choose_caution(best: Path, device: str) -> str:
    """Choose how careful answers are to be at the levels of a run's classes, for `racnn predict --levels`; return it in words."""
    from racnn.engine.evaluator import data_of, predict_split
    from racnn.engine.levels import choose_caution
    from racnn.evaluation.levels import caution_file, caution_json, format_levels, levels_report
    from racnn.models.family import combined_log_probs

    trained = restore(best, device)
    data = data_of(trained)
    caution = choose_caution(trained, best, None, lambda: data)
    found = predict_split(trained, data.splits["val"])
    measured = levels_report(
        caution,
        combined_log_probs(found.logits, found.fused),
        found.labels,
        in_sample=caution.chosen_by == "validation",
    )
    write_json(caution_file(best), caution_json(caution), flag="--out")
    return f"{format_levels(measured)}\n\nfor `racnn predict --levels`: {caution_file(best)}"
