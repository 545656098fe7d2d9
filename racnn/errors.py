"""What a user can do wrong: one exception family that the command line turns into a message and exit code 2, or 1."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake the user can mend; the message names the file, flag or key and what was expected."""


class ConfigError(UserError):
    """A configuration that cannot be used: unknown key, wrong type, value out of range."""


class DataError(UserError):
    """A dataset folder, annotation file or photo that is missing or damaged."""


class LeftOutError(DataError):
    """Some photos could not be read; what was asked for the others is done. Exit code 1."""


class WeightsError(UserError):
    """A weights file that does not fit the network."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another shape than asked for."""


class DamagedError(CheckpointError):
    """A checkpoint that is not as it was written."""


class TrainingError(RuntimeError):
    """Training cannot go on, for example because a loss is not finite. Nothing was changed by the failing step."""


class ExportError(RuntimeError):
    """An exported network is not what it was. Nothing was written."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
