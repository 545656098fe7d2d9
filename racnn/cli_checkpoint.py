"""The commands about a checkpoint itself: say what it is, hand on its weights."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from racnn.errors import ConfigError

Checkpoint = Annotated[
    Path, typer.Argument(help="best.pt or last.pt of a run, or an exported .safetensors file.")
]


def inspect(
    checkpoint: Checkpoint,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what a checkpoint is: dataset, classes, network, how far it was trained, with what."""
    from racnn.engine.checkpoint import describe, format_description

    found = describe(checkpoint)
    print(json.dumps(found, indent=2) if as_json else format_description(found))


def export_weights(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier file.")] = False,
) -> None:
    """Write a network's weights as .safetensors, with all that is needed to use them in its metadata."""
    from racnn.engine.checkpoint import SUFFIX
    from racnn.engine.predictor import export_trained

    if out.suffix != SUFFIX:
        raise ConfigError(f"--out {out}: expected a name that ends with {SUFFIX}")
    if any(0xD800 <= ord(character) < 0xE000 for character in str(out)):
        raise ConfigError(f"--out {out}: expected a name in UTF-8, or safetensors cannot read it")
    if os.path.lexists(out) and (out.is_dir() or not overwrite):
        hint = "a folder" if out.is_dir() else "exists already: replace an earlier export with --overwrite"
        raise ConfigError(f"--out {out}: {hint}")
    export_trained(checkpoint, out)
    print(f"written to {out}: {out.stat().st_size:,} bytes; see racnn inspect {out}")
