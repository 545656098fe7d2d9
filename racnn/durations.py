"""Lengths of time as people write them."""

from __future__ import annotations

import re

from racnn.errors import ConfigError

SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0}


def parse_duration(text: str, *, flag: str) -> float:
    """Return the seconds of a length of time such as ``90s``, ``30m``, ``1h30m`` or ``1.5h``.

    Raises:
        ConfigError: It is none, or nothing.
    """
    found = re.fullmatch(
        r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text.strip().lower()
    )
    parts = found.groups() if found else ()
    seconds = sum(float(part) * SECONDS[unit] for part, unit in zip(parts, SECONDS, strict=False) if part)
    if not seconds:
        raise ConfigError(f"{flag}: expected a length of time such as 90s, 30m or 1h30m, got '{text}'")
    return seconds


def format_duration(seconds: float) -> str:
    """Return a length of time in words, no more exact than an estimate is."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36 * 3600 else f"{seconds / 86400:.1f} days"
