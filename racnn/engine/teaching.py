"""Before a phase: give the photos what it needs to know of each, see :mod:`racnn.engine.lessons`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from racnn.engine.lessons import find_common_part, read_boxes, read_places
from racnn.engine.phases import Phase
from racnn.engine.run import Run

T = TypeVar("T")


def give_lessons(run: Run, phase: Phase) -> None:
    """Let the photos of a phase carry their lessons, where it has any. A phase that is taken up again reads the same.

    Raises:
        Stop: The run was told to stop.
    """
    photos = phase.config.photos
    if phase.looks_alone() and run.model.zoom_from == "source":
        places = _read(run, phase, "where to look", photos, read_places)
        run.data.splits[photos].lessons = places.numpy()
    if phase.config.kind != "apn_init":
        return
    common = None
    if phase.config.response == "ddt":
        if not run.model.backbone(phase.scales[0]).inner:
            run.recorder.say(
                f"{phase.name}: no block before the last one of this backbone is known, so that response: ddt reads the last "
                "map, which may tell the object less well; tools/teacher.py compares it with sum and cam"
            )
        common = _read(run, phase, "what photos have in common", photos, find_common_part)
    for split in (photos, "val"):
        boxes = _read(run, phase, "reading boxes", split, read_boxes, common=common)
        run.data.splits[split].lessons = boxes.numpy()


def take_lessons_away(run: Run) -> None:
    """Let no photo carry a lesson."""
    for photos in run.data.splits.values():
        photos.lessons = None


def _read(run: Run, phase: Phase, what: str, split: str, reader: Callable[..., T], **settings: Any) -> T:
    """Return what a reader finds in the photos of a split, showing how far it is."""

    def after_batch() -> None:
        run.recorder.tick()
        if run.world.size == 1:  # several stop together, after the last batch
            _stop_if_told(run)

    batches = run.validation.batches(split)
    run.recorder.start_bar(f"{phase.name}: {what}, {split}", len(batches), 0)
    found = reader(
        run.model,
        batches,
        phase.scales[0],
        phase.config,
        device=run.device,
        world=run.world,
        after_batch=after_batch,
        **settings,
    )
    run.recorder.close_bar()
    _stop_if_told(run)
    return found


def _stop_if_told(run: Run) -> None:
    """Stop with a checkpoint to go on from, if the run was told to."""
    if run.stopped():
        if not (run.folder / "last.pt").exists():
            run.save_last(None)
        run.stop()
