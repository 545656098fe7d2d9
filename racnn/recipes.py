"""What `racnn train PHOTOS` makes of its options: a packaged configuration and settings on top of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from racnn.config import Config, load_config
from racnn.errors import ConfigError, did_you_mean
from racnn.models.backbone import stages_to_freeze, suitable_view

RECIPES = ("quick", "full", "paper")
DRAWN = "synthetic"  # the built-in set of drawn birds
DATASETS = {"cub": "cub200", "dogs": "dogs", "cars": "cars"}  # as PHOTOS names them: ``cub:ROOT``


def recipe_config(
    photos: str,
    recipe: str,
    settings: Sequence[str],
    *,
    backbone: str | None = None,
    weights: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
) -> Config:
    """Return the configuration of a recipe for some photos.

    Args:
        photos: A folder, a list, ``cub:ROOT``, ``dogs:ROOT``, ``cars:ROOT``, or ``synthetic``, the built-in set.
        recipe: One of :data:`RECIPES`.
        settings: ``key=value``, on top of everything.
        backbone: See ``model.backbone``.
        weights: See ``model.weights``.
        epochs: How many each classification phase has.
        batch_size: Photos a step, or where nothing takes steps, photos at a time.
        lr: Learning rate of each classification phase.

    Raises:
        ConfigError: There are no such photos or recipe, or an option does nothing in the recipe.
    """
    if recipe not in RECIPES:
        hint = did_you_mean(recipe, RECIPES)
        raise ConfigError(f"--recipe: expected {', '.join(RECIPES)}, got '{recipe}'{hint}")
    path = packaged(f"{recipe}.yaml")
    given = [f"{key}={value}" for key, value in photo_settings(photos).items()]
    given += [] if backbone is None else [f"model.backbone={backbone}"]
    given += [] if weights is None else [f"model.weights={weights}"]
    plain = load_config(path, [*given, *settings])
    if backbone is not None and recipe in ("quick", "full"):
        sides = [str(suitable_view(backbone, side)) for side in plain.model.view_sizes]
        given.append(f"model.view_sizes=[{', '.join(sides)}]")
    if backbone is not None and recipe == "full":
        stages = stages_to_freeze(backbone, getattr(plain.model, "frozen_stages", 0))
        given.append(f"model.frozen_stages={stages}")
    taught = {
        key: phase
        for key, phase in plain.steps_by_key().items()
        if phase.resolved(plain.model.num_scales).last_trained_scale()
    }
    if not taught and (flag := "--epochs" if epochs is not None else "--lr" if lr is not None else None):
        raise ConfigError(
            f"{flag}: the {recipe} recipe takes no steps, its heads are fitted in one go; it belongs to full and paper"
        )
    given += [f"{key}.epochs={epochs}" for key in taught if epochs is not None]
    given += [f"{key}.lr={lr}" for key in taught if lr is not None]
    if batch_size is not None:
        given.append(f"data.{'batch_size' if taught else 'eval_batch_size'}={batch_size}")
    return load_config(path, [*given, *settings])


def photo_settings(photos: str) -> dict[str, str]:
    """Return the keys of ``data`` that say where photos are.

    Raises:
        ConfigError: There is no such folder or file.
    """
    if photos == DRAWN:
        return {"data.dataset": DRAWN}
    kind, colon, rest = photos.partition(":")
    if colon and kind in DATASETS:
        return {"data.dataset": DATASETS[kind], "data.root": rest}
    place = Path(photos).expanduser()
    if place.is_dir():
        return {"data.dataset": "folder", "data.root": photos}
    if place.is_file():
        return {"data.dataset": "manifest", "data.root": photos}
    raise ConfigError(
        f"PHOTOS: {photos}: no such file or folder; expected a folder with a folder for each class, a list of photos, "
        f"{', '.join(f'{name}:ROOT' for name in DATASETS)} or {DRAWN}"
    )


def config_file(name: Path) -> Path:
    """Return the file that a configuration is in: a path, or the name of one that comes with the program.

    Raises:
        ConfigError: There is neither.
    """
    if name.exists() or name.parent != Path("."):
        return name
    try:
        return packaged(f"{name.name.removesuffix('.yaml')}.yaml")
    except ConfigError:
        known = sorted(path.stem for folder in _folders() for path in folder.glob("*.yaml"))
        raise ConfigError(
            f"--config {name}: no such file, and none of that name comes with the program{did_you_mean(name.name, known)}; "
            f"these do: {', '.join(known)}"
        ) from None


def packaged(name: str) -> Path:
    """Return a configuration that comes with the program, installed or in a checkout."""
    for folder in _folders():
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(f"{name}: not found beside the installed package")


def _folders() -> list[Path]:
    beside = Path(__file__).parent.parent / "configs"
    installed = Path(sys.prefix) / "share" / "racnn" / "configs"
    return [folder for folder in (beside, installed) if (folder / "quick.yaml").is_file()][:1]
