"""Compare variants of a configuration over seeds: every row of an experiment's table, from one YAML file.

    python tools/study.py STUDY.yaml --out studies/NAME --set data.root=PATH/TO/CUB_200_2011
    python tools/study.py STUDY.yaml --out studies/NAME --only peak --seed 1        one row again
    python tools/study.py STUDY.yaml --out studies/NAME --only recipe --split test  finalists, once, at the end

A study names a configuration, changes for all (``set``), seeds and variants; a variant is a list of ``key=value``
changes, and may name another configuration or end after so many entries of its schedule (``stages``):

    config: ../configs/cub10_vgg16_cpu.yaml
    set: [data.batch_size=8]
    seeds: [0, 1, 2]
    variants:
      recipe: {}
      peak: {set: [schedule.1.target=peak, schedule.1.trim=0]}
      two looks: {stages: 3}
      baseline: {config: ../configs/cub10_vgg16_cpu_one_scale.yaml}

Every entry of a schedule is a stage with a folder of its own, named by a hash of all that leads to it: variants that
agree up to there share it, and a study that was stopped goes on where it was. Rows are written to ``rows.csv`` and a
table of means over seeds to ``table.md``. Studies given the same ``--stages`` share their stages too.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import io
import json
import os
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from racnn.cli import run_with_messages
from racnn.config import Config, dump_config, load_config, parse_config
from racnn.errors import ConfigError, did_you_mean
from racnn.plain_yaml import read_yaml
from racnn.written import refuse_blocked, refuse_foreign, write_text

if TYPE_CHECKING:
    import torch

FREE = {"run": ("out", "save_every", "log_every", "num_preview"), "data": ("root", "num_workers", "cache")}
OWN_PHOTOS = (
    "folder",
    "manifest",
)  # data sets that are whatever lies in data.root; the others are the same anywhere
OF_THE_CUT = ("zoom_from", "mask", "steepness")  # keys of model that do nothing before there is a second look
STATE = "stage.json"
OWN = ("run.seed", "run.out")  # given by the study itself
FIRST_COLUMNS = ("variant", "seed", "split", "config", "seconds")
SHOWN = {  # columns of the table: name in rows.csv, digits, factor
    "scale 1": ("top1_scale_1", 1, 100),
    "scale 2": ("top1_scale_2", 1, 100),
    "scale 3": ("top1_scale_3", 1, 100),
    "mean": ("top1_mean", 1, 100),
    "fused": ("top1_fused", 1, 100),
    "log p 2": ("log_prob_scale_2", 3, 1),
    "log p 3": ("log_prob_scale_3", 3, 1),
    "IoU 1": ("region_1_iou", 2, 1),
    "centred": ("region_1_iou_centred", 2, 1),
    "side 1": ("region_1_tl_mean", 2, 1),
    "part 2": ("region_2_part_hit", 1, 100),
    "side 2": ("region_2_tl_mean", 2, 1),
    "at bound": ("region_1_at_bound", 1, 100),
    "minutes": ("seconds", 0, 1 / 60),
}


@dataclass
class Study:
    """What a study file says.

    Attributes:
        config: The configuration of variants that name no other.
        changes: For all variants, ``key=value``.
        seeds: Seeds of every variant.
        variants: For each name its configuration, its changes, and after how many entries of the schedule it ends.
    """

    config: Path
    changes: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    variants: dict[str, tuple[Path, list[str], int | None]] = field(default_factory=dict)

    def resolve(self, name: str, seed: int, more: list[str]) -> Config:
        """Return the configuration of a variant and seed."""
        path, changes, stages = self.variants[name]
        config = load_config(path, [*self.changes, *changes, *more, f"run.seed={seed}"])
        if stages is not None and stages > len(config.schedule):
            raise ConfigError(
                f"variants.{name}: stages: {stages}, but the schedule of {path} has {len(config.schedule)} entries"
            )
        return config if stages is None else stages_of(config)[stages - 1]


def read_study(path: Path) -> Study:
    """Read a study file; paths in it are relative to it.

    Raises:
        ConfigError: A key is unknown or missing, or not of its type.
    """
    values = read_yaml(path)
    known = ("config", "set", "seeds", "variants")
    _refuse_unknown(values, known, path)
    variants, seeds = values.get("variants"), values.get("seeds", [0])
    if not isinstance(variants, dict) or not variants:
        raise ConfigError(f"{path}: expected 'variants', at least one by name")
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ConfigError(f"{path}: seeds: expected a list of whole numbers, got {seeds}")
    config = _config_path(values, path, path)
    study = Study(config, _changes(values, path), seeds)
    for name, variant in variants.items():
        variant = variant or {}
        where = f"{path}: variants.{name}"
        if not isinstance(variant, dict):
            raise ConfigError(f"{where}: expected 'set', 'config' and 'stages', got {variant!r}")
        _refuse_unknown(variant, ("config", "set", "stages"), where)
        other = _config_path(variant, path, where) if "config" in variant else config
        stages = variant.get("stages")
        if stages is not None and (type(stages) is not int or stages < 1):
            raise ConfigError(f"{where}: stages: expected a whole number from 1, got {stages!r}")
        study.variants[str(name)] = (other, _changes(variant, where), stages)
    return study


def _refuse_unknown(values: dict[str, Any], known: tuple[str, ...], where: object) -> None:
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}: unknown key '{key}'{did_you_mean(str(key), known)}")


def _config_path(values: dict[str, Any], study: Path, where: object) -> Path:
    name = values.get("config")
    if not isinstance(name, str):
        raise ConfigError(f"{where}: config: expected the path of a configuration, got {name!r}")
    return study.parent / name


def _changes(values: dict[str, Any], where: object) -> list[str]:
    changes = values.get("set", [])
    if not isinstance(changes, list) or not all(isinstance(change, str) for change in changes):
        raise ConfigError(f"{where}: set: expected a list of key=value, got {changes!r}")
    return _refuse_own(changes, where)


def _refuse_own(changes: list[str], where: object) -> list[str]:
    for change in changes:
        if change.partition("=")[0].strip() in OWN:
            raise ConfigError(
                f"{where}: set: {change}: a study gives each run its seed and folder; see 'seeds'"
            )
    return changes


def stages_of(config: Config) -> list[Config]:
    """Return the configuration cut off after each entry of its schedule.

    What does nothing yet is the default there, so that variants of it share these stages.
    """
    return [
        _without_what_is_idle(config.model_copy(update={"schedule": config.schedule[: n + 1]}))
        for n in range(len(config.schedule))
    ]


def _without_what_is_idle(stage: Config) -> Config:
    """Return a stage in which the keys of regions that do nothing yet have their defaults."""
    kinds = {phase.kind for phase in stage.phases()}
    idle: tuple[str, ...] = ()
    if all(phase.scales == (1,) for phase in stage.phases()) and kinds <= {"classification", "apn_init"}:
        idle = OF_THE_CUT if "apn_init" in kinds else (*OF_THE_CUT, "bounds")
    plain = {name: type(stage.model).model_fields[name].default for name in idle}
    return stage.model_copy(update={"model": stage.model.model_copy(update=plain)})


def key_of(config: Config) -> str:
    """Return a short hash of everything in a configuration that changes the weights.

    Of what differs from the defaults only: a key that a later version adds leaves the stages of a long study usable.
    A default that a later version changes is seen by :func:`_refuse_other_defaults`.
    """
    values = _essence(config, exclude_defaults=True)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _essence(config: Config, **options: Any) -> dict[str, Any]:
    """Return what of a configuration changes the weights, as plain types."""
    values = config.model_dump(mode="json", **options)
    for section, keys in FREE.items():
        for name in keys:
            values.get(section, {}).pop(name, None)
    if config.model.weights is not None:
        values["model"]["weights"] = Path(config.model.weights).name  # wherever the file lies
    if config.data.dataset in OWN_PHOTOS and config.data.root is not None:
        values["data"]["root"] = str(
            config.data.root.expanduser().resolve()
        )  # the data set is what lies there
    return values


def run_stages(config: Config, store: Path, device: torch.device) -> tuple[Path, float]:
    """Train what is not there yet; return the last stage's folder and the seconds that all stages took."""
    from racnn.engine.checkpoint import write_text as write_whole
    from racnn.engine.trainer import fit

    refuse_blocked(store, "--stages")
    previous: Path | None = None
    seconds = 0.0
    for number, stage in enumerate(stages_of(config), start=1):
        folder = store / f"{number:02d}-{key_of(stage)}"
        stage = stage.model_copy(update={"run": stage.run.model_copy(update={"out": str(folder)})})
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            state = _read_state(folder)
            if (folder / "config.yaml").is_file():
                _refuse_other_defaults(folder / "config.yaml", stage)
            if not state["done"]:
                if previous is not None and not (folder / "last.pt").exists():
                    _hand_over(previous, folder, stage)
                resume = (folder / "last.pt").exists()
                start = time.monotonic()
                try:
                    fit(stage, device=device, resume=resume, overwrite=not resume)
                    state["done"] = True
                finally:
                    state["seconds"] += time.monotonic() - start
                    write_whole(folder / STATE, json.dumps(state))
        seconds += state["seconds"]
        previous = folder
    assert previous is not None
    return previous, seconds


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other study trains a stage; it may be finished then."""
    if (folder / "lock").is_symlink():
        raise ConfigError(f"{folder / 'lock'}: is a link; move it away")
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _refuse_other_defaults(path: Path, stage: Config) -> None:
    """Refuse a stage whose configuration has the same hash, but was trained when a default was another one."""
    stored = _essence(parse_config(read_yaml(path), origin=str(path), stored=True))
    changed = [name for name, value in _essence(stage).items() if value != stored[name]]
    if changed:
        raise ConfigError(
            f"{path}: trained when a default of {', '.join(changed)} was another one; delete its folder to train it anew"
        )


def _read_state(folder: Path) -> dict[str, Any]:
    """Return whether a stage is done and how many seconds it took so far."""
    if not (folder / STATE).is_file():
        return {"done": False, "seconds": 0.0}
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if not isinstance(state, dict) or not {"done", "seconds"} <= state.keys():
            raise ValueError("other keys")
    except ValueError:
        raise ConfigError(f"{folder / STATE}: is not what a study writes; move it away") from None
    return {"done": bool(state["done"]), "seconds": float(state["seconds"])}


def _hand_over(previous: Path, folder: Path, stage: Config) -> None:
    """Begin a stage from the end of the one before: its checkpoint under the longer schedule, its log, its best."""
    from racnn.engine.checkpoint import load_checkpoint, save_checkpoint

    shutil.copyfile(previous / "metrics.jsonl", folder / "metrics.jsonl")
    best = folder / "best.pt"
    best.unlink(missing_ok=True)
    os.link(previous / "best.pt", best)  # checkpoints are replaced, never written into
    content = load_checkpoint(previous / "last.pt")
    save_checkpoint(folder / "last.pt", content | {"config": dump_config(stage)})


def measure(folder: Path, split: str, root: Path | None, device: torch.device) -> dict[str, float]:
    """Return the figures of a finished run on a split, by column.

    Of ``last.pt``: ``best.pt`` is an earlier stage's where the last one made things worse, which a study must show.
    """
    from racnn.engine.evaluator import evaluate_trained
    from racnn.engine.predictor import load

    report = evaluate_trained(load(folder / "last.pt", device), split=split, root=root)
    figures = {f"top1_{key}": value for key, value in report["top1"].items()}
    figures |= {f"log_prob_{key}": value for key, value in report["log_prob"].items()}
    for region, values in report["localisation"].items():
        figures |= {f"{region}_{key}": value for key, value in (values or {}).items() if value is not None}
    for region, values in report["regions"].items():
        figures |= {f"{region}_{key}": value for key, value in values.items()}
    return figures


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows, all columns of any of them."""
    columns = list(dict.fromkeys([*FIRST_COLUMNS, *(key for row in rows for key in row)]))
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, file.getvalue(), flag="--out")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read what :func:`write_rows` wrote; a missing file has no rows."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def format_table(rows: list[dict[str, Any]], split: str) -> str:
    """Return a markdown table: for each variant the mean over its seeds, and where there are several their spread."""
    chosen = [row for row in rows if row["split"] == split]
    shown = {title: column for title, column in SHOWN.items() if any(row.get(column[0]) for row in chosen)}
    lines = [
        f"| {split} | seeds | " + " | ".join(shown) + " |",
        "|---|---|" + "---|" * len(shown),
    ]
    for name in dict.fromkeys(row["variant"] for row in chosen):
        own = [row for row in chosen if row["variant"] == name]
        cells = [_cell(own, *column) for column in shown.values()]
        lines.append(f"| {name} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(rows: list[dict[str, Any]], column: str, digits: int, factor: float) -> str:
    values = [factor * float(row[column]) for row in rows if row.get(column) not in (None, "")]
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def _refuse_twins(configs: dict[str, Config]) -> None:
    """Refuse two variants that would train the same network: one of their changes does nothing."""
    names: dict[str, str] = {}
    for name, config in configs.items():
        other = names.setdefault(key_of(config), name)
        if other != name:
            raise ConfigError(
                f"variants '{other}' and '{name}' train the same network; expected a difference"
            )


def _same(row: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(row[key] == other[key] for key in ("variant", "seed", "split"))


def _is_current(row: dict[str, Any], plan: Study, changes: list[str]) -> bool:
    """Return whether a row of an earlier call is of the variant as the study has it now."""
    if row["variant"] not in plan.variants:
        return False
    return bool(row["config"] == key_of(plan.resolve(row["variant"], int(row["seed"]), changes)))


def main(
    study: Annotated[Path, typer.Argument(help="A YAML file of variants.")],
    out: Annotated[Path, typer.Option(help="Folder of rows.csv, table.md and, unless --stages, the stages.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A change for all variants.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Run only this variant; repeatable.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Run only this seed; repeatable.")] = None,
    split: Annotated[str, typer.Option(help="val chooses; test is for finalists, once, at the end.")] = "val",
    stages: Annotated[
        Path | None, typer.Option(help="Folder of the stages, where several studies share it.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Run variants x seeds and write their rows."""
    from racnn.engine.device import pick_device

    if split not in ("val", "test"):
        raise ConfigError(f"--split {split}: expected val or test")
    plan = read_study(study)
    for name in only or []:
        if name not in plan.variants:
            raise ConfigError(f"--only {name}: no such variant{did_you_mean(name, plan.variants)}")
    where = pick_device(device)
    names, seeds = only or list(plan.variants), seed or plan.seeds
    jobs = [(name, number) for number in seeds for name in names]
    changes = _refuse_own(settings or [], "--set")
    configs = {job: plan.resolve(*job, changes) for job in jobs}  # mistakes show before training
    _refuse_twins({name: plan.resolve(name, 0, changes) for name in plan.variants})
    refuse_foreign([out / "rows.csv", out / "table.md"], flag="--out")
    for (name, number), config in configs.items():
        folder, seconds = run_stages(config, stages or out / "stages", where)
        row = {
            "variant": name,
            "seed": str(number),
            "split": split,
            "config": key_of(config),
            "seconds": round(seconds),
            **measure(folder, split, config.data.root, where),
        }
        rows = [r for r in read_rows(out / "rows.csv") if _is_current(r, plan, changes) and not _same(r, row)]
        rows.append(row)
        write_rows(out / "rows.csv", rows)
        write_text(out / "table.md", format_table(rows, split), flag="--out")
    print((out / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_with_messages(lambda: typer.run(main))
