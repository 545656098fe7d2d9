"""What a checkpoint is, in plain types and in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from racnn.engine.checkpoint import as_written, up_to_date
from racnn.engine.stored import Stored, check_content
from racnn.models import RACNN
from racnn.models.phase import upcoming

PARTS = ("backbones", "classifiers", "apns", "fusion")
MOST_NAMED = 5  # classes


def describe(path: Path) -> dict[str, Any]:
    """Return what a checkpoint or an exported file is, ready for ``json.dumps``.

    Raises:
        CheckpointError: It cannot be read, or makes no sense.
    """
    written = as_written(path)
    stored = check_content(up_to_date(written, path), path)
    content, model = stored.content, stored.config.model
    report = content.val_report
    return {
        "path": str(path),
        "file_size": path.stat().st_size,
        "format": written["format"],
        "digest": written["digest"],
        "dataset": content.dataset,
        "num_classes": len(content.class_names),
        "class_names": content.class_names,
        "num_train": len(content.train_names),
        "num_val": len(content.val_names),
        "backbone": model.backbone,
        "view_sizes": list(model.view_sizes),
        "trained_scales": content.trained_scales,
        "fusion_trained": content.fusion_trained,
        "step": content.step,
        "position": _position(stored),
        "parameters": count_parameters(stored.network),
        "val_top1": report["top1"] if report else None,
        "provenance": content.provenance,
    }


def count_parameters(network: RACNN) -> dict[str, int]:
    """Return the number of parameters of each part of a network."""
    return {part: sum(p.numel() for p in network.get_submodule(part).parameters()) for part in PARTS}


def _position(stored: Stored) -> str | None:
    """Return where in its schedule a run stood; an exported file need not know."""
    progress, name = stored.content.progress, stored.content.phase
    if progress is None:
        return f"end of phase {name}" if name else None
    phase = upcoming(stored.config.schedule, stored.config.model.num_scales, progress.outcomes)
    if phase is None:
        return "end of the schedule"
    more = f", and {progress.batch} batches of the next, which is not yet measured" if progress.batch else ""
    return f"in phase {phase.name}, {progress.epoch} of {phase.epochs} epochs done{more}"


def format_description(found: Mapping[str, Any]) -> str:
    """Return what :func:`describe` found as text."""
    names = ", ".join(found["class_names"][:MOST_NAMED])
    more = ", ..." if found["num_classes"] > MOST_NAMED else ""
    sizes = " / ".join(map(str, found["view_sizes"]))
    fusion = "fusion trained" if found["fusion_trained"] else "fusion not trained"
    parts = ", ".join(f"{name} {number:,}" for name, number in found["parameters"].items())
    rows = {
        "file": f"{found['file_size']:,} bytes, checkpoint format {found['format']}",
        "digest": found["digest"],
        "dataset": f"{found['dataset']}: {found['num_train']} training photos, {found['num_val']} for validation",
        "classes": f"{found['num_classes']}: {names}{more}",
        "network": f"{found['backbone']}, views of {sizes} px",
        "trained": f"{found['trained_scales']} of {len(found['view_sizes'])} scales, {fusion}",
        "parameters": f"{sum(found['parameters'].values()):,}: {parts}",
        "step": str(found["step"]) + (f", {found['position']}" if found["position"] else ""),
    }
    if found["val_top1"]:
        answers = "  ".join(f"{name} {100 * value:.1f}" for name, value in found["val_top1"].items())
        rows["validation"] = f"top-1 % {answers}"
    lines = [found["path"], *(f"  {name:<13} {value}" for name, value in rows.items())]
    lines += [line for start in found["provenance"] for line in _start_lines(start)]
    return "\n".join(lines)


def _start_lines(start: Mapping[str, Any]) -> list[str]:
    """Return a start of the run in words; it is for reading alone, so whatever stands in it is shown."""
    rows = {f"from step {start.get('step')}": start.get("command")}
    versions = start.get("versions")
    if isinstance(versions, Mapping):
        rows["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    commit = start.get("commit")
    if isinstance(commit, Mapping):
        rows["commit"] = f"{commit.get('sha')}{', with changes' if commit.get('changed') else ''}"
    rows["device"] = f"{start.get('device')}, {start.get('threads')} threads"
    return [f"  {name:<13} {value}" for name, value in rows.items()]
