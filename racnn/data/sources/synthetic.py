"""The built-in data set: birds that are drawn when they are asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from racnn.data.sources.catalog import Box, Catalog, Part, Record, chosen_classes
from racnn.sections import DataConfig

FIRST_DRAWN_TEST = 1_000_000
DRAWN_IN_SCENE = 0.5  # side of a drawing as a share of the scene that its bird goes into


def synthetic_catalog(config: DataConfig) -> Catalog:
    """Describe drawn birds; each is drawn when it is first asked for, and kept in memory but for those that go into scenes.

    Training photos are the drawings 0, 1, ..., test photos the drawings from a million on. ``config.classes`` counts
    the species from 1 and leaves out the drawings of the others.
    """
    from racnn.data.sources.drawing import PART_NAME, SPECIES

    known = range(1, len(SPECIES) + 1)
    species = [number - 1 for number in chosen_classes(config, known, "the species that can be drawn")]
    # of a scene a drawing is only a small part, and too many scenes to keep them all
    in_scene = bool(config.scene_size)
    size = round(config.scene_size * DRAWN_IN_SCENE) if in_scene else config.source_size
    drawings = _Drawings(seed=config.synthetic.seed, size=size, keep=not in_scene)

    def records(start: int, count: int) -> list[Record]:
        return [
            Record(f"drawn/{index:07d}", species.index(index % len(SPECIES)))
            for index in range(start, start + count)
            if index % len(SPECIES) in species
        ]

    return Catalog(
        dataset="synthetic",
        class_names=[SPECIES[i] for i in species],
        train=records(0, config.synthetic.num_train),
        val=None,
        test=records(FIRST_DRAWN_TEST, config.synthetic.num_test),
        part_names=[PART_NAME],
        focus_parts=(0,),
        load=drawings.load,
        annotate=drawings.annotate,
    )


class _Drawings:
    """Drawings by the number in their record's name; a class, because workers must be able to pickle it."""

    def __init__(self, *, seed: int, size: int, keep: bool) -> None:
        self.seed, self.size, self.keep = seed, size, keep
        self._drawn: dict[str, Any] = {}

    def load(self, record: Record) -> np.ndarray:
        """Return the pixels, uint8 [h, w, 3]."""
        return self._draw(record).image

    def annotate(self, record: Record) -> tuple[Box, tuple[Part, ...]]:
        """Return the bird's box and the centre of its telling part."""
        drawing = self._draw(record)
        x_low, y_low, x_high, y_high = drawing.part_xyxy
        return drawing.bird_xyxy, (((x_low + x_high) / 2, (y_low + y_high) / 2, 1.0),)

    def _draw(self, record: Record) -> Any:
        from racnn.data.sources.drawing import draw

        if record.name not in self._drawn:
            if not self.keep:
                self._drawn.clear()  # but for the last one
            index = int(record.name.rpartition("/")[2])
            self._drawn[record.name] = draw(seed=self.seed, index=index, size=self.size)
        return self._drawn[record.name]
