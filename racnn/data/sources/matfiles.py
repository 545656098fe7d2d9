"""Read MATLAB's .mat files, in which Stanford's data sets keep their lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from racnn.errors import DataError


def read_mat(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Return variables of a .mat file, which must hold them, each as a flat array.

    Raises:
        DataError: The file is missing, is no .mat file, or lacks a variable.
    """
    from scipy.io import loadmat

    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a .mat file with {', '.join(names)}")
    try:
        content = loadmat(path, squeeze_me=True)
    except Exception as error:  # a damaged file raises any of a dozen types
        raise DataError(f"{path}: cannot be read as a .mat file: {error or type(error).__name__}") from None
    found = [name for name in content if not name.startswith("__")]
    for name in names:
        if name not in content:
            raise DataError(f"{path}: expected a variable '{name}', found {', '.join(found) or 'none'}")
    return {name: np.atleast_1d(content[name]) for name in names}


def read_struct(path: Path, name: str, *fields: str) -> list[dict[str, Any]]:
    """Return the rows of a struct array, each with the named fields.

    Raises:
        DataError: As :func:`read_mat`, or the variable is no struct array, or lacks a field.
    """
    rows = read_mat(path, name)[name]
    known = rows.dtype.names or ()
    for field in fields:
        if field not in known:
            raise DataError(
                f"{path}: expected '{name}' to have the fields {', '.join(fields)}; found {', '.join(known) or 'none'}"
            )
    return [
        {field: row[field].item() if hasattr(row[field], "item") else row[field] for field in fields}
        for row in rows
    ]
