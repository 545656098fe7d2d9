"""``predictions.jsonl``: one row a photo, what a network said of it look by look, for people and for other commands.

A row stands by itself, so that a few lines can be cut out, searched and read by any tool. Boxes are (x0, y0, x1, y1) in pixels of
the upright photo, its outer corners at (0, 0) and (w, h).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from racnn.errors import DataError

LEAST = 1e-5  # probabilities below are left out, but that of the true class


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LookAnswer(_Plain):
    """What one look, or all together, say of a photo.

    Attributes:
        name: The most probable class.
        probability: Its probability.
        of_label: The probability of the true class.
        probabilities: Probabilities by class, the most probable first; those below :data:`LEAST` are left out.
    """

    name: str
    probability: float = Field(ge=0.0, le=1.0)
    of_label: float = Field(ge=0.0, le=1.0)
    probabilities: dict[str, float]


class EarlyAnswer(_Plain):
    """What the network says where it looks closer only if it needs to: after how many looks, and for how many multiplications."""

    looks: int = Field(ge=1)
    name: str
    probability: float = Field(ge=0.0, le=1.0)
    multiplications: float = Field(ge=0.0)


class PhotoRow(_Plain):
    """One photo.

    Attributes:
        photo: Its name in the data set.
        path: Its file, None where it was drawn.
        split: The split that it is in.
        label: The true class.
        by: Which of ``answers`` is the network's: 'fused', or 'mean' where nothing fuses.
        answers: Answers by look, ``scale_1`` and so on, and of all together: ``mean`` of the probabilities, and ``fused``.
        boxes_xyxy: Where each look after the first looked.
        object_xyxy: The box of the object, where it is annotated.
        multiplications: What all looks take together.
        early_exit: What early exit would say, where that was asked for.
        network: First digits of the digest of the weights.
    """

    photo: str
    path: str | None
    split: str
    label: str
    by: str
    answers: dict[str, LookAnswer]
    boxes_xyxy: list[tuple[float, float, float, float]]
    object_xyxy: tuple[float, float, float, float] | None = None
    multiplications: float = Field(ge=0.0)
    early_exit: EarlyAnswer | None = None
    network: str

    @property
    def answer(self) -> LookAnswer:
        """What the network says, all looks together."""
        return self.answers[self.by]

    @property
    def right(self) -> bool:
        """Whether that is the true class."""
        return self.answer.name == self.label


def format_photo_rows(rows: Iterable[PhotoRow]) -> str:
    """Return rows as JSON, one a line; names of files that are no UTF-8 keep their bytes as surrogates."""
    return "".join(json.dumps(row.model_dump()) + "\n" for row in rows)


def read_photo_rows(path: Path) -> list[PhotoRow]:
    """Return the rows of a file.

    Raises:
        DataError: It cannot be read, is empty, or a line is no row; with its number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = PhotoRow(**_object(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number}: expected a row of `racnn evaluate --predictions`: {_reason(error)}"
            ) from None
        if row.by not in row.answers:
            raise DataError(f"{path}, line {number}: 'by' names '{row.by}', which is none of its answers")
        rows.append(row)
    if not rows:
        raise DataError(f"{path}: holds no rows; expected a file of `racnn evaluate --predictions`")
    return rows


def _object(line: str) -> dict[str, Any]:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error) or type(error).__name__
